"""`swap-norm`: normalisers exchanged for those of another kind, with the moments of their outputs kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.optimiser import check_optimizer
from holdfast.live.surgery import check_model, check_place, one_line, operate
from holdfast.norms.normaliser import HALVES, Normaliser
from holdfast.treatments.change import Batch, Change, call_of, planned
from holdfast.treatments.left import left_alone, why_nothing
from holdfast.treatments.matching import matches, moments_of
from holdfast.treatments.normalisers import KINDS, KNOWN, Spec, counterpart, is_kind
from holdfast.treatments.places import NORMS, Leaf, expression, leaves, named, paths_of
from holdfast.treatments.running import called, estimate, estimating, running

_MATCHING = """\
import copy
def moments(path):  # mean and SD of each channel of a layer's output, in train mode
    twin, seen = copy.deepcopy(model).train(), []
    twin.get_submodule(path).register_forward_hook(lambda layer, given, output: seen.append(output.clone()))
    with torch.no_grad():
        twin(ARGUMENTS)
    values = seen[0].double().movedim(axes[path], 0).flatten(1)
    return values.mean(1), values.std(1, correction=0)
def matched(layer, path):
    (mean, sd), (mean_now, sd_now) = before[path], moments(path)
    ratio = torch.where(sd_now > 1e-5 * mean_now.abs(), sd / sd_now, 1.0)
    with torch.no_grad():
        layer.weight.mul_(ratio)
        if getattr(layer, "bias", None) is not None:
            layer.bias.copy_(mean - (mean_now - layer.bias) * ratio)
before = {path: moments(path) for path in axes}"""
"""The matching for a script; it needs the axis of each layer's channels."""


