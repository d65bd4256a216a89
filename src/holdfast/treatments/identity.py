"""`Moments`: what a BatchNorm must know of its input to start as the identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from holdfast.treatments.change import Batch, call_of, rerun

LINES = """\
seen = {{}}
def keep(layer, inputs):
    seen.setdefault(layer, []).append(inputs[0].detach().transpose(0, 1).flatten(1).clone())
hooks = [layer.register_forward_pre_hook(keep) for layer in ({layers},)]
with torch.no_grad():
    model(batch)  # what the model is called with
for hook in hooks:
    hook.remove()
def identity(norm, layer):
    values = torch.cat(seen[layer], 1).double()
    with torch.no_grad():
        norm.running_mean.copy_(values.mean(1))
        norm.running_var.copy_(values.var(1))
        norm.bias.copy_(values.mean(1))
        norm.weight.copy_((values.var(1) + norm.eps).sqrt())
    return norm"""
"""The same for a script, to which the layers (expressions that lead to them) are given."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Mean and variance of each channel over a batch and all positions.

    A BatchNorm in eval mode computes γ (x − m) / √(v + ε) + β with the running m and v. With m = β = μ, v = σ² and
    γ = √(σ² + ε) that is x, whatever μ and σ² are. (γ = σ, as often written, shrinks it by σ / √(σ² + ε).) In train
    mode m and v are the batch's own, so that no fixed γ and β give the identity.

    Args:
        mean: μ, in the input's own unit.
        variance: σ², unbiased, as BatchNorm itself keeps its running variance.
    """

    mean: Float64[Tensor, " channels"]
    variance: Float64[Tensor, " channels"]

    @classmethod
    def of(cls, values: Float64[Tensor, "channels values"]) -> Moments:
        """The moments of all values of each channel, at least two.

        Example:
            >>> Moments.of(torch.tensor([[1.0, 3.0]], dtype=torch.float64)).variance
            tensor([2.], dtype=torch.float64)
        """
        return cls(values.mean(1), values.var(1))

    def settle(self, norm: Any) -> nn.Module:
        """Make a fresh BatchNorm the identity in eval mode; in float64, to be rounded once.

        Args:
            norm: with running statistics, γ and β, of as many channels.

        Returns:
            The same module.

        Example:
            >>> norm = Moments(*torch.tensor([[5.0], [4.0]], dtype=torch.float64)).settle(nn.BatchNorm1d(1)).eval()
            >>> round(norm(torch.tensor([[-3.0]], dtype=torch.float64)).item(), 9)
            -3.0
        """
        norm.double()
        with torch.no_grad():
            norm.running_mean.copy_(self.mean)
            norm.running_var.copy_(self.variance)
            norm.bias.copy_(self.mean)
            norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        return norm

    def still(self, eps: float) -> int:
        """How many channels have a variance below ε, so that γ is ε's and no longer the channel's."""
        return int((self.variance < eps).sum())


def moments_before(model: nn.Module, modules: Sequence[nn.Module], batch: Batch) -> Mapping[int, Moments | str]:
    """The moments of what flows into modules on one batch; the call leaves no trace.

    Args:
        model: runs in the mode in which it is.
        modules: their first input has channels on axis 1. One that runs several times has the moments of all its
            calls together.
        batch: what the model is called with.

    Returns:
        For each module, by identity, its moments, or the reason why there are none.
    """
    seen: dict[int, list[Tensor]] = {id(module): [] for module in modules}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
        if x is not None and x.ndim > 1:
            seen[id(module)].append(x.detach().transpose(0, 1).flatten(1).clone())

    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    try:
        rerun(model, call_of(batch))
    finally:
        for handle in handles:
            handle.remove()
    return {key: _moments(calls) for key, calls in seen.items()}


def _moments(calls: Sequence[Tensor]) -> Moments | str:
    if not calls:
        return "it did not run on the batch"
    values = torch.cat(list(calls), 1).double()
    if values.shape[1] < 2:
        return "the batch gives one value of each channel, which has no variance"
    if not values.isfinite().all():
        return f"its input on the batch is not finite in {int((~values.isfinite()).any(1).sum())} channels"
    found = Moments.of(values)
    # A half keeps no variance beyond 65504.
    return found if found.variance.to(calls[0].dtype).isfinite().all() else f"its variance overflows {calls[0].dtype}"
