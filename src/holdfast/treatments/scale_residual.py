"""`scale-residual`: residual branches that begin small, so that depth does not make the signal grow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.merges import Merges
from holdfast.live.optimiser import check_owner
from holdfast.live.surgery import check_model
from holdfast.treatments.branches import Branch, branches, followed
from holdfast.treatments.change import Batch, Change, planned
from holdfast.treatments.left import why_nothing
from holdfast.treatments.places import expression, named

How = Literal["depth", "zero"]

_FLAT_AT_ZERO = frozenset({"relu", "relu_", "relu6", "ReLU", "ReLU6"})


@dataclass(frozen=True, slots=True, eq=False)
class _End:
    """A layer that sets the scale of branches: its parameters with the expressions that lead to them."""

    path: str
    parameters: tuple[nn.Parameter, ...]
    names: tuple[str, ...]
    share: float


@dataclass(frozen=True, slots=True, eq=False)
class ScaleResidual:
    """Scales down what each residual branch adds, in the weights of its last layer.

    What it does:
        On one batch it finds the additions x + f(x). Each of N branches adds its variance to the stream, which so
        grows in proportion to N; a branch scaled by 1/√N adds 1/N of it. `how="depth"`: weight and bias of each
        branch's last layer times 1/√N (GPT-2; N is 2L in L transformer blocks). `how="zero"`: they become 0, and each
        block begins as the identity. Where a normaliser stands behind the last layer, it would undo any scale in
        front: then its γ and β are scaled or zeroed instead. Everything happens in the same `Parameter` objects, and
        the optimiser is left as it is. Undo puts these values back; what training did to them since goes with it.

    When it helps:
        Before step 1, or soon after: when the signal or the gradient grows with depth, when a deep network trains
        only with a long warm-up.

    When it is wrong:
        On a network that has learnt something: its branches are worth their scale. On one that was built scaled
        already (the diff tells what share of the stream each branch brings now). With `how="zero"` behind a ReLU at
        the end of a branch, which passes no gradient at 0: refused. Not found are branches that end in a product (a
        gate), a softmax or a sigmoid, and additions whose shortcut has layers of its own, unless there are plain
        ones beside them.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = nn.Linear(8, 8, bias=False)
        ...     def forward(self, x):
        ...         return x + self.fc(x)
        >>> model = nn.Sequential(*(Block() for _ in range(4)))
        >>> plan = ScaleResidual(batch=torch.randn(16, 8)).plan(model, None)
        >>> before = model[3].fc.weight.detach().clone()
        >>> receipt = plan.apply()
        >>> torch.equal(model[3].fc.weight, before * 0.5)  # 1/√4
        True
        >>> receipt.undo()

    Args:
        how: `"depth"` or `"zero"`.
        batch: what the model is called with; without it the branches are not known.

    References:
        Goyal et al., Accurate, large minibatch SGD, 2017, arXiv:1706.02677, section 5.1 (γ = 0).
        Radford et al., Language models are unsupervised multitask learners, 2019, section 2.3 (1/√N).
        Zhang, Dauphin and Ma, Fixup initialization, 2019, arXiv:1901.09321.
        De and Smith, Batch normalization biases residual blocks towards the identity function, 2020,
        arXiv:2002.10444.
    """

    name = "scale-residual"

    how: How = "depth"
    batch: Batch | None = None

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out which branches are scaled, in which layers.

        Args:
            model: the model.
            optimizer: the one that steps it, if any.
            sites: only branches that pass through these modules or lie in them. A module on the stream itself has all
                of them before or behind it: then, and when none is named, all are scaled. N counts all in any case.

        Returns:
            The plan; its diff also names the branches left alone, and why.

        Raises:
            InputError: `how` is neither of the two.
            SurgeryError: there is no batch, no branch qualifies, or the model cannot be operated on.
        """
        if self.how not in ("depth", "zero"):
            raise InputError('how="depth" or "zero"', repr(self.how), 'type: ScaleResidual("depth", batch=inputs)')
        if self.batch is None:
            raise SurgeryError(
                "a batch, on which residual branches can be seen", "none", "type: ScaleResidual(batch=inputs)"
            )
        check_model(model)
        if optimizer is not None:
            check_owner(model, optimizer)
        merges = followed(model, self.batch)
        known = branches(model, merges)
        wanted = _wanted(known, [path for path, _ in named(model, sites)])
        factor = 0.0 if self.how == "zero" else 1 / math.sqrt(max(1, sum(not branch.problem for branch in known)))
        ends, left = self._ends(model, merges, wanted)
        if not ends or factor == 1.0:
            additions = sum(merge.kind == "add" for merge in merges.found)
            nothing = f"none on the batch ({additions} additions of streams in all)"
            alone = "one, and 1/√1 changes nothing" if ends else nothing
            raise SurgeryError(
                "residual branches x + f(x) that can be scaled", why_nothing(left) or alone, "leave them as they are"
            )
        diff = [line for end in ends for line in _difference(end, factor)] + [f"  {line}" for line in left]
        names = ", ".join(name for end in ends for name in end.names)
        by = "zero_()" if factor == 0 else f"mul_({factor!r})"
        source = f"with torch.no_grad():\n    for parameter in ({names},):\n        parameter.{by}"

        def change() -> Change:
            return _scale(ends, factor)

        return planned(
            self.name, model, change, diff="\n".join(diff), source=source, batch=self.batch, optimizer=optimizer
        )

    def _ends(self, model: nn.Module, merges: Merges, wanted: Sequence[Branch]) -> tuple[list[_End], tuple[str, ...]]:
        """The layers to scale, each once, and a line for each branch or layer left alone."""
        modules = dict(model.named_modules())
        served = Counter(end for branch in wanted for end in branch.ends)
        ends: dict[str, _End] = {}
        left: dict[str, None] = {}
        for branch in wanted:
            reason = branch.problem or self._reason_against(model, merges, branch, modules, served)
            if reason:
                left[f"the branch added in {branch.owner or 'the model'}: left as it is: {reason}"] = None
                continue
            for path in branch.ends:
                parameters = _parameters(modules[path])
                names = tuple(f"{expression(model, path)}.{name}" for name in parameters)
                ends.setdefault(path, _End(path, tuple(parameters.values()), names, branch.share))
        return list(ends.values()), tuple(left)

    def _reason_against(
        self,
        model: nn.Module,
        merges: Merges,
        branch: Branch,
        modules: dict[str, nn.Module],
        served: Counter[str],
    ) -> str:
        flat = sorted(_FLAT_AT_ZERO & set(branch.through))
        if branch.share == 0:
            return "it adds nothing already"
        if self.how == "zero" and flat:
            return f"{flat[0]} stands behind its last layer and would pass no gradient at zero"
        for path in branch.ends:
            module = modules[path]
            if served[path] < merges.calls[path]:
                return f"{path} also runs where it ends no branch that is scaled"
            parameters = _parameters(module)
            if not parameters:
                return f"{path} ({type(module).__name__}) fixes its scale and has no plain weight to change"
            if not all(each.requires_grad for each in parameters.values()):
                return f"{path} is frozen"
            part = getattr(module, "out_proj", module)
            own = {id(each) for each in parameters.values()}
            holders = {id(each) for each in model.modules() if own & {id(p) for p in each._parameters.values()}}
            if holders - {id(part)}:
                return f"the weight of {path} is tied to another layer"
        return ""


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """What scales a layer's output linearly, by name; empty when that is not known."""
    part, prefix = (module.out_proj, "out_proj.") if isinstance(module, nn.MultiheadAttention) else (module, "")
    if "weight" not in part._parameters or part._parameters["weight"] is None:
        return {}
    found = {prefix + name: part._parameters.get(name) for name in ("weight", "bias")}
    return {name: each for name, each in found.items() if each is not None}


