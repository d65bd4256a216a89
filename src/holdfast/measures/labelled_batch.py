"""`LabelledBatch`: a batch with its targets and a loss, for measures that need gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from holdfast.core.errors import InputError
from holdfast.live.replay import Call, record_call
from holdfast.live.tensors import tensors_in

LossFn = Callable[..., Tensor]

_FEWEST = 4
"""Samples that make two halves: a BatchNorm needs two in each."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledBatch:
    """Inputs, targets, and a loss of the output.

    Args:
        inputs: one tensor, a tuple of positional or a dictionary of keyword arguments of the model.
        targets: what the loss takes beside the output.
        loss_fn: `(output, targets)` → a scalar.
        samples: length of the batch.
    """

    inputs: Any
    targets: Any
    loss_fn: LossFn
    samples: int

    @classmethod
    def of(cls, batch: object, loss_fn: object) -> LabelledBatch:
        """Check what a user gave.

        Args:
            batch: `(inputs, targets)`.
            loss_fn: `(output, targets)` → a scalar.

        Raises:
            InputError: no loss, or no pair.
        """
        if not callable(loss_fn):
            raise InputError(
                "a loss_fn(output, targets)",
                "none" if loss_fn is None else f"a {type(loss_fn).__name__}",
                "type: loss_fn=torch.nn.functional.cross_entropy",
            )
        if isinstance(batch, Tensor | Mapping | str) or not isinstance(batch, Sequence) or len(batch) != 2:
            got = "none" if batch is None else f"a {type(batch).__name__}"
            raise InputError("a batch (inputs, targets)", got, "type: batch=(inputs, targets)")
        inputs, targets = tree_map(_ordinary, tuple(batch))
        lengths = [len(each) for each in tensors_in(inputs) if each.ndim]
        if not lengths or not lengths[0]:
            raise InputError("inputs with at least one sample", "none", "type: batch=(inputs, targets)")
        return cls(inputs, targets, loss_fn, lengths[0])

    def call(self) -> Call:
        """The forward pass on it, from where the random generators stand now."""
        if isinstance(self.inputs, Mapping):
            return record_call((), self.inputs)
        return record_call(tuple(self.inputs) if isinstance(self.inputs, tuple | list) else (self.inputs,), {})

    @property
    def can_be_halved(self) -> bool:
        """Whether there are samples for two halves, and all tensors count them."""
        sized = [each for each in tensors_in((self.inputs, self.targets)) if each.ndim]
        return self.samples >= _FEWEST and all(len(each) == self.samples for each in sized)

    def halves(self) -> tuple[LabelledBatch, LabelledBatch]:
        """Two disjoint halves, without the odd sample.

        Raises:
            InputError: too few samples, or tensors of other lengths among inputs and targets.
        """
        if not self.can_be_halved:
            lengths = sorted({len(each) for each in tensors_in((self.inputs, self.targets)) if each.ndim})
            raise InputError(
                f"a batch that can be halved: at least {_FEWEST} samples, in the first axis of every tensor",
                f"lengths {', '.join(map(str, lengths))}",
                "type: debiased=False",
            )
        half = self.samples // 2
        first, second = (
            tree_map(lambda leaf, part=part: leaf[part] if isinstance(leaf, Tensor) and leaf.ndim else leaf, pair)
            for pair in [(self.inputs, self.targets)]
            for part in (slice(0, half), slice(half, 2 * half))
        )
        return (
            replace(self, inputs=first[0], targets=first[1], samples=half),
            replace(self, inputs=second[0], targets=second[1], samples=half),
        )

    def loss(self, output: Any) -> Tensor:
        """The loss of an output.

        Args:
            output: of the model.

        Raises:
            InputError: it needs targets that are missing, or is no scalar.
        """
        try:
            loss = self.loss_fn(output, self.targets)
        except Exception as error:
            if self.targets is not None:
                raise
            raise InputError(
                "targets for the loss", f"None, with which it fails: {error}", "type: batch=(inputs, targets)"
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise InputError(
                "a loss that is one number, as a tensor", got, "type: loss_fn=lambda o, t: mine(o, t).mean()"
            )
        return loss

    def gradients(self, output: Any, leaves: Sequence[Tensor], *, strict: bool = True) -> tuple[Tensor | None, ...]:
        """Gradients of the loss.

        Args:
            output: of the model, with a graph.
            leaves: tensors that it was made with.
            strict: refuse a loss that depends on none of them.

        Returns:
            One for each; `None` where the loss does not depend on it.

        Raises:
            InputError: the loss cannot be differentiated.
        """
        loss = self.loss(output)
        if not loss.requires_grad:
            if not strict:
                return (None,) * len(leaves)
            raise InputError(
                "a loss that the trained parameters can be differentiated through to",
                "one without a graph",
                "look for .detach(), .item(), argmax or torch.no_grad() on the way to the loss",
            )
        try:
            return torch.autograd.grad(loss.reshape(()), leaves, allow_unused=True)
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise InputError(
                "a forward pass that can be differentiated",
                f"{type(error).__name__}: {str(error).splitlines()[0]}",
                "replace that operation, or freeze the layers before it",
            ) from error

    def refuse_random(self, model: nn.Module, output: Any, again: Callable[[], Any]) -> None:
        """Refuse a forward that draws what cannot be put back.

        Torch's own modules draw from torch's generators only, so a model of nothing else need not be asked.

        Args:
            model: the model.
            output: of a forward.
            again: repeats that forward.

        Raises:
            InputError: it gave something else.
        """
        if all(type(module).forward.__module__.startswith(("torch.", "holdfast.")) for module in model.modules()):
            return
        first, second = tensors_in(output), tensors_in(again())
        if len(first) == len(second) and all(map(_alike, first, second)):
            return
        raise InputError(
            "a forward pass that gives the same output when it is repeated",
            "another output from the same parameters, inputs and random state",
            "draw from torch's, Python's or NumPy's global generator, or keep yours as an attribute of the module",
        )


def _ordinary(leaf: Any) -> Any:
    """What was made in inference mode cannot be saved for a backward pass."""
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf


def _alike(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding: sums on a GPU come in any order."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    difference = (a.detach() - b.detach()).abs().nan_to_num().max() if a.numel() else torch.zeros(())
    return float(difference) <= torch.finfo(a.dtype).eps ** 0.5 * float(
        a.detach().abs().nan_to_num().max() if a.numel() else 0
    )
