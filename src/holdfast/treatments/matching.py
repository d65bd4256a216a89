"""OutputMoments matched: γ and β for which a new layer's channels have the mean and SD that the old layer's had."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from holdfast.live.replay import Call
from holdfast.treatments.change import rerun

_ROUNDING = 1e-5
"""Of the mean: an SD below it is rounding in float32, and its ratio to another SD means nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class OutputMoments:
    """Mean and biased SD of each channel over a batch and all positions, in the tensor's own unit."""

    mean: Float64[Tensor, " channels"]
    sd: Float64[Tensor, " channels"]

    @classmethod
    def of(cls, values: Float[Tensor, "*shape"], axis: int) -> OutputMoments:
        """The moments of each channel.

        Args:
            values: any floating tensor.
            axis: of the channels.

        Returns:
            One mean and one SD a channel.

        Example:
            >>> OutputMoments.of(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), 1)
            OutputMoments(mean=tensor([2., 5.], dtype=torch.float64), sd=tensor([1., 0.], dtype=torch.float64))
        """
        rows = values.detach().double().movedim(axis, 0).flatten(1)
        return cls(rows.mean(1), rows.std(1, correction=0))


def moments_of(model: nn.Module, call: Call, layers: Mapping[nn.Module, int]) -> dict[nn.Module, OutputMoments]:
    """The moments of the outputs of layers in train mode; nothing is changed by it.

    Args:
        model: which holds them.
        call: on which it runs.
        layers: each with the axis of its channels; they must run once.

    Returns:
        The moments of those that ran.
    """
    found: dict[nn.Module, OutputMoments] = {}

    def measure(layer: nn.Module, args: Any, output: Tensor) -> None:
        found[layer] = OutputMoments.of(output, layers[layer])

    with _hooked(layers, measure):
        rerun(model, call, "train")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """γ and β of one layer: γ' = r · γ and β' = r · β + c, so that its output y becomes r · y + c.

    Args:
        layer: with `weight` and, if it shifts, `bias`.
        factor: r, one a channel.
        shift: c, one a channel; zero for a layer without β.
    """

    layer: nn.Module
    factor: Float64[Tensor, " channels"]
    shift: Float64[Tensor, " channels"]

    def put_in(self) -> Callable[[], None]:
        """Write γ' and β' into the layer's parameters.

        Returns:
            What takes it back: bit for bit where the values are still the ones written, else by the inverse map, so
            that what training did since stays.
        """
        scale, factor = self.layer._parameters["weight"], self.factor
        bias = self.layer._parameters.get("bias")
        assert scale is not None
        maps = [(scale, factor, torch.zeros_like(factor))]
        maps += [] if bias is None else [(bias, factor, self.shift)]
        kept = []
        with torch.no_grad():
            for parameter, r, c in maps:
                before = parameter.detach().clone()
                parameter.copy_(parameter.double() * r + c)
                kept.append((parameter, before, parameter.detach().clone(), r, c))

        def take_back() -> None:
            with torch.no_grad():
                for parameter, before, after, r, c in kept:
                    inverse = torch.where(r == 0, before.double(), (parameter.double() - c) / r)
                    parameter.copy_(torch.where(parameter == after, before.double(), inverse))

        return take_back


def matches(model: nn.Module, call: Call, wanted: Mapping[nn.Module, tuple[OutputMoments, int]]) -> list[Match]:
    """The γ and β of layers for which their outputs in train mode have the moments wanted.

    One pass: each layer hands on the output that it will have, so that the later ones are matched on the inputs that
    they will get. Nothing is changed by it.

    Args:
        model: which holds the layers.
        call: on which it runs.
        wanted: for each layer its moments and the axis of its channels.

    Returns:
        One match for each layer that ran.
    """
    found: list[Match] = []

    def correct(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        target, axis = wanted[layer]
        present = OutputMoments.of(output, axis)
        counts = present.sd > _ROUNDING * present.mean.abs()
        factor = torch.where(counts, target.sd / torch.where(counts, present.sd, 1.0), 1.0)
        shifts = layer._parameters.get("bias") is not None
        shift = target.mean - present.mean * factor if shifts else torch.zeros_like(factor)
        found.append(Match(layer, factor, shift))
        shape = [1] * output.ndim
        shape[axis] = -1
        return (output * factor.view(shape) + shift.view(shape)).to(output.dtype)

    with _hooked(wanted, correct):
        rerun(model, call, "train")
    return found


@contextmanager
def _hooked(layers: Mapping[nn.Module, Any], hook: Callable[..., Any]) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
