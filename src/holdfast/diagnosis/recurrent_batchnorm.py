"""Rule `recurrent-batchnorm`: one batch normaliser for all time steps of a recurrence."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from holdfast.core.finding import Finding, Inconclusive, Severity
from holdfast.core.protocols import History
from holdfast.core.site import Site
from holdfast.core.structure import ModuleNode, Structure
from holdfast.core.units import Unit
from holdfast.diagnosis.structures import UNFOLLOWED, fact, judged, setting
from holdfast.diagnosis.wording import names, percent


@dataclass(frozen=True, slots=True)
class RecurrentBatchNorm:
    """One BatchNorm runs at every time step of a recurrence, so its running statistics mix all time steps.

    What it sees:
        In the forward pass that was followed: a BatchNorm with running statistics that ran more than once and whose
        output came back to it, over other layers, as its input (warning); or one that ran as often as a layer of the
        same module whose output came back so, such as the normaliser of a cell's input beside its recurrent weights
        (remark). A normaliser that several branches share without a loop (twin networks) is no finding.

        It is a fact, not a figure with noise. The pass shows a loop only if it ran over more than one time step.

    Why it matters:
        In training each time step is normalised by the statistics of its own batch; in evaluation all by one running
        mean and variance, although hidden states start at zero and change over the first steps: the network that is
        evaluated is not the one that was trained. And the running statistics move at every call: after T calls at
        momentum m only (1−m)^T of what was there before is left, so they know little but the last batch.

    When it is wrong:
        Where the statistics are the same at all time steps (the input of a cell with stationary data). A BatchNorm
        that a network uses at several depths is found too, and suffers alike. A loop of a single time step, or a
        sequence that a fused layer runs through, is not seen.

    Example:
        'cell.norm' ran 20 times in one forward pass on what came of its own output: one running mean serves them all,
        and of its value before the pass 12 % is left after it.

    What to do:
        swap-norm: a LayerNorm or GroupNorm has no running statistics and normalises every time step alike. Or keep
        statistics per time step, as in the paper below.

    References:
        Cooijmans et al. 2017, "Recurrent batch normalization", arXiv:1603.09025;
        Laurent et al. 2016, "Batch normalized recurrent neural networks", arXiv:1510.01378.
    """

    name: str = "recurrent-batchnorm"
    subject: str = "batch normalisation inside a recurrence"
    treatments: tuple[str, ...] = ("swap-norm",)
    static: bool = True

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the data flow.

        Args:
            history: of a run.

        Returns:
            One finding a model for those in loops and one for those beside, or why it could not be decided.
        """
        return judged(self.name, history, self._judge)

    def _judge(self, structure: Structure) -> list[Finding] | str:
        repeated = [node for node in structure.modules if node.calls is not None and node.calls > 1 and node.leaf]
        if not structure.order:
            return UNFOLLOWED
        looped = {node.path for node in repeated if node.path in _reached(structure, node.path)}
        inside, beside = [], []
        for node in filter(_runs_statistics, repeated):
            if node.path in looped:
                inside.append(node)
            elif _in_a_cell(node, repeated, looped):
                beside.append(node)
        found = []
        if inside:
            found.append(self._finding(structure, "warning", inside, "on what came of its own output"))
        if beside:
            found.append(self._finding(structure, "info", beside, "beside layers that work on their own output"))
        return found

    def _finding(self, structure: Structure, severity: Severity, norms: list[ModuleNode], where: str) -> Finding:
        norms.sort(key=lambda node: -(node.calls or 0))
        sites = [Site(node.path, "input", structure.stream) for node in norms]
        most, momentum = norms[0].calls or 0, setting(norms[0].settings, "momentum")
        left = ""
        if momentum is not None:
            left = f", and of its value before the pass {percent((1 - momentum) ** most)} is left after it"
        return Finding(
            self.name,
            severity,
            tuple(sites),
            f"{names(sites)} ran {most} times in one forward pass {where}: one running mean serves them all{left}",
            tuple(
                fact("calls", site, float(node.calls or 0), Unit.COUNT) for site, node in zip(sites, norms, strict=True)
            ),
            self.treatments,
        )


def _runs_statistics(node: ModuleNode) -> bool:
    """Whether it is a BatchNorm that keeps one running mean and variance."""
    batch = "_BatchNorm" in node.bases or "BatchNorm" in node.kind
    # A class of that name keeps them by time step.
    return batch and "Recurrent" not in node.kind and node.settings.get("track_running_stats") is not False


def _in_a_cell(norm: ModuleNode, repeated: list[ModuleNode], looped: Set[str]) -> bool:
    """Whether a layer in a loop stands beside it in the same module and ran as often."""
    parent = norm.path.rpartition(".")[0]
    return any(
        node.path in looped and node.calls == norm.calls and node.path.rpartition(".")[0] == parent for node in repeated
    )


def _reached(structure: Structure, path: str) -> set[str]:
    """The leaves to which a leaf's output flows, over any number of others."""
    targets: dict[str, list[str]] = {}
    for source, target in structure.edges:
        targets.setdefault(source, []).append(target)
    reached: set[str] = set()
    pending = [path]
    while pending:
        for target in targets.get(pending.pop(), ()):
            if target not in reached:
                reached.add(target)
                pending.append(target)
    return reached
