"""`EvoNormB0` and `EvoNormS0`: normaliser and activation in one, as an automated search has found them."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.norms.batch_norm import check_channels
from holdfast.norms.normaliser import HALVES, Normaliser, empty
from holdfast.norms.rms_norm import power_of_two_above
from holdfast.norms.running import Tracked, check_eps, check_momentum
from holdfast.norms.spec import NormSpec
from holdfast.norms.sums import along, spread, total


class _Evo(Normaliser, nn.Module):
    """What the two have in common: γ, β and v, and who is refused."""

    def __init__(self, num_features: int, eps: float, device: Any, dtype: torch.dtype | None) -> None:
        check_eps(eps)
        super().__init__()
        self.num_features, self.eps = num_features, eps
        kind = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(num_features, **kind))
        self.bias = nn.Parameter(torch.empty(num_features, **kind))
        self.v = nn.Parameter(torch.empty(num_features, **kind))

    def reset_parameters(self) -> None:
        """Set γ and v to ones, and β to zeros."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.v)

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Normalise.

        Args:
            x: `(batch, channels, *positions)`.

        Returns:
            The same shape, type and layout; halves are computed in float32.

        Raises:
            InputError: fewer than 2 axes, other channels, or no floating type.
        """
        if x.dim() < 2:
            raise InputError("(batch, channels, *positions)", f"a shape of {tuple(x.shape)}", "type: x.unsqueeze(0)")
        check_channels(x, self.num_features, type(self).__name__)
        if x.numel() == 0:
            return empty(x, self.weight, self.bias)
        wide = x.float() if x.dtype in HALVES else x
        hat = self._hat(wide) if x.dim() > 2 else self._hat(wide.unsqueeze(-1)).squeeze(-1)
        return (hat * along(self.weight, wide, 1) + along(self.bias, wide, 1)).to(x.dtype)

    def _hat(self, x: Tensor) -> Tensor:
        """What γ and β are applied to, of an input with positions."""
        raise NotImplementedError


class EvoNormB0(Tracked, _Evo):
    r"""Divides by the larger of the batch's standard deviation and the sample's, which a multiple of x is added to.

    y = γ · x / max(√(σ²_B + ε), v · x + √(σ²_I + ε)) + β, with the biased variances of one channel: σ²_B over the
    batch and all positions, in evaluation the running one, and σ²_I over the positions of one sample.

    What it does:
        BatchNorm and the activation behind it in one. Values far above zero are divided by about v times themselves,
        which bounds them; the rest by the batch's deviation. It does not centre.

    Why it matters:
        Found by a search over formulas. In the paper as good as or better than BatchNorm followed by ReLU or Swish,
        on networks that the search had not seen.

    When it is wrong:
        With small batches, as BatchNorm; `EvoNormS0` needs none. With an activation behind it, which is one too many.
        A large common shift of a channel is left in. It costs more memory than BatchNorm and ReLU. Where an
        activation must not stand (the end of a residual branch) another normaliser is needed.

    Example:
        >>> norm = EvoNormB0(1, eps=0.0)
        >>> norm(torch.tensor([[[-1.0, 1.0]]])).detach()  # both deviations are 1: max(1, x + 1) is 1 and 2
        tensor([[[-1.0000,  0.5000]]])

    What to do:
        `EvoNormB0(width)` in place of a BatchNorm and the activation behind it, in training from the start.

    It is computed in units of a power of two near the largest value of a channel. The mean is tracked too, though
    the output does not use it: pooling variances over micro-batches needs it.

    Args:
        num_features: channels, on axis 1 of the input.
        eps: ε, added to variances.
        momentum: m, of the running statistics; `None` is the average over all batches.
        track_running_stats: without it, evaluation uses the variance of its batch.
        device: of parameters and buffers.
        dtype: of parameters.

    Raises:
        InputError: m outside [0, 1], or ε below 0.

    References:
        Liu, Brock, Simonyan and Le, Evolving Normalization-Activation Layers, 2020, arXiv:2004.02967.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_momentum(momentum, eps)
        super().__init__(num_features, eps, device, dtype)
        self.momentum, self.track_running_stats = momentum, track_running_stats
        own = track_running_stats
        self.register_buffer("running_mean", torch.zeros(num_features, device=device) if own else None)
        self.register_buffer("running_var", torch.ones(num_features, device=device) if own else None)
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device) if own else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set γ and v to ones, β to zeros, and the running statistics to mean 0 and variance 1."""
        super().reset_parameters()
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1.0)
            self.num_batches_tracked.zero_()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """As a module's; a checkpoint without the counter starts it at 0, as torch's BatchNorm does."""
        if self.num_batches_tracked is not None and f"{prefix}running_var" in state_dict:
            state_dict.setdefault(f"{prefix}num_batches_tracked", torch.zeros((), dtype=torch.long))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def spec(self) -> NormSpec:
        """What is computed."""
        return NormSpec("evo-b0", ("samples", "positions"), state="running", then="larger")

    def _hat(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.dim()))
        unit = power_of_two_above(x.detach(), (0, *axes))
        scaled, least = x / unit, self.eps / unit.square()
        mean, own = _moments(scaled, axes)
        if self.training or self.running_var is None:
            batch = self._of_the_batch(mean, own, unit, x.numel() // x.shape[1])
        else:
            batch = self.running_var.to(x.dtype).view_as(unit) / unit.square()
        right = along(self.v, x, 1) * scaled + spread((own + least).sqrt(), x)
        return scaled / torch.maximum(spread((batch + least).sqrt(), x), right)

    def _of_the_batch(self, mean: Tensor, own: Tensor, unit: Tensor, count: int) -> Tensor:
        """The variance over the batch, from those of its samples; the running statistics move by it."""
        if count == 1:
            raise ValueError("Expected more than 1 value per channel when training, got one: take EvoNormS0")
        centre = total(mean, (0,)) / len(mean)
        batch = total(own + (mean - spread(centre, mean)).square(), (0,)) / len(mean)
        if self.training:
            first, second = (centre.detach() * unit).flatten(), (batch.detach() * unit.square()).flatten()
            self._note(self._keeping(), first.unsqueeze(0), second.unsqueeze(0))
            self._track(first, second, float(count))
        return batch

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class EvoNormS0(_Evo):
    r"""Swish of x, divided by the standard deviation of a group of the sample's channels.

    y = γ · x · sigmoid(v · x) / √(σ²_G + ε) + β, with the biased variance over the group's channels and positions.

    What it does:
        GroupNorm and a Swish of learnt slope in one, without centring. One sample by itself; no running state, so that
        training and evaluation compute the same function.

    Why it matters:
        Found by a search over formulas. In the paper better than GroupNorm followed by ReLU or Swish, at any batch
        size.

    When it is wrong:
        With an activation behind it, which is one too many. The sigmoid sees the input's own scale: where that is
        wrong, it is ReLU, or x/2, until v has learnt it. Where an activation must not stand (the end of a residual
        branch) another normaliser is needed. A group of one value is divided by √ε: take fewer groups.

    Example:
        >>> norm = EvoNormS0(2, groups=1)
        >>> norm(torch.tensor([[-20.0, 20.0]])).detach().round(decimals=3)
        tensor([[-0., 1.]])

    What to do:
        `EvoNormS0(width)` in place of a GroupNorm (or BatchNorm) and the activation behind it.

    Args:
        num_features: channels, on axis 1 of the input.
        groups: of neighbouring channels that share a variance, a divisor of the channels.
        eps: ε, added to the variance.
        device: of parameters.
        dtype: of parameters.

    Raises:
        InputError: groups that do not divide the channels, or ε below 0.

    References:
        Liu, Brock, Simonyan and Le, Evolving Normalization-Activation Layers, 2020, arXiv:2004.02967.
    """

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        eps: float = 1e-5,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if groups < 1 or num_features % groups:
            raise InputError(
                "groups that divide the channels",
                f"groups={groups} of num_features={num_features}",
                f"type: EvoNormS0({num_features}, groups={math.gcd(max(groups, 1), num_features)})",
            )
        super().__init__(num_features, eps, device, dtype)
        self.groups = groups
        self.reset_parameters()

    @property
    def spec(self) -> NormSpec:
        """What is computed."""
        return NormSpec("evo-s0", ("channels", "positions"), groups=self.groups, then="swish")

    def _hat(self, x: Tensor) -> Tensor:
        cells = x.unflatten(1, (self.groups, x.shape[1] // self.groups))  # type: ignore[no-untyped-call]
        axes = tuple(range(2, cells.dim()))
        unit = power_of_two_above(cells.detach(), axes)
        scaled = cells / unit
        mean, square = _moments(scaled, axes)
        if self.training:
            kept = (mean.detach() * unit).flatten(1), (square.detach() * unit.square()).flatten(1)
            self._note(self._keeping(), *kept)
        hat = scaled * spread((square + self.eps / unit.square()).rsqrt(), cells)
        return hat.flatten(1, 2) * _sigmoid(along(self.v, x, 1) * x)

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.num_features}, groups={self.groups}, eps={self.eps}"


def _moments(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, with axes of length 1."""
    mean = total(x, axes)
    count = x.numel() // mean.numel()
    mean = mean / count
    return mean, total((x - spread(mean, x)).square(), axes) / count


def _sigmoid(x: Tensor) -> Tensor:
    """In operations whose bits do not depend on the threads: torch's rounds the end of a thread's share otherwise."""
    small = torch.where(x >= 0, -x, x).exp()
    return torch.where(x >= 0, 1.0, small) / (1.0 + small)
