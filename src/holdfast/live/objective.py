"""`Objective`: the loss of a model on one batch as a function of its parameters, evaluated without a trace."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.live.hooks import all_detached
from holdfast.live.inner import inner_model
from holdfast.live.labelled_batch import LabelledBatch, LossFn, gradients_of, reentrant_checkpoint
from holdfast.live.replay import Autocast, Mode, autocast_as, cloned, unseen_pass

# What a loss may differ by between two passes over the same batch: sums in another order, as CUDA makes them.
_REPEATS = 1e-4


class Evaluation(NamedTuple):
    """Loss and gradient at one point.

    Args:
        loss: the user's loss.
        gradient: one tensor a parameter.
    """

    loss: float
    gradient: tuple[Tensor, ...]

    @property
    def finite(self) -> bool:
        """Whether the loss and the gradient's norm are."""
        return math.isfinite(self.loss) and math.isfinite(norm(self.gradient))


class Forward(NamedTuple):
    """A forward pass with its graph.

    Args:
        parameters: the leaves that stand for the parameters.
        output: what the model returned.
        loss: the scalar.
    """

    parameters: tuple[nn.Parameter, ...]
    output: Any
    loss: Tensor


class Objective:
    """The loss of a model on one batch as a function of the parameters that are trained.

    Every evaluation starts from the same buffers and the same random numbers (the same dropout masks) and runs on
    copies of the parameters. Afterwards parameters, gradients, buffers, modes, version counters and random generators
    are bit for bit what they were.

    Args:
        model: the model.
        loss_fn: `(output, targets)` → a scalar.
        batch: `(inputs, targets)`; inputs as the model takes them: a tuple for several, a dictionary by name.
        mode: how normalisers and dropout run: `"train"`, `"eval"`, or as the modules' flags say.

    Raises:
        InputError: no loss, no pair, no parameter that is trained; a loss that is not one number which the parameters
            move; a forward that gives another loss each time.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 3.0)
        >>> batch = (torch.ones(4, 1), torch.zeros(4, 1))
        >>> objective = Objective(layer, nn.functional.mse_loss, batch)
        >>> loss, (gradient,) = objective.at((torch.tensor([[2.0]]),))
        >>> loss, gradient.item(), layer.weight.item(), layer.weight.grad
        (4.0, 4.0, 3.0, None)
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn | None, batch: Any, *, mode: Mode = "as it was") -> None:
        self._batch = LabelledBatch.of(batch, loss_fn)
        self.model = inner_model(model)
        self.mode = mode
        self._call = self._batch.call()
        named = [(name, each) for name, each in self.model.named_parameters() if each.requires_grad]
        self.names = tuple(name for name, _ in named)
        self.parameters = tuple(each for _, each in named)
        if not self.parameters:
            raise InputError(
                "a model with parameters that are trained",
                "one whose parameters are all frozen",
                "type: model.requires_grad_(True)",
            )
        index = {id(each): k for k, each in enumerate(self.parameters)}
        self._places = [
            (module, name, index[id(own)])
            for module in self.model.modules()
            for name, own in module._parameters.items()
            if id(own) in index
        ]
        self.samples = self._batch.samples
        self._check_repeats()

    @property
    def dimension(self) -> int:
        """How many numbers are trained."""
        return sum(each.numel() for each in self.parameters)

    @contextmanager
    def forward(self, values: Sequence[Tensor] | None = None) -> Iterator[Forward]:
        """A forward pass with its graph, for the block; nothing remains of it.

        Args:
            values: where, one tensor a parameter; where the model stands when `None`.

        Yields:
            The pass.
        """
        points = tuple(each.detach() for each in (self.parameters if values is None else values))
        with (
            all_detached(),
            unseen_pass(self.model, mode=self.mode, random=self._call.random, autocast=self._call.autocast),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            leaves = tuple(nn.Parameter(each.clone()) for each in points)
            self._put(leaves)
            args, kwargs = cloned((self._call.args, self._call.kwargs))  # a model may begin with an in-place operation
            output = self.model(*args, **kwargs)
            loss = self.loss_of(output)
            # Of derivatives torch casts what the forward cast; within autocast it would round all that is done with
            # them to 8 bits.
            with autocast_as(Autocast({})):
                yield Forward(leaves, output, loss)

    def at(self, values: Sequence[Tensor] | None = None) -> Evaluation:
        """Loss and gradient.

        Args:
            values: where, one tensor a parameter; where the model stands when `None`.

        Returns:
            Both; zeros as the gradient of a parameter that the loss does not depend on.
        """
        with self.forward(values) as (leaves, _, loss):
            given = zip(leaves, gradients_of(loss, leaves), strict=True)
            gradient = tuple(torch.zeros_like(p) if g is None else g.detach() for p, g in given)
            return Evaluation(float(loss.detach()), gradient)

    def moved(self, direction: Sequence[Tensor], length: float) -> Evaluation:
        """Loss and gradient a step away.

        Args:
            direction: one tensor a parameter.
            length: how many times the direction.

        Returns:
            Both, at θ + length · direction.
        """
        return self.at(self.along(direction, length))

    @torch.no_grad()
    def along(self, direction: Sequence[Tensor], length: float) -> list[Tensor]:
        """The parameters a step away.

        Args:
            direction: one tensor a parameter.
            length: how many times the direction.

        Returns:
            θ + length · direction.
        """
        return [p + length * d.to(p) for p, d in zip(self.parameters, direction, strict=True)]

    def _put(self, leaves: tuple[nn.Parameter, ...]) -> None:
        """Let every module that holds a parameter hold its copy; the pass around gives the parameters back."""
        for module, name, index in self._places:
            module._parameters[name] = leaves[index]

    def loss_of(self, output: Any) -> Tensor:
        """The loss of what the model gave.

        Args:
            output: of the model, or tensors in its place.

        Returns:
            The scalar, with its graph.

        Raises:
            InputError: it is not one number that the output moves, or needs targets that are missing.
        """
        return self._batch.traced_loss(output)

    def _check_repeats(self) -> None:
        losses = []
        for _ in range(2):
            with self.forward() as (_, _, loss):
                losses.append(float(loss.detach()))
                if not losses[1:]:
                    _refuse_reentrant(loss)
        first, second = losses
        if math.isfinite(first) and abs(first - second) > _REPEATS * max(abs(first), abs(second)):
            raise InputError(
                "a forward that gives the same loss from the same random state",
                f"losses of {first:.6g} and {second:.6g} on the same batch",
                "draw random numbers from a global generator (torch, random, numpy.random) or from one of a module's",
            )


def norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm of several tensors as one vector, in double precision.

    Args:
        tensors: of any shapes.

    Returns:
        The norm.
    """
    return math.sqrt(dot(tensors, tensors))


def dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Inner product of two lists of tensors as two vectors, in double precision.

    Args:
        first: of any shapes.
        second: of the same shapes.

    Returns:
        The product.
    """
    with torch.no_grad():
        return math.fsum(
            float(torch.dot(a.reshape(-1).double(), b.reshape(-1).double())) for a, b in zip(first, second, strict=True)
        )


def graph_of(loss: Tensor) -> list[Any]:
    """Every node that a loss was computed by.

    Args:
        loss: with its graph.

    Returns:
        Each node once.
    """
    found: dict[Any, None] = {}
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found[node] = None
            waiting += [each for each, _ in node.next_functions]
    return list(found)


def _refuse_reentrant(loss: Tensor) -> None:
    # Asked for its gradients, torch gives zeros.
    if any(type(node).__name__ == "CheckpointFunctionBackward" for node in graph_of(loss)):
        raise reentrant_checkpoint()
