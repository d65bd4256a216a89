"""`reorder-norm`: a normaliser moved to the other side of its activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.optimiser import Groups, check_optimizer
from holdfast.live.surgery import check_model, one_line
from holdfast.treatments.change import Batch, Change, planned
from holdfast.treatments.left import left_alone, why_nothing
from holdfast.treatments.neighbours import Pair, handed_on, neighbours
from holdfast.treatments.places import ACTIVATIONS, NORMS, expression, named, paths_of
from holdfast.treatments.running import called, estimate, estimating, running


@dataclass(frozen=True, slots=True, eq=False)
class ReorderNorm:
    """Moves a normaliser to the other side of its activation: conv → relu → norm becomes conv → norm → relu.

    What it does:
        Where a linear or convolutional layer, an activation and a normaliser follow each other in an `nn.Sequential`,
        the last two change places (`to="after"`: the other way). Modules, parameters and the optimiser's state are
        the same ones. Where the places are numbered, the state_dict's keys go along (`2.weight` becomes `1.weight`;
        `receipt.convert` carries checkpoints over); where they have names, only the order
        changes. Running statistics are of the old place: with a batch they become that batch's at the new one,
        without one they stay and `re-estimate` has to follow.

    When it helps:
        Before the activation the normaliser keeps the units out of saturation and half of a ReLU's inputs positive;
        this is where the paper put it. Behind a ReLU it hands on centred features instead.

    When it is wrong:
        It is another function, and the receipt says by how much: a trained network has to be trained on. Which order
        learns better is not settled; both are in use, and only a proof on the model at hand tells. Layers that a
        forward calls one by one, and pre-norm or post-norm blocks, are refused: their order is code. Code that reads
        `model[2]` finds the other layer there.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.BatchNorm1d(4))
        >>> plan = ReorderNorm().plan(model, None)
        >>> print(plan.source)
        model[1], model[2] = model[2], model[1]
        >>> receipt = plan.apply()
        >>> receipt.renamed["2.weight"]
        '1.weight'
        >>> receipt.undo()
        >>> [type(layer).__name__ for layer in model]
        ['Linear', 'ReLU', 'BatchNorm1d']

    Args:
        to: `"before"` the activation, or `"after"` it.
        batch: what the model is called with, with as many samples as in training; then the flow is checked, running
            statistics are re-estimated on it, and the receipt states the error.

    References:
        Ioffe and Szegedy, Batch normalization, 2015, arXiv:1502.03167, section 3.2.
        Mishkin, Sergievskiy and Matas, Systematic evaluation of CNN advances, 2016, arXiv:1606.02228.
    """

    name = "reorder-norm"

    to: Any = "before"
    batch: Batch | None = None

    def __post_init__(self) -> None:
        if self.to not in ("before", "after"):
            raise InputError("a side of the activation: before, after", repr(self.to), 'type: ReorderNorm("before")')

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out which normalisers move.

        Args:
            model: the model.
            optimizer: the one that steps it, if any.
            sites: which normalisers, or their activations; every normaliser that qualifies when none is named.

        Returns:
            The plan; its diff also names the layers left alone, and why.

        Raises:
            SurgeryError: none qualifies, or model or optimiser cannot be operated on.
        """
        check_model(model)
        if optimizer is not None:
            check_optimizer(model, optimizer)
        flows = None if self.batch is None else handed_on(model, self.batch)
        pairs: list[Pair] = []
        diff, source = [], []
        for path, norm in self._norms(model, sites):
            pair = neighbours(model, path, norm, self.to)
            if isinstance(pair, Pair) and flows is not None:
                pair = pair if flows.get(pair.key) == 1 else "on the batch the two do not run once, one on the other"
            if isinstance(pair, str):
                diff.append(left_alone(path, pair))
                continue
            pairs.append(pair)
            parent = paths_of(model, pair.parent)[0]
            where = ", ".join(_join(parent, name) for name in pair.names)
            order = [one_line(each) for _, each in pair.entries()]
            diff += [f"- {where}: {', '.join(order)}", f"+ {where}: {', '.join(order[::-1])}"]
            source += _lines(expression(model, parent), pair)
        if not pairs:
            raise self._nothing(diff)
        tracked = [pair for pair in pairs if running(pair.norm)]
        if tracked and self.batch is None:
            diff.append("  running statistics stay those of the old place: re-estimate has to follow")
        elif tracked:
            source += estimating([_place_after(model, pair) for pair in tracked], called(self.batch))
        present = [pair.entries() for pair in pairs]

        def change() -> Change:
            for pair, entries in zip(pairs, present, strict=True):
                pair.check(entries)
            return self._change(model, optimizer, pairs)

        return planned(
            self.name,
            model,
            change,
            diff="\n".join(diff),
            source="\n".join(source),
            batch=self.batch,
            optimizer=optimizer,
        )

    def _norms(self, model: nn.Module, sites: Sequence[Site]) -> list[tuple[str, nn.Module]]:
        """The normalisers named, also by their activation; every one when none is named."""
        everywhere = [(path, module) for path, module in model.named_modules() if isinstance(module, NORMS)]
        found: dict[nn.Module, str] = {}
        for path, module in named(model, sites) or everywhere:
            beside = [
                (where, norm)
                for where, norm in (everywhere if type(module) in ACTIVATIONS else ())
                if isinstance(pair := neighbours(model, where, norm, self.to), Pair) and pair.activation is module
            ]
            for where, norm in beside or [(path, module)]:
                found.setdefault(norm, where)
        return [(path, norm) for norm, path in found.items()]

    def _nothing(self, diff: Sequence[str]) -> SurgeryError:
        done = diff and all(line.endswith("already") for line in diff)
        return SurgeryError(
            f"a normaliser that can move {self.to} its activation",
            why_nothing(diff) or "a model without a normaliser",
            "nothing is left to move" if done else "write the order into the model, or name other layers with sites=",
        )

    def _change(self, model: nn.Module, optimizer: Optimizer | None, pairs: Sequence[Pair]) -> Change:
        """Exchange and re-estimate, all or nothing."""
        parameters = {id(parameter): name for name, parameter in model.named_parameters()}
        kept = [(buffer, buffer.clone()) for pair in pairs for buffer in running(pair.norm)]
        prefixes = _prefixes(model, pairs)
        keys = list(model.state_dict())
        groups = Groups(optimizer)
        exchanged: list[Pair] = []

        def restore() -> None:
            for pair in exchanged[::-1]:
                pair.exchange()
            with torch.no_grad():
                for buffer, value in kept:
                    buffer.copy_(value)
            groups.restore()

        try:
            for pair in pairs:
                pair.exchange()
                exchanged.append(pair)
            lines = groups.mend(model, [], parameters)
            if self.batch is not None and kept:
                estimate(model, self.batch, [pair.norm for pair in pairs if running(pair.norm)])
        except BaseException:  # Ctrl-C among them
            restore()
            raise
        left = [pair.entries() for pair in pairs]

        def undo() -> None:
            for pair, entries in zip(pairs, left, strict=True):
                pair.check(entries)
            groups.check()
            restore()

        renamed = {
            key: new + key.removeprefix(old) for key in keys for old, new in prefixes.items() if key.startswith(old)
        }
        moved = [f"{paths_of(model, pair.norm)[0]}: {self._words(pair)}" for pair in pairs]
        moved += [f"state_dict key {old} → {new}" for old, new in renamed.items()]
        return Change((*moved, *lines), undo, renamed)

    def _words(self, pair: Pair) -> str:
        norm, activation = type(pair.norm).__name__, type(pair.activation).__name__
        order = [activation, norm] if self.to == "before" else [norm, activation]
        words = f"{', '.join(order)} → {', '.join(order[::-1])}"
        if not running(pair.norm):
            return words
        return words + (
            "; running statistics re-estimated on the batch"
            if self.batch is not None
            else "; running statistics still of the old place: re-estimate them"
        )


def _prefixes(model: nn.Module, pairs: Sequence[Pair]) -> dict[str, str]:
    """Beginnings of keys that change, old → new: numbers exchange their modules."""
    found: dict[str, str] = {}
    for pair in pairs:
        for path in paths_of(model, pair.parent) if pair.numbered else ():
            a, b = (_join(path, name) + "." for name in pair.names)
            found |= {a: b, b: a}
    return found


def _lines(parent: str, pair: Pair) -> list[str]:
    i, j = pair.place, pair.place + 1
    if pair.numbered:
        return [f"{parent}[{i}], {parent}[{j}] = {parent}[{j}], {parent}[{i}]"]
    return [
        f"items = list({parent}._modules.items())",
        f"items[{i}], items[{j}] = items[{j}], items[{i}]",
        f"{parent}._modules.clear()",
        f"{parent}._modules.update(items)",
    ]


def _place_after(model: nn.Module, pair: Pair) -> str:
    """How a script names the normaliser once it has moved."""
    first = pair.entries()[0][1] is pair.norm
    return f"{expression(model, paths_of(model, pair.parent)[0])}[{pair.place + int(first)}]"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
