"""`Rule`: what a member of `RULES` is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History

TREATMENTS = (
    "decouple-decay",
    "drop-bias",
    "insert-norm",
    "reinitialise",
    "reorder-norm",
    "replace-activation",
    "scale-rate",
    "scale-residual",
    "split-decay",
    "swap-norm",
    "re-estimate",
    "freeze-batchnorm",
    "scale-input",
    "warm-up",
    "clip",
)
"""Names that a rule may give: each is a treatment that exists."""


@runtime_checkable
class Rule(Protocol):
    """A question asked of a run. Its class's docstring is its card."""

    @property
    def name(self) -> str:
        """Lower case, words joined by hyphens; the file's stem with underscores."""
        ...

    @property
    def subject(self) -> str:
        """What the verdict calls it: words that fit before "is what holds this run back"."""
        ...

    @property
    def treatments(self) -> tuple[str, ...]:
        """Names of what answers it, the best first."""
        ...

    @property
    def static(self) -> bool:
        """Whether a structure alone is enough."""
        ...

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the run.

        Returns:
            What was found, `[]` when all is well, or why it could not be decided.
        """
        ...