@dataclass(frozen=True, slots=True, eq=False)
class SwapNorm:
    """Exchanges normalisers for those of another kind: BatchNorm for GroupNorm, and each for each where that can be.

    What it does:
        Every normaliser named (without sites: every one) gives its place to one of the kind wanted, which takes over
        the very parameters γ and β with their optimiser state, ε, type, device, mode, `requires_grad` and hooks.
        With a batch, γ and β are then chosen so that each channel of the output has on that batch the mean and the SD
        that the old layer's output had in train mode, from the first layer to the last; RMSNorm has no β and keeps the
        SD alone. Without a batch, and for layers that run several times or share their γ, they stay as they were.
        GroupNorm gets up to 32 groups, with at least 2 channels and 16 values each. Keys of the state_dict such as
        `bn.running_mean` go or come; the receipt lists them, and `receipt.convert` carries old checkpoints over (with
        the old γ and β). Undo after further training brings back the old layers with the
        running statistics of before; what γ and β learned stays, mapped back to their old scale.

    When it helps:
        BatchNorm with few samples a batch, or whose running statistics do not fit evaluation: a layer that normalises
        each sample alone has neither trouble. Ghost BatchNorm, when large batches made a BatchNorm too calm.

    When it is wrong:
        Another normaliser is another function: the receipt gives the error in eval mode and in train mode, and a
        trained network has to be trained on. GroupNorm is no better than BatchNorm where batches are large. What
        comes to BatchNorm without a batch starts with running statistics 0 and 1, which are wrong until it has seen
        training batches. A BatchNorm that stands over the whole batch hides differences between samples: per-sample
        normalisers keep other ones, so that moments alike are not outputs alike.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
        >>> plan = SwapNorm("group").plan(model, None)
        >>> plan.diff.splitlines()[1]
        '+ 1: nn.GroupNorm(2, 32)'
        >>> receipt = plan.apply()
        >>> receipt.removed
        ('1.running_mean', '1.running_var', '1.num_batches_tracked')
        >>> receipt.undo()
        >>> len(model.state_dict())
        7

    Args:
        to: the kind wanted: `"batch"`, `"ghost"`, `"group"`, `"instance"`, `"layer"` (for channels with positions a
            GroupNorm of one group) or `"rms"`.
        batch: what the model is called with, with as many samples as in training; then shapes are those seen, moments
            are matched, running statistics that are new are the batch's, and the receipt states the error.
        chunk_size: samples that share statistics in a Ghost BatchNorm.

    References:
        Wu and He, Group normalization, 2018, arXiv:1803.08494.
        Hoffer, Hubara and Soudry, Train longer, generalize better, 2017, arXiv:1705.08741.
    """

    name = "swap-norm"

    to: Any = "group"
    batch: Batch | None = None
    chunk_size: int = 32

    def __post_init__(self) -> None:
        if self.to not in KINDS:
            raise InputError(f"a kind of normaliser: {', '.join(KINDS)}", repr(self.to), 'type: SwapNorm(to="group")')

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out which normaliser takes which place.

        Args:
            model: the model.
            optimizer: the one that steps it, if any.
            sites: which normalisers; every one when none is named.

        Returns:
            The plan; its diff also names the layers left alone, and why.

        Raises:
            SurgeryError: no normaliser can be exchanged, or model or optimiser cannot be operated on.
        """
        check_model(model)
        if optimizer is not None:
            check_optimizer(model, optimizer)
        met = {id(leaf.module): leaf for leaf in leaves(model, self.batch)}
        chosen: dict[nn.Module, Spec] = {}
        diff = []
        order = {module: place for place, module in enumerate(met)}
        modules = sorted(
            named(model, sites) or _normalisers(model), key=lambda each: order.get(id(each[1]), len(order))
        )
        for path, module in modules:
            spec = self._spec(model, path, module, met.get(id(module)))
            if isinstance(spec, str):
                diff.append(left_alone(path, spec))
                continue
            chosen[module] = spec
            diff += [f"- {path}: {one_line(module)}", f"+ {path}: {spec}"]
        if not chosen:
            raise self._nothing(modules, diff)
        matched = {} if self.batch is None else _matchable(model, chosen, met)
        diff += [
            f"  {paths_of(model, module)[0]}: γ and β stay as they are: {why}"
            for module, why in matched.items()
            if isinstance(why, str)
        ]
        axes = {module: axis for module, axis in matched.items() if isinstance(axis, int)}

        def change() -> Change:
            return self._change(model, optimizer, chosen, axes)

        source = _source(model, chosen, axes, self.batch)
        return planned(
            self.name, model, change, diff="\n".join(diff), source=source, batch=self.batch, optimizer=optimizer
        )

    def _spec(self, model: nn.Module, path: str, module: nn.Module, leaf: Leaf | None) -> Spec | str:
        """What takes a module's place, or the reason why nothing does."""
        spec = counterpart(module, self.to, leaf, self.chunk_size)
        if isinstance(spec, str):
            return spec
        if not path:
            return "it is the model itself: wrap it in nn.Sequential first"
        try:
            check_place(model, module, path)
        except SurgeryError as error:
            return error.got
        return spec

    def _nothing(self, modules: Sequence[tuple[str, nn.Module]], diff: Sequence[str]) -> SurgeryError:
        done = modules and all(type(module) in KNOWN and is_kind(module, self.to) for _, module in modules)
        return SurgeryError(
            f"a normaliser that can become one of kind {self.to!r}",
            why_nothing(diff) or "a model without a normaliser",
            "nothing is left to swap"
            if done
            else "name normalisers with sites=, give batch= so that shapes are known, or ask for another kind with to=",
        )

    def _change(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        chosen: Mapping[nn.Module, Spec],
        axes: dict[nn.Module, int],
    ) -> Change:
        """Exchange and match, all or nothing."""
        call = None if self.batch is None else call_of(self.batch)
        targets = moments_of(model, call, axes) if call is not None and axes else {}
        surgery = operate(model, optimizer, lambda old, _: _successor(old, chosen[old]) if old in chosen else None)
        takers = []
        try:
            if len(surgery.replacements) != len(chosen):
                raise SurgeryError("the model as it was planned for", "one that changed since", "plan again")
            for each in surgery.replacements:
                if isinstance(each.new, Normaliser):
                    each.new._keep_statistics_wide()
            wanted = {
                each.new: (targets[each.old], axes[each.old]) for each in surgery.replacements if each.old in targets
            }
            found = matches(model, call, wanted) if call is not None and wanted else []
            takers += [each.put_in() for each in found]
            fresh = [
                each.new for each in surgery.replacements if running(each.new) and not isinstance(each.old, _BatchNorm)
            ]
            if self.batch is not None and fresh:
                estimate(model, self.batch, fresh)
        except BaseException:  # Ctrl-C among them
            surgery.undo()
            for take_back in takers:
                take_back()
            raise

        def undo() -> None:
            surgery.undo()
            for take_back in takers:
                take_back()

        where = {each.new: each.paths[0] for each in surgery.replacements}
        lines = (f"{where[each.layer]}: γ, β → matched to the moments of before" for each in found)
        return Change((*surgery.changes, *lines), undo, surgery.renamed, surgery.removed)


