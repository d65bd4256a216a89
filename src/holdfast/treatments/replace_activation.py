"""`replace-activation`: sigmoid and tanh exchanged for an activation that does not saturate on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.surgery import check_model, check_place, one_line, operate
from holdfast.treatments.change import Batch, Change, planned
from holdfast.treatments.left import first_of
from holdfast.treatments.places import WEIGHTED, expression, leaves, named, paths_of

_SATURATING: tuple[type[nn.Module], ...] = (nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardtanh, nn.Softsign)
_CLASSES: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


def _choose(module: nn.Module, to: Literal["auto", "relu", "gelu"], named: bool) -> type[nn.Module] | None:
    """What takes an activation's place; `None` when it stays. A ReLU changes only when it is named."""
    if type(module) in _SATURATING:
        return _CLASSES["relu" if to == "auto" else to]
    return nn.GELU if named and type(module) is nn.ReLU and to != "relu" else None


@dataclass(frozen=True, slots=True, eq=False)
class ReplaceActivation:
    """Exchanges sigmoid and tanh modules for ReLU or GELU, and dying ReLUs for GELU.

    What it does:
        Each named `nn.Sigmoid`, `nn.Tanh`, `nn.Hardsigmoid`, `nn.Hardtanh` or `nn.Softsign` becomes `nn.ReLU` or
        `nn.GELU`, each named `nn.ReLU` becomes `nn.GELU`. Without sites: each of the former that has a layer with
        weights behind it, so that an output activation stays. Weights and the optimiser are left alone; no key of
        the state_dict changes.

    When it helps:
        When units sit on the flat ends of their activation: a sigmoid passes at most 1/4 of its gradient, ten of
        them at most 1e-6, while a rectifier passes all of it wherever it is open. A ReLU that is shut for every
        sample passes nothing and stays shut; a GELU always passes a little.

    When it is wrong:
        When the bound is wanted: a gate, a probability, an output in [−1, 1]. On a trained network, whose weights
        were fitted to the old activation: the receipt states how far the function moves. On a network initialised
        for tanh: follow it with `reinitialise`. Activations called as functions (`torch.sigmoid`) are not modules:
        change those in the script.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 1), nn.Sigmoid())
        >>> receipt = ReplaceActivation().plan(model, None).apply()
        >>> model[1], model[3]
        (ReLU(), Sigmoid())
        >>> receipt.undo()
        >>> model[1]
        Sigmoid()

    Args:
        to: the activation to put in; `"auto"` is ReLU for those that saturate and GELU for a ReLU.
        batch: what the model is called with; then the receipt states the error, and order is that of execution.

    References:
        Glorot, Bordes and Bengio, Deep sparse rectifier neural networks, AISTATS 2011.
        Hendrycks and Gimpel, Gaussian error linear units, 2016, arXiv:1606.08415.
    """

    name = "replace-activation"

    to: Any = "auto"
    batch: Batch | None = None

    def __post_init__(self) -> None:
        """Refuse an activation that is not offered.

        Raises:
            InputError: it is unknown.
        """
        if self.to not in ("auto", *_CLASSES):
            raise InputError('to="auto", "relu" or "gelu"', repr(self.to), 'type: to="auto"')

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out which activations change.

        Args:
            model: the model.
            optimizer: the one that steps it, if any.
            sites: which activations; every one with a layer behind it when none is named.

        Returns:
            The plan.

        Raises:
            SurgeryError: no activation qualifies, or the model cannot be operated on.
        """
        check_model(model)
        targets = self._targets(model, sites)
        if not targets:
            raise SurgeryError(
                "a sigmoid or tanh module with a layer behind it",
                "none among " + (first_of(site.module or "the model" for site in sites) or "the model's modules"),
                "activations called as functions are changed in the script itself",
            )
        for path, module, _ in targets:
            check_place(model, module, path)
        chosen = {id(module): make for _, module, make in targets}
        diff, source = [], []
        for path, module, _ in targets:
            make = chosen[id(module)]
            diff += [f"- {path}: {one_line(module)}", f"+ {path}: {one_line(make())}"]
            places = [expression(model, each) for each in paths_of(model, module)]
            source.append(f"{' = '.join(places)} = nn.{make.__name__}()")

        def change() -> Change:
            surgery = operate(
                model, optimizer, lambda module, _: chosen[id(module)]() if id(module) in chosen else None
            )
            if len(surgery.replacements) != len(chosen):
                surgery.undo()
                raise SurgeryError("the model as it was planned for", "one that changed since", "plan again")
            return Change(surgery.changes, surgery.undo, surgery.renamed)

        return planned(
            self.name,
            model,
            change,
            diff="\n".join(diff),
            source="\n".join(source),
            batch=self.batch,
            optimizer=optimizer,
        )

    def _targets(self, model: nn.Module, sites: Sequence[Site]) -> list[tuple[str, nn.Module, type[nn.Module]]]:
        if sites:
            found = named(model, sites)
        else:
            order = leaves(model, self.batch)
            last = max((place for place, leaf in enumerate(order) if isinstance(leaf.module, WEIGHTED)), default=0)
            found = [(leaf.path, leaf.module) for leaf in order[:last]]
        choices = ((path, module, _choose(module, self.to, bool(sites))) for path, module in found)
        return [(path, module, make) for path, module, make in choices if make is not None]
