"""What every normaliser of ours has in common: telemetry, statistics that stay wide, who computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from holdfast.kernels.norm_ref import channel_moments_ref, channel_norm_from_ref
from holdfast.kernels.normalise import Channels, Kept, channel_norm, takes

HALVES = (torch.bfloat16, torch.float16)


class Normaliser:
    """Mixed into a module: keeps the statistics of the last training pass, and hands them out as telemetry."""

    training: bool
    weight: Any
    bias: Any
    _parameters: Any
    _buffers: dict[str, Tensor | None]
    _kept: Kept | None = None
    _listened = False

    def telemetry(self) -> Mapping[str, Tensor]:
        """The statistics of the last pass in training, computed there and only kept.

        Returns:
            By name: `mean` and `variance` (biased), one value a statistic, in the input's unit and its square
            (`mean_square` where nothing is centred); after a backward pass also `gradient_sum` Σ dy and
            `gradient_product` Σ dy · x̂, each for every element of γ. Empty before the first pass. The sums of the
            gradient begin with the pass after the first reading; a compiled graph does not hand them out.
        """
        self._listened = True
        return {} if self._kept is None else self._kept.figures()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_listened", "_pool")}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As a module's; running statistics keep float32 through `.half()` and `.bfloat16()`."""
        before = {name: self._buffers.get(name) for name in ("running_mean", "running_var")}
        super()._apply(fn, recurse)  # type: ignore[misc]
        for name, buffer in before.items():
            present = self._buffers.get(name)
            if buffer is not None and present is not None and present.dtype in HALVES:
                self._buffers[name] = buffer.to(present.device)
        return self

    def _keep_statistics_wide(self) -> None:
        for name in ("running_mean", "running_var"):
            buffer = self._buffers.get(name)
            if buffer is not None and buffer.dtype in HALVES:
                self._buffers[name] = buffer.float()

    def _affine(self) -> tuple[Tensor | None, Tensor | None]:
        """γ and β; past a module's own `__getattr__`, which takes 1 µs, unless they are parametrised."""
        own = self._parameters
        if "weight" in own and "bias" in own:
            return own["weight"], own["bias"]
        return self.weight, self.bias

    def _keeping(self) -> Kept:
        """Where a pass leaves its statistics: kept in training, else thrown away."""
        kept = Kept()
        if self.training and not torch.compiler.is_compiling():
            self.__dict__["_kept"] = kept  # a module's own `__setattr__` takes 2 µs
        return kept

    def _over_channels(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, over: Channels, floor: int = 0
    ) -> tuple[Tensor, Kept]:
        """Normalise by the input's own statistics: by the kernel from so many bytes on, else by plain operations."""
        kept = self._keeping()
        if takes(x, floor):
            return channel_norm(x, weight, bias, eps, over, kept), kept
        wide = x.float() if x.dtype in HALVES else x
        mean, variance = channel_moments_ref(wide, over.groups, over.bounds, over.centre)
        y = channel_norm_from_ref(wide, mean, variance, in_type(weight, wide), in_type(bias, wide), eps, over.bounds)
        self._note(kept, mean, variance)
        return y.to(x.dtype), kept

    def _note(self, kept: Kept, mean: Tensor | None, variance: Tensor) -> None:
        """Keep statistics that plain operations have computed."""
        if is_wrapped(variance):
            return
        kept.given = (mean if mean is None else mean.detach(), variance.detach())
        if torch.compiler.is_compiling() and self.training:
            self._kept = Kept(given=kept.given)


def in_type(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """γ or β in the type of the computation."""
    return None if parameter is None else parameter.to(x.dtype)


def empty(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Shaped[Tensor, "*shape"]:
    """Nothing in, nothing out; γ and β get gradients of zero.

    Args:
        x: of no elements, with channels on axis 1.
        weight: γ, one value a channel.
        bias: β.

    Returns:
        The shape and type of x.
    """
    shape = (1, -1) + (1,) * (x.dim() - 2)
    y = x if weight is None else x * weight.to(x.dtype).view(shape)
    return y if bias is None else y + bias.to(x.dtype).view(shape)


def is_wrapped(x: Tensor) -> bool:
    """Whether a tensor is one of `torch.func`'s, which must not outlive its transformation.

    Args:
        x: any tensor.

    Returns:
        False within a graph under compilation, which cannot ask.
    """
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)


def recomputing() -> bool:
    """Whether this forward pass is one that activation checkpointing does again within the backward pass.

    Returns:
        Then running statistics have been moved already.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