def _normalisers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every one, subclasses too: they are named with the reason why they stay."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, NORMS)]


def _successor(old: nn.Module, spec: Spec) -> nn.Module:
    """The new layer with the old one's own γ and β, and its running statistics where both keep the same."""
    new = spec.make()
    for name in ("weight", "bias"):
        theirs, own = old._parameters.get(name), new._parameters.get(name)
        if theirs is not None and own is not None:
            new._parameters[name] = theirs
    if isinstance(old, _BatchNorm) and isinstance(new, _BatchNorm):
        new._buffers.update(old._buffers)
    return new


def _matchable(
    model: nn.Module, chosen: Mapping[nn.Module, Spec], met: Mapping[int, Leaf]
) -> dict[nn.Module, int | str]:
    """For each layer the axis of its channels, or the reason why its γ and β stay as they are."""
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    found: dict[nn.Module, int | str] = {}
    for module, spec in chosen.items():
        leaf = met.get(id(module))
        scale = module._parameters.get("weight")
        if isinstance(module, _BatchNorm) and issubclass(spec.kind, _BatchNorm):
            found[module] = "in eval mode it is the same function"
        elif leaf is None:
            found[module] = "it did not run on the batch"
        elif leaf.calls > 1:
            found[module] = f"it runs {leaf.calls} times"
        elif scale is None:
            found[module] = "it has none"
        elif scale.ndim > 1:
            found[module] = "they are not one value a channel"
        elif any(holders[id(each)] > 1 for each in module._parameters.values() if each is not None):
            found[module] = "another layer shares them"
        else:
            found[module] = -1 if isinstance(module, nn.LayerNorm | nn.RMSNorm) else 1
    return found


def _source(model: nn.Module, chosen: Mapping[nn.Module, Spec], axes: Mapping[nn.Module, int], batch: Any) -> str:
    """Lines for a script that do the same."""
    lines, fresh = [], []
    ours = sorted({spec.kind.__name__ for spec in chosen.values() if spec.kind.__module__.startswith("holdfast.")})
    if ours:
        lines.append(f"from holdfast.norms import {', '.join(ours)}")
    paths = {module: paths_of(model, module)[0] for module in chosen}
    if axes:
        by_path = {paths[module]: axis for module, axis in axes.items()}
        lines += [f"axes = {by_path!r}", _MATCHING.replace("ARGUMENTS", called(batch))]
    for module, spec in chosen.items():
        places = [expression(model, path) for path in paths_of(model, module)]
        new = spec.make()
        lines.append(f"new = {spec}")
        taken = [name for name in new._parameters if module._parameters.get(name) is not None]
        if isinstance(module, _BatchNorm) and isinstance(new, _BatchNorm):
            taken += [name for name, buffer in module._buffers.items() if buffer is not None]
        halves = any(each is not None and each.dtype in HALVES for each in module._buffers.values())
        wide = ".float()" if halves and isinstance(new, Normaliser) else ""
        lines += [
            f"new.{name} = {places[0]}.{name}{wide * name.startswith('running_')}"
            for name in taken
            if getattr(new, name) is not None
        ]
        if len(taken) < len(new.state_dict()):
            lines.append("new.to(next(model.parameters()))  # type and device of what is fresh")
        lines.append(f"{' = '.join(places)} = new.train({places[0]}.training)")
        if module in axes:
            lines.append(f"matched({places[0]}, {paths[module]!r})")
        if running(new) and not isinstance(module, _BatchNorm):
            fresh.append(places[0])
    return "\n".join(lines + (estimating(fresh, called(batch)) if fresh and batch is not None else []))