def _wanted(known: Sequence[Branch], paths: Sequence[str]) -> list[Branch]:
    """The branches that go through the modules or lie in them; all where a module is in none."""
    through = [[branch for branch in known if _passes(branch, path)] for path in paths]
    if not all(through):
        return list(known)
    return [branch for branch in known if not paths or any(branch in each for each in through)]


def _passes(branch: Branch, path: str) -> bool:
    return any(not path or each == path or each.startswith(f"{path}.") for each in (branch.owner, *branch.leaves))


def _difference(end: _End, factor: float) -> tuple[str, str]:
    names = f"{end.path}: {', '.join(name.rpartition('.')[2] for name in end.names)}"
    size = f"SD {_sd(end.parameters[0]):.4g}; the branch brings {end.share:.3g} of the stream's RMS"
    return f"- {names}: {size}", f"+ {names}: × {factor:.4g}"


def _scale(ends: Sequence[_End], factor: float) -> Change:
    """Scale, all or nothing."""
    kept = [(each, each.detach().clone()) for end in ends for each in end.parameters]

    def undo() -> None:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)

    before = [_sd(end.parameters[0]) for end in ends]
    try:
        with torch.no_grad():
            for parameter, _ in kept:
                parameter.zero_() if factor == 0 else parameter.mul_(factor)
    except BaseException:  # Ctrl-C among them
        undo()
        raise
    return Change(
        tuple(
            f"{end.path}.weight: SD {sd:.4g} → {_sd(end.parameters[0]):.4g}"
            for end, sd in zip(ends, before, strict=True)
        ),
        undo,
    )


def _sd(parameter: nn.Parameter) -> float:
    return parameter.detach().double().std(correction=0).item()
