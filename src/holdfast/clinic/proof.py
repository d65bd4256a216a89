"""`Proof`: what a treatment did to training, seed by seed, with the interval and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from holdfast.clinic.arms import Trial
from holdfast.core.reading import plain

ProofVerdict = Literal["helps", "hurts", "no measurable benefit", "inconclusive"]

UNTREATED, TREATED = "untreated", "treated"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of training, over all seeds.

    Args:
        name: `"untreated"`, `"treated"`, or the rival's, such as `"learning rate × 3"`.
        trials: one a seed.
    """

    name: str
    trials: tuple[Trial, ...]

    @property
    def diverged(self) -> int:
        """In how many seeds a loss was not finite."""
        return sum(each.diverged for each in self.trials)

    @property
    def seconds(self) -> float:
        """Median over the seeds of a training step's wall-clock time."""
        return sorted(each.seconds for each in self.trials)[len(self.trials) // 2]

    def outcome(self, name: str) -> tuple[float, ...]:
        """Of every seed: the loss, or under any other name the metric."""
        return tuple(each.eval_loss if name == "loss" else float(each.metric or 0.0) for each in self.trials)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The paired difference of an outcome between two arms over seeds.

    Args:
        outcome: `"loss"` or the metric's name, on the eval batches.
        of: an arm's name.
        against: another's.
        differences: one a seed: `of` minus `against`; infinite or NaN where one diverged.
        mean: over the seeds.
        interval: of the mean, by Student's t; at the level 1 − `alpha`.
        alpha: what this look was allowed to spend.
        better: `True` where the interval lies on the good side of 0, `False` where on the bad one, else `None`.
    """

    outcome: str
    of: str
    against: str
    differences: tuple[float, ...]
    mean: float
    interval: tuple[float, float]
    alpha: float
    better: bool | None


@dataclass(frozen=True, slots=True)
class Shift:
    """Parameter drift over one step at the layers' inputs, on the batches of the first seed.

    Args:
        arm: its name.
        median: over layers and observed steps, in reference SD.
        largest: the largest median of a layer.
        where: that layer.
        n: readings.
        collapsed: inputs left out, because the samples cannot be told apart there: their drift has no unit.
    """

    arm: str
    median: float
    largest: float
    where: str
    n: int
    collapsed: int = 0


@dataclass(frozen=True, slots=True)
class Proof:
    """Whether a treatment helped.

    Args:
        treatment: its name.
        verdict: the answer.
        sentence: the answer with its figures.
        primary: the outcome that decides: the name of the metric where one was given, else `"loss"`.
        comparisons: treated against untreated in each outcome, then treated against each rival in the primary one.
        arms: all of them.
        seeds: how many were run.
        steps: of each training.
        shift: internal covariate shift of the untreated and of the treated run; empty when not measured.
    """

    treatment: str
    verdict: ProofVerdict
    sentence: str
    primary: str
    comparisons: tuple[Comparison, ...]
    arms: tuple[Arm, ...]
    seeds: int
    steps: int
    shift: tuple[Shift, ...] = ()

    def __str__(self) -> str:
        return f"{self.treatment}: {self.verdict}. {self.sentence}"

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(each for each in self.arms if each.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "treatment": self.treatment,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "primary": self.primary,
            "seeds": self.seeds,
            "steps": self.steps,
            "comparisons": [
                {
                    "outcome": each.outcome,
                    "of": each.of,
                    "against": each.against,
                    "differences": [plain(value) for value in each.differences],
                    "mean": plain(each.mean),
                    "interval": [plain(end) for end in each.interval],
                    "alpha": each.alpha,
                    "better": each.better,
                }
                for each in self.comparisons
            ],
            "arms": [
                {
                    "name": arm.name,
                    "diverged": arm.diverged,
                    "seconds_per_step": arm.seconds,
                    "loss": [plain(value) for value in arm.outcome("loss")],
                    "metric": [plain(value) for value in arm.outcome(self.primary)] if self.primary != "loss" else None,
                }
                for arm in self.arms
            ],
            "shift": [
                {
                    "arm": each.arm,
                    "median": plain(each.median),
                    "largest": plain(each.largest),
                    "where": each.where,
                    "n": each.n,
                    "collapsed": each.collapsed,
                }
                for each in self.shift
            ],
        }


def compare(outcome: str, of: Arm, against: Arm, *, higher_is_better: bool, alpha: float) -> Comparison:
    """Compare two arms seed by seed.

    d̄ ± t(1 − α/2, K − 1) · s/√K over the K paired differences. Where an arm diverged the difference is infinite: then
    the interval is the whole line, unless one arm diverged in every seed and the other in none.

    Args:
        outcome: `"loss"` or the metric's name.
        of: the arm in question.
        against: the other.
        higher_is_better: of the outcome.
        alpha: the level to spend.

    Returns:
        The comparison.

    Example:
        >>> def arm(name, *losses):
        ...     return Arm(name, tuple(Trial((1.0,), loss, None, 0.1) for loss in losses))
        >>> one, other = arm("a", 1.0, 1.1, 1.2), arm("b", 2.0, 2.1, 2.3)
        >>> found = compare("loss", one, other, higher_is_better=False, alpha=0.05)
        >>> round(found.mean, 3), [round(end, 3) for end in found.interval], found.better
        (-1.033, [-1.177, -0.89], True)
    """
    pairs = list(zip(of.trials, against.trials, strict=True))
    lost = [sum(pair[side].diverged for pair in pairs) for side in (0, 1)]
    whole = (-math.inf, math.inf)
    if any(lost):
        worst = -math.inf if higher_is_better else math.inf
        values = tuple(
            math.nan if a.diverged and b.diverged else worst if a.diverged else -worst if b.diverged else 0.0
            for a, b in pairs
        )
        decided = sorted(lost) == [0, len(pairs)] and len(pairs) > 1
        mean = (worst if lost[0] else -worst) if decided else math.nan
        return Comparison(outcome, of.name, against.name, values, mean, whole, alpha, not lost[0] if decided else None)
    differences = tuple(a - b for a, b in zip(of.outcome(outcome), against.outcome(outcome), strict=True))
    mean, low, high = interval_of(differences, alpha)
    better = None if low <= 0 <= high else (low > 0) == higher_is_better
    return Comparison(outcome, of.name, against.name, differences, mean, (low, high), alpha, better)


def interval_of(values: Sequence[float], alpha: float) -> tuple[float, float, float]:
    """Mean and Student's interval.

    Args:
        values: independent, one a seed.
        alpha: 1 − the level.

    Returns:
        `(mean, low, high)`; the whole line for a single value that is not zero.
    """
    from scipy.special import stdtrit

    n = len(values)
    mean = math.fsum(values) / n
    if all(value == 0 for value in values):
        return 0.0, 0.0, 0.0
    if n < 2:
        return mean, -math.inf, math.inf
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 1 - alpha / 2)) * sd / math.sqrt(n)
    return mean, mean - half, mean + half
