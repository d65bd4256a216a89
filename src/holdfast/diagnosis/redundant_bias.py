"""Rule `redundant-bias`: a bias that the normaliser behind it subtracts again."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.structure import ModuleNode, ParameterNode, Structure
from holdfast.core.units import Unit
from holdfast.diagnosis.structures import UNFOLLOWED, elements, fact, judged, weight_site
from holdfast.diagnosis.wording import names, plural

LAYERS = frozenset(["Linear", "Conv1d", "Conv2d", "Conv3d"])
BEHIND_LINEAR = frozenset(["BatchNorm1d", "SyncBatchNorm"])
DROPOUT = "_DropoutNd"


@dataclass(frozen=True, slots=True)
class RedundantBias:
    """A layer has a bias although its output goes straight into a BatchNorm or InstanceNorm, which subtracts it.

    What it sees:
        Linear and convolutional layers with a bias whose output one normaliser of torch alone takes (BatchNorm,
        SyncBatchNorm or InstanceNorm of as many features), with no function and no dropout in between, each called once
        in the forward pass that was followed, and nothing shared. Always a remark.

        It is a fact, not a figure with noise.

    Why it matters:
        The normaliser subtracts the mean of each channel, and with it any constant: the bias has no effect and no
        gradient but rounding. It costs a parameter and its moments per channel, and weight decay moves it for nothing.
        The normaliser's own β does the bias's work.

    When it is wrong:
        It slows nothing down: no loss falls for dropping it. Where the layer's output is also returned, or used in a
        way that no hook and no function shows (`F.dropout` on the way, say), the bias counts: drop-bias compares the
        outputs before it answers. In eval mode with frozen statistics the bias acts as a second β.

    Example:
        2 layers ('0', '3') have biases that the BatchNorm or InstanceNorm behind them subtracts again: 96 parameters
        without effect.

    What to do:
        drop-bias removes them from model and optimiser and corrects the running means; or write bias=False.

    References:
        Ioffe & Szegedy 2015, "Batch normalization", arXiv:1502.03167, section 3.2.
    """

    name: str = "redundant-bias"
    subject: str = "a bias that a normaliser subtracts again"
    treatments: tuple[str, ...] = ("drop-bias",)
    static: bool = True

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the data flow.

        Args:
            history: of a run.

        Returns:
            One finding a model, or why it could not be decided.
        """
        return judged(self.name, history, self._judge)

    def _judge(self, structure: Structure) -> list[Finding] | str:
        if not structure.order:
            return UNFOLLOWED
        found = [
            (node, bias)
            for node in structure.modules
            if (bias := _bias(node, structure)) is not None
            and (norm := _normaliser_behind(node, structure)) is not None
            and _subtracts(norm, node, bias)
        ]
        if not found:
            return []
        sites = [Site(node.path, "output", structure.stream) for node, _ in found]
        count = sum(elements(bias) for _, bias in found)
        have, whose = ("has a bias", "it") if len(found) == 1 else ("have biases", "them")
        return [
            Finding(
                self.name,
                "info",
                tuple(sites),
                f"{plural(len(found), 'layer')} ({names(sites)}) {have} that the BatchNorm or InstanceNorm behind "
                f"{whose} subtracts again: {count:,} parameters without effect",
                tuple(_fact(structure, node, bias) for node, bias in found),
                self.treatments,
            )
        ]


def _fact(structure: Structure, node: ModuleNode, bias: ParameterNode) -> Reading:
    size = elements(bias)
    return fact("redundant-bias", weight_site(structure, node, bias), float(size), Unit.COUNT, size)


def _bias(node: ModuleNode, structure: Structure) -> ParameterNode | None:
    """The bias of a layer that runs once and shares nothing."""
    if node.kind not in LAYERS or node.kind not in node.bases or node.calls != 1:
        return None
    shared = {name for names in structure.aliases for name in names}
    if any(each.name in shared for each in node.parameters):
        return None
    return next((each for each in node.parameters if each.name.rpartition(".")[2] == "bias"), None)


def _normaliser_behind(node: ModuleNode, structure: Structure) -> ModuleNode | None:
    """The leaf that alone takes a layer's output as it is."""
    targets = [target for source, target in structure.edges if source == node.path]
    if len(targets) != 1 or structure.sources(targets[0]) != (node.path,):
        return None
    if any(call.producer == node.path for call in structure.functional):
        return None
    start, end = structure.order.index(node.path), structure.order.index(targets[0])
    between = [structure.module(path) for path in structure.order[start + 1 : end]]
    if any(each is not None and DROPOUT in each.bases for each in between):
        return None
    return structure.module(targets[0])


def _subtracts(norm: ModuleNode, node: ModuleNode, bias: ParameterNode) -> bool:
    """Whether a normaliser of torch takes the mean of each channel of the layer off."""
    if "_NormBase" not in norm.bases or norm.kind not in norm.bases or norm.calls != 1:
        return False
    if norm.settings.get("num_features") != elements(bias):
        return False
    shape = norm.input_shape
    return node.kind != "Linear" or (norm.kind in BEHIND_LINEAR and (shape is None or len(shape) == 2))
