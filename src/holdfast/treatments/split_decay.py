"""`split-decay`: weight decay taken off gains, shifts and biases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from holdfast.core.errors import SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.optimiser import check_optimizer
from holdfast.treatments.change import Batch, Change, planned
from holdfast.treatments.groups import group_of, place_of, schedulers
from holdfast.treatments.places import NORMS, named

_PER_GROUP = ("base_lrs", "lr_lambdas", "max_lrs", "base_momentums", "max_momentums", "min_lrs", "_last_lr")
"""Lists that torch's schedulers keep with one entry for each group of the optimiser."""


@dataclass(frozen=True, slots=True, eq=False)
class SplitDecay:
    """Takes weight decay off the parameters that it only harms.

    What it does:
        In every group with `weight_decay` above 0, the normalisers' γ and β, all biases and other vectors (and the
        embeddings, if wanted) leave for a group of their own at the end of the same optimiser, with `weight_decay` 0
        and otherwise the same settings. Their momenta and step counts stay. A group of nothing else only gets
        `weight_decay` 0. The model is left alone.

    When it helps:
        When γ is pulled towards 0 in front of a nonlinearity, which shrinks the signal for no gain in capacity; when
        biases are pulled to 0 where the data want them elsewhere. It is the custom of most recipes that train
        transformers and large convolutional networks.

    When it is wrong:
        When γ grows without bound and decay is what holds it. When decay is so weak that nothing changes. A
        checkpoint of the optimiser taken before has other groups and no longer loads. A scheduler keeps base rates by
        group and stops at its next step for want of one: an optimiser to which one was attached is refused without it.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1)
        >>> optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0.1)
        >>> receipt = SplitDecay().plan(layer, optimizer).apply()
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(1, 0.1), (1, 0.0)]
        >>> receipt.undo()
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(2, 0.1)]

    Args:
        embeddings: whether embedding tables are taken out too; not by default.
        scheduler: the one that steps the optimiser, if any.
        batch: not needed: the computed function does not change; the receipt then says so with an error of 0.

    References:
        He et al., Bag of tricks for image classification with convolutional neural networks, 2019, arXiv:1812.01187.
    """

    name = "split-decay"

    embeddings: bool = False
    scheduler: LRScheduler | None = None
    batch: Batch | None = None

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out which parameters go where.

        Args:
            model: the model.
            optimizer: the one that steps it.
            sites: whose parameters; all of the model's when none is named.

        Returns:
            The plan.

        Raises:
            SurgeryError: there is no optimiser, its state cannot be mended, nothing is to be split, or its scheduler
                is not given.
        """
        if optimizer is None:
            raise SurgeryError("an optimiser", "None", "give the optimiser that steps the model")
        check_optimizer(model, optimizer)
        undecayed = self._undecayed(model, [module for _, module in named(model, sites)] or [model])
        chosen = {
            index: moved
            for index, group in enumerate(optimizer.param_groups)
            if float(group.get("weight_decay", 0.0)) > 0
            and (moved := [each for each in group["params"] if each in undecayed])
        }
        if not chosen:
            raise SurgeryError(
                "a group with weight_decay above 0 that holds a bias or a normaliser's gain or shift",
                f"none among the {len(optimizer.param_groups)} groups of the {type(optimizer).__name__}",
                "nothing needs to be split: leave it as it is",
            )
        diff, source = [], []
        for index, moved in chosen.items():
            group = optimizer.param_groups[index]
            decay, count = float(group["weight_decay"]), len(group["params"])
            names = ", ".join(undecayed[each] for each in moved)
            diff += [f"- group {index}: {count} parameters, weight_decay {decay:.4g}"]
            if len(moved) < count:
                diff += [f"+ group {index}: {count - len(moved)} parameters, weight_decay {decay:.4g}"]
                diff += [f"+ a new group like it: weight_decay 0, {names}"]
            else:
                diff += [f"+ group {index}: weight_decay 0, {names}"]
        for index, moved in chosen.items():
            source += _lines(optimizer.param_groups[index], index, [undecayed[each] for each in moved])
        split = [index for index, moved in chosen.items() if len(moved) < len(optimizer.param_groups[index]["params"])]
        if split and self.scheduler is None and hasattr(optimizer.step, "_wrapped_by_lr_sched"):
            raise SurgeryError(
                "the scheduler that was attached to the optimiser, which keeps rates by group",
                "none: it would stop at its next step for want of the new group's",
                "type: SplitDecay(scheduler=scheduler)",
            )
        if split:
            source += _scheduler_lines(self.scheduler, split, len(optimizer.param_groups))

        def change() -> Change:
            for index, moved in chosen.items():
                present = {id(each) for group in optimizer.param_groups[index : index + 1] for each in group["params"]}
                if not all(id(each) in present for each in moved):
                    raise SurgeryError("the groups as they were planned for", "groups changed since", "plan again")
            return _split(optimizer, chosen, undecayed, self.scheduler)

        return planned(
            self.name,
            model,
            change,
            diff="\n".join(diff),
            source="\n".join(source),
            batch=self.batch,
            optimizer=optimizer,
        )

    def _undecayed(self, model: nn.Module, modules: Sequence[nn.Module]) -> dict[Tensor, str]:
        """Name of each parameter that should not decay."""
        wanted = {parameter for module in modules for parameter in module.parameters()}
        holders: dict[Tensor, list[nn.Module]] = {}
        for module in model.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    holders.setdefault(parameter, []).append(module)
        return {
            parameter: name
            for name, parameter in model.named_parameters()
            if parameter in wanted
            and (
                parameter.ndim <= 1
                or name.rpartition(".")[2] == "bias"
                or all(isinstance(each, NORMS) for each in holders[parameter])
                # A table that is tied to a matrix of another layer is a matrix.
                or (
                    self.embeddings
                    and all(isinstance(each, nn.Embedding | nn.EmbeddingBag) for each in holders[parameter])
                )
            )
        }


def _split(
    optimizer: Optimizer,
    chosen: dict[int, list[Tensor]],
    names: dict[Tensor, str],
    scheduler: LRScheduler | None,
) -> Change:
    """Split the groups, all or nothing."""
    before = [_lists(group) for group in optimizer.param_groups]
    new: list[list[Tensor]] = []
    stopped: list[tuple[list[Tensor], Any]] = []
    extended: list[tuple[LRScheduler, str]] = []
    lines: list[str] = []

    def restore() -> None:
        places = sorted(place_of(optimizer, params) for params in new)
        decays = [(group_of(optimizer, params), decay) for params, decay in stopped]
        for place in reversed(places):
            for holder, key in extended:
                if place < len(getattr(holder, key)):
                    del getattr(holder, key)[place]
            del optimizer.param_groups[place]
        for group, (held, held_names) in zip(optimizer.param_groups, before, strict=False):
            group["params"][:] = held
            if held_names is not None:
                group["param_names"][:] = held_names
        for group, decay in decays:
            group["weight_decay"] = decay

    try:
        for index, moved in chosen.items():
            group = optimizer.param_groups[index]
            decay, leaving = group["weight_decay"], {id(each) for each in moved}
            if len(moved) == len(group["params"]):
                stopped.append((group["params"], decay))
                group["weight_decay"] = 0.0
                lines.append(f"optimiser group {index}: weight_decay {float(decay):.4g} → 0")
                continue
            place = len(optimizer.param_groups)
            # A rate that is a tensor must be one of its own: schedulers fill it group by group.
            apart = {key: each.clone() if isinstance(each, Tensor) else each for key, each in group.items()}
            apart |= {"params": list(moved), "weight_decay": 0.0}
            if "param_names" in group:
                pairs = list(zip(group["params"], group["param_names"], strict=True))
                apart["param_names"] = [name for each, name in pairs if id(each) in leaving]
                group["param_names"][:] = [name for each, name in pairs if id(each) not in leaving]
            group["params"][:] = [each for each in group["params"] if id(each) not in leaving]
            optimizer.add_param_group(apart)
            new.append(optimizer.param_groups[-1]["params"])
            for _, holder, key in _per_group(scheduler, place):
                getattr(holder, key).append(getattr(holder, key)[index])
                if (holder, key) not in extended:
                    extended.append((holder, key))
            lines += [
                f"{names[each]}: optimiser group {index}, weight_decay {float(decay):.4g} → "
                f"group {place}, weight_decay 0"
                for each in moved
            ]
    except BaseException:
        restore()
        raise
    after = [_lists(group) for group in optimizer.param_groups]

    def undo() -> None:
        present = optimizer.param_groups[: len(after)]
        if len(present) < len(after) or not all(
            [id(each) for each in group["params"]] == [id(each) for each in held]
            for group, (held, _) in zip(present, after, strict=True)
        ):
            raise SurgeryError(
                "the optimiser's groups as the treatment left them",
                "groups whose parameters were changed since",
                "undo the later change first",
            )
        restore()

    return Change(tuple(lines), undo)


def _lists(group: dict[str, Any]) -> tuple[list[Tensor], list[str] | None]:
    names = group.get("param_names")
    return list(group["params"]), None if names is None else list(names)


def _per_group(scheduler: LRScheduler | None, groups: int) -> Iterator[tuple[str, LRScheduler, str]]:
    """The lists by group of a scheduler and of those that it chains: the way to each, whose it is, and its name."""
    for path, each in schedulers(scheduler):
        for key in _PER_GROUP:
            held = getattr(each, key, None)
            if isinstance(held, list) and len(held) == groups:
                yield path, each, key


def _lines(group: dict[str, Any], index: int, moved: Sequence[str]) -> list[str]:
    """What a script does to one group."""
    if len(moved) == len(group["params"]):
        return [f'optimizer.param_groups[{index}]["weight_decay"] = 0.0']
    lines = [
        f"undecayed = {{model.get_parameter(name) for name in {list(moved)}}}",
        f"group = optimizer.param_groups[{index}]",
        'apart = {**group, "params": [each for each in group["params"] if each in undecayed], "weight_decay": 0.0}',
    ]
    if "param_names" in group:
        lines += [
            'names = dict(zip(group["params"], group["param_names"]))',
            'apart["param_names"] = [names[each] for each in apart["params"]]',
            'group["param_names"][:] = [names[each] for each in group["params"] if each not in undecayed]',
        ]
    return [
        *lines,
        'group["params"][:] = [each for each in group["params"] if each not in undecayed]',
        "optimizer.add_param_group(apart)",
    ]


def _scheduler_lines(scheduler: LRScheduler | None, split: Sequence[int], groups: int) -> list[str]:
    """What a script does to the scheduler; those that one chains are named through it."""
    return [
        f"{path}.{key} += [{path}.{key}[index] for index in {list(split)}]"
        for path, _, key in _per_group(scheduler, groups)
    ]
