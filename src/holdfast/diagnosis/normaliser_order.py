"""Rule `normaliser-order`: a normaliser behind its activation, or dropout straight in front of a BatchNorm."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.core.site import Site
from holdfast.core.structure import ModuleNode, Structure
from holdfast.core.units import Unit
from holdfast.diagnosis.structures import UNFOLLOWED, fact, judged, setting
from holdfast.diagnosis.wording import names, number, plural
from holdfast.live.operations import ACTIVATIONS as FUNCTIONS

ACTIVATIONS = frozenset(
    {
        "CELU",
        "ELU",
        "GELU",
        "Hardsigmoid",
        "Hardswish",
        "Hardtanh",
        "LeakyReLU",
        "LogSigmoid",
        "Mish",
        "PReLU",
        "RReLU",
        "ReLU",
        "ReLU6",
        "SELU",
        "SiLU",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Tanh",
        "Threshold",
    }
)
NO_ACTIVATION = frozenset(["clamp", "clamp_", "erf", "glu", "log_softmax", "softmax"])
CHANNELWISE = frozenset(["_BatchNorm", "_InstanceNorm", "GroupNorm"])
WEIGHTED = frozenset(["Linear", "_ConvNd"])
DROPOUT = frozenset(["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"])


@dataclass(frozen=True, slots=True)
class NormaliserOrder:
    """A normaliser stands behind the activation, not in front of it; or dropout stands straight before a BatchNorm.

    What it sees:
        In the flow of the forward pass that was followed: a BatchNorm, InstanceNorm or GroupNorm whose only input is
        the activation, module or function, of one linear or convolutional layer; and a BatchNorm whose input comes
        through an `nn.Dropout` with p above 0. Always a remark.

        It is a fact, not a figure with noise.

    Why it matters:
        Evidence is mixed. The paper put BatchNorm in front of the nonlinearity, where it keeps units out of saturation;
        others measured the same accuracy or a little more behind a ReLU. In front, the activation hands on what is
        not centred; behind, nothing holds its inputs in range.

        Dropout in training multiplies the mean square by 1/(1 − p), so a variance by at least that, and the running
        variance learns it; in evaluation the signal comes without. With p = 0.5 the normalised signal of evaluation has
        0.71 of its SD in training at most. Wide layers behind it, which average over units, soften the same shift where
        dropout stands further in front.

    When it is wrong:
        Either order trains; only a proof on the model at hand tells. LayerNorm and RMSNorm, which many sound models
        have behind an activation, are not judged. Functions such as `F.dropout` are not seen.

    Example:
        2 of 5 normalisers ('2', '5') stand behind their activation, not in front of it; evidence on which is better is
        mixed.

    What to do:
        reorder-norm tries the other order, and a proof says whether it helps. Dropout: move it behind the last
        BatchNorm; or re-estimate the running statistics in eval mode after training.

    References:
        Ioffe & Szegedy 2015, "Batch normalization", arXiv:1502.03167, section 3.2; Mishkin, Sergievskiy & Matas 2016,
        "Systematic evaluation of CNN advances on the ImageNet", arXiv:1606.02228; Li et al. 2019, "Understanding the
        disharmony between dropout and batch normalization by variance shift", arXiv:1801.05134.
    """

    name: str = "normaliser-order"
    subject: str = "the place of a normaliser"
    treatments: tuple[str, ...] = ("reorder-norm", "re-estimate")
    static: bool = True

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the data flow.

        Args:
            history: of a run.

        Returns:
            At most one finding a model for each of the two orders, or why it could not be decided.
        """
        return judged(self.name, history, self._judge)

    def _judge(self, structure: Structure) -> list[Finding] | str:
        if not structure.order:
            return UNFOLLOWED
        norms = [node for node in structure.modules if node.calls and not CHANNELWISE.isdisjoint(node.bases)]
        return [*self._behind(structure, norms), *self._dropped(structure, norms)]

    def _behind(self, structure: Structure, norms: list[ModuleNode]) -> Iterator[Finding]:
        sites = [Site(norm.path, "input", structure.stream) for norm in norms if _behind_activation(norm, structure)]
        if sites:
            share = len(sites) / len(norms)
            yield Finding(
                self.name,
                "info",
                tuple(sites),
                f"{len(sites)} of {plural(len(norms), 'normaliser')} ({names(sites)}) "
                f"{'stands behind its' if len(sites) == 1 else 'stand behind their'} activation, not in front of it; "
                "evidence on which is better is mixed",
                (fact("behind-activation", sites[0], share, Unit.FRACTION, len(norms)),),
                ("reorder-norm",),
            )

    def _dropped(self, structure: Structure, norms: list[ModuleNode]) -> Iterator[Finding]:
        found = [
            (rate, Site(norm.path, "input", structure.stream))
            for norm in norms
            if "_BatchNorm" in norm.bases and (rate := _dropout_before(norm, structure)) > 0
        ]
        found.sort(key=lambda each: -each[0])
        if found:
            most, sites = found[0][0], [site for _, site in found]
            yield Finding(
                self.name,
                "info",
                tuple(sites),
                f"dropout stands straight before the BatchNorm {names(sites)}: at p = {number(most)} its input varies "
                f"at least {number(1 / (1 - most))} times as much in training as in evaluation, which uses the "
                "variance of training; how much that costs differs from network to network",
                tuple(fact("dropout-rate", site, rate, Unit.FRACTION) for rate, site in found),
                ("re-estimate",),
            )


def _behind_activation(norm: ModuleNode, structure: Structure) -> bool:
    """Whether its only input is the activation of one layer with weights."""
    source = _only(structure.sources(norm.path))
    if _is(structure, source, ACTIVATIONS):
        return _is(structure, _only(structure.sources(source or "")), WEIGHTED)
    # A function: only where nothing else takes the layer's output is it known to stand between.
    alone = sum(each == source for each, _ in structure.edges) == 1
    functions = {call.name for call in structure.functional if call.producer == source} & FUNCTIONS
    return alone and bool(functions - NO_ACTIVATION) and _is(structure, source, WEIGHTED)


def _dropout_before(norm: ModuleNode, structure: Structure) -> float:
    """The rate of a dropout between a normaliser and what feeds it, 0 where there is none."""
    source = _only(structure.sources(norm.path))
    if source is None or norm.calls != 1:
        return 0.0
    start = structure.order.index(source) + 1 if source in structure.order else 0
    between = [structure.module(path) for path in structure.order[start : structure.order.index(norm.path)]]
    # A layer of another branch in between may be what the dropout belongs to.
    if any(each is None or any(each.path in edge for edge in structure.edges) for each in between):
        return 0.0
    rates = [setting(each.settings, "p") or 0.0 for each in between if each is not None and _drops(each)]
    return max((rate for rate in rates if rate < 1), default=0.0)


def _drops(node: ModuleNode) -> bool:
    return not DROPOUT.isdisjoint(node.bases) and node.calls == 1


def _only(paths: tuple[str, ...]) -> str | None:
    return paths[0] if len(paths) == 1 else None


def _is(structure: Structure, path: str | None, classes: Set[str]) -> bool:
    """Whether the leaf at a path is of one of torch's classes."""
    node = structure.module(path) if path else None
    return node is not None and not classes.isdisjoint(node.bases)
