"""`FilterResponseNorm` and `TLU`: channels of a sample by their root mean square, above a learnt threshold."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.kernels.normalise import Channels, channel_norm, takes
from holdfast.norms.batch_norm import check_channels
from holdfast.norms.normaliser import HALVES, Normaliser
from holdfast.norms.rms_norm import power_of_two_above
from holdfast.norms.running import check_eps
from holdfast.norms.spec import NormSpec
from holdfast.norms.sums import along, spread, total

_FIRST_LEARNT = 1e-4
"""|ε_l| at first, of the paper."""


class TLU(nn.Module):
    r"""ReLU with a learnt threshold a channel.

    z = max(y, τ), with τ of zeros at first.

    What it does:
        At first it is ReLU; then each channel learns where it is cut, and to what.

    Why it matters:
        A normaliser that does not centre leaves channels off zero. ReLU would then pass all of a channel or nothing;
        the threshold follows it.

    When it is wrong:
        Behind a normaliser that centres, where ReLU has nothing to follow.

    Example:
        >>> TLU(2)(torch.tensor([[-1.0, 3.0]])).detach()
        tensor([[0., 3.]])

    What to do:
        `FilterResponseNorm(width)` has it already; use it alone behind `FilterResponseNorm(width, tlu=False)` where
        something stands between them.

    Args:
        num_features: channels, on axis 1 of the input.
        device: of τ.
        dtype: of τ.

    References:
        Singh and Krishnan, Filter Response Normalization Layer, 2019, arXiv:1911.09737.
    """

    def __init__(self, num_features: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.num_features = num_features
        self.threshold = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set τ to zeros."""
        nn.init.zeros_(self.threshold)

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Apply the threshold.

        Args:
            x: `(batch, channels, *positions)`.

        Returns:
            The same shape, type and layout.

        Raises:
            InputError: fewer than 2 axes, other channels, or no floating type.
        """
        _check(x, self.num_features, "TLU")
        return torch.maximum(x, along(self.threshold, x, 1))

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.num_features}"


class FilterResponseNorm(Normaliser, nn.Module):
    r"""Divides each channel of each sample by its root mean square, and cuts it at a learnt threshold.

    y = max(γ · x / √(ν² + |ε|) + β, τ), with ν² the mean of x² over the positions of one channel of one sample.

    What it does:
        InstanceNorm without centring, and an activation in one: ReLU whose threshold τ follows where a channel lies.
        No other sample and no other channel is looked at; no running state, so that training and evaluation compute
        the same function.

    Why it matters:
        In the paper's image classification and detection it is as good as BatchNorm with large batches, and stays so
        down to one sample a device.

    When it is wrong:
        With few positions ν² is noise, and with one it leaves the sign only: learn ε there. Inputs need about
        zero mean; a large common shift is left in, and drowns the rest. The paper warms the learning rate up. Do not
        put an activation behind it (or take `tlu=False`).

    Example:
        >>> norm = FilterResponseNorm(1)
        >>> (norm(torch.tensor([[[3.0, -4.0]]])).detach() * 12.5**0.5).round(decimals=3)
        tensor([[[3., 0.]]])
        >>> norm.telemetry()["mean_square"]
        tensor([[12.5000]], dtype=torch.float64)

    What to do:
        `FilterResponseNorm(width)` in place of a BatchNorm and the ReLU behind it.

    It is computed in units of a power of two near the largest value, so that |x| ≈ 1e30 gives the right answer
    where the square leaves float32's range.

    Args:
        num_features: channels, on axis 1 of the input.
        eps: ε.
        learn_eps: whether ε is eps + |`learnt_eps`| instead, with one learnt number a layer, 1e-4 at first; the
            paper's, for layers of few positions.
        tlu: whether the threshold τ is applied.
        device: of parameters.
        dtype: of parameters.

    Raises:
        InputError: ε below 0.

    References:
        Singh and Krishnan, Filter Response Normalization Layer: Eliminating Batch Dependence in the Training of Deep
        Neural Networks, 2019, arXiv:1911.09737.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        *,
        learn_eps: bool = False,
        tlu: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_eps(eps)
        super().__init__()
        self.num_features, self.eps = num_features, eps
        kind = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(num_features, **kind))
        self.bias = nn.Parameter(torch.empty(num_features, **kind))
        self.threshold = nn.Parameter(torch.empty(num_features, **kind)) if tlu else None
        self.learnt_eps = nn.Parameter(torch.empty(1, **kind)) if learn_eps else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set γ to ones, β and τ to zeros, and a learnt ε to 1e-4."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        if self.threshold is not None:
            nn.init.zeros_(self.threshold)
        if self.learnt_eps is not None:
            nn.init.constant_(self.learnt_eps, _FIRST_LEARNT)

    @property
    def spec(self) -> NormSpec:
        """What is computed."""
        then = "" if self.threshold is None else "threshold"
        return NormSpec("filter-response", ("positions",), centre=False, scale="rms", then=then)  # type: ignore[arg-type]

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Normalise.

        Args:
            x: `(batch, channels, *positions)`.

        Returns:
            The same shape, type and layout; halves are computed in float32.

        Raises:
            InputError: fewer than 2 axes, other channels, or no floating type.
        """
        _check(x, self.num_features, "FilterResponseNorm")
        if self.learnt_eps is None and x.dim() > 2 and x.numel() and takes(x):
            over = Channels(x.shape[1], range(len(x) + 1), centre=False)
            y = channel_norm(x, self.weight, self.bias, self.eps, over, self._keeping())
        else:
            wide = x.float() if x.dtype in HALVES else x
            y = self._plain(wide) if x.dim() > 2 else self._plain(wide.unsqueeze(-1)).squeeze(-1)
        if self.threshold is not None:
            y = torch.maximum(y, along(self.threshold, y, 1))
        return y.to(x.dtype)

    def _plain(self, x: Float[Tensor, "batch channels *positions"]) -> Float[Tensor, "batch channels *positions"]:
        axes = tuple(range(2, x.dim()))
        unit = power_of_two_above(x.detach(), axes)
        scaled = x / unit
        square = total(scaled.square(), axes) / max(1, math.prod(x.shape[2:]))
        if self.training:
            self._note(self._keeping(), None, (square.detach() * unit.square()).flatten(1))
        # √(ν² + ε) = unit · √(ν²/unit² + ε/unit²)
        eps = self.eps if self.learnt_eps is None else self.eps + along(self.learnt_eps, unit, 1).abs()
        hat = scaled * spread((square + eps / unit.square()).rsqrt(), x)
        return hat * along(self.weight, x, 1) + along(self.bias, x, 1)

    def extra_repr(self) -> str:
        """The settings."""
        learnt, tlu = self.learnt_eps is not None, self.threshold is not None
        return f"{self.num_features}, eps={self.eps}, learn_eps={learnt}, tlu={tlu}"


def _check(x: Tensor, channels: int, name: str) -> None:
    if x.dim() < 2:
        raise InputError("(batch, channels, *positions)", f"a shape of {tuple(x.shape)}", "type: x.unsqueeze(0)")
    check_channels(x, channels, name)
