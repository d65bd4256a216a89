"""`QKNorm`: queries and keys of an attention normalised along the head dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.norms.layer_norm import LayerNorm
from holdfast.norms.normaliser import HALVES, Normaliser
from holdfast.norms.rms_norm import RMSNorm
from holdfast.norms.running import check_eps
from holdfast.norms.spec import Axis, NormSpec, affine_of

_OVER: tuple[Axis, ...] = ("channels",)


class QKNorm(Normaliser, nn.Module):
    r"""Normalises each query and each key of an attention, so that its logits cannot grow with their length.

    `rms`: q̂ = γ · q / √(mean(q²) + ε); `layer`: q̂ = γ · (q − μ) / √(σ² + ε) + β; `l2`: q̂ = g · √d · q / ‖q‖ and
    k̂ = k / ‖k‖; with statistics along the head dimension d, and k̂ as q̂ where nothing else is said.

    What it does:
        Bounds the logits q̂ · k̂ / √d of the attention behind it: by √d for `rms` and `layer` with γ of ones, by the
        learnt temperature g for `l2`, whose logits are g · cos(q, k). One statistic a vector; no running state.

    Why it matters:
        With high learning rates queries and keys grow until the softmax saturates, its entropy falls to zero, and the
        loss diverges. Two small norms allow higher rates and half precision.

    When it is wrong:
        In a trained model it changes the function: it is put in before training. It cannot be merged into the
        projections. Where the length of a key carries how much it should be attended to, it is erased. Apply it
        before rotary positions, which keep lengths.

    Example:
        >>> q, k = QKNorm(4, kind="l2", temperature=3.0)(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4))
        >>> logits = q @ k.mT / 4**0.5
        >>> bool(logits.abs().max() <= 3.0001)
        True

    What to do:
        `q, k = norm(q, k)` between the projections and `F.scaled_dot_product_attention(q, k, v)`, which divides by √d
        as ever, for `l2` too. With one γ for each head: `heads=8`, and `key_heads=2` where queries share keys.

    Of a vector of zeros the output is zero. `l2` divides by √(‖x‖² + ε²).

    Args:
        head_dim: d, the last axis of queries and keys.
        kind: `rms`, `layer` or `l2`.
        heads: of the queries; then γ, or g, has values of its own for each head. `None`: all heads share them.
        key_heads: of the keys, where they are fewer than `heads`.
        eps: ε; `None` is the machine epsilon of the computation for `rms`, 1e-5 for `layer`, 1e-12 for `l2`.
        affine: whether γ, or g, is learnt; else γ is 1, and g stays.
        bias: whether `layer` has a β.
        temperature: g at first, of `l2`; `None` is 10, which is the paper's log₂(L² − L) at L = 32 tokens.
        device: of parameters.
        dtype: of parameters.

    Raises:
        InputError: another kind, fewer than 1 feature or head, or a setting that the kind does not have.

    References:
        Henry et al., Query-Key Normalization for Transformers, 2020, arXiv:2010.04245 (`l2`).
        Dehghani et al., Scaling Vision Transformers to 22 Billion Parameters, 2023, arXiv:2302.05442 (`layer`).
    """

    def __init__(
        self,
        head_dim: int,
        kind: str = "rms",
        heads: int | None = None,
        key_heads: int | None = None,
        eps: float | None = None,
        affine: bool = True,
        bias: bool = False,
        temperature: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_eps(eps)
        key_heads = heads if key_heads is None else key_heads
        _check_settings(head_dim, kind, heads, key_heads, bias, temperature)
        self.head_dim, self.kind, self.heads, self.key_heads = head_dim, kind, heads, key_heads
        on = {"device": device, "dtype": dtype}
        settings = (head_dim, kind, eps, affine, bias)
        self.query, self.key = _side(*settings, heads, on), _side(*settings, key_heads, on)
        self.eps: float | None = self.query.eps
        self.start = 10.0 if temperature is None else float(temperature)
        start = torch.full((heads or 1,), self.start, **on)
        self.temperature = nn.Parameter(start, requires_grad=affine) if kind == "l2" else None

    def reset_parameters(self) -> None:
        """As the constructor left it."""
        self.query.reset_parameters()
        self.key.reset_parameters()
        if self.temperature is not None:
            nn.init.constant_(self.temperature, self.start)

    @property
    def spec(self) -> NormSpec:
        """What is computed of the queries; of `l2` but for √d, which the attention divides by."""
        if self.kind == "l2":
            return NormSpec("qk", _OVER, centre=False, scale="l2", affine="one", bias=False, features_last=True)
        affine, bias = affine_of(self.query.weight, "elements"), getattr(self.query, "bias", None) is not None
        if self.kind == "layer":
            return NormSpec("qk", _OVER, affine=affine, bias=bias, features_last=True)
        return NormSpec("qk", _OVER, centre=False, scale="rms", affine=affine, bias=False, features_last=True)

    def telemetry(self) -> Mapping[str, Tensor]:
        """The statistics of both sides.

        Returns:
            As every normaliser's, by names that begin with `query_` and `key_`; of `l2` the mean square too.
        """
        sides = {"query": self.query, "key": self.key}
        return {f"{side}_{name}": each for side, norm in sides.items() for name, each in norm.telemetry().items()}

    def forward(
        self, q: Shaped[Tensor, "*queries"], k: Shaped[Tensor, "*keys"]
    ) -> tuple[Shaped[Tensor, "*queries"], Shaped[Tensor, "*keys"]]:
        """Normalise queries and keys.

        Args:
            q: `(batch, heads, time, head_dim)`.
            k: `(batch, heads, time, head_dim)`; heads and time may be other than the queries'.

        Returns:
            Both, of the same shapes and types; halves are computed in float32.

        Raises:
            InputError: other axes, heads or features, or no floating type.
        """
        self._check(q, self.heads, "q")
        self._check(k, self.key_heads, "k")
        if self.temperature is None:
            return _laid(self.query, q), _laid(self.key, k)
        # An L2 norm is an RMS over √d: the queries keep √d for the attention to divide by, the keys give it back.
        wide_q, wide_k = (each.float() if each.dtype in HALVES else each for each in (q, k))
        gain = self.temperature.to(wide_q.dtype).view(-1, 1, 1)
        return (
            (_laid(self.query, wide_q) * gain).to(q.dtype),
            (_laid(self.key, wide_k) * self.head_dim**-0.5).to(k.dtype),
        )

    def _check(self, x: Tensor, heads: int | None, name: str) -> None:
        if x.dim() != 4 or x.shape[-1] != self.head_dim or (heads is not None and x.shape[1] != heads):
            raise InputError(
                f"{name} of shape (batch, {heads or 'heads'}, time, {self.head_dim})",
                f"{tuple(x.shape)}",
                "type: x.unflatten(-1, (heads, head_dim)).transpose(1, 2)",
            )
        if not x.is_floating_point():
            raise InputError(f"{name} of a floating type", f"{x.dtype}", f"type: {name}.float()")

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.head_dim}, kind={self.kind!r}, heads={self.heads}"


class _PerHead(nn.Module):
    """A norm of vectors, with γ and β of its own for each head."""

    def __init__(self, norm: RMSNorm | LayerNorm, heads: int, bias: bool, on: Any) -> None:
        super().__init__()
        width = norm.normalized_shape[0]
        self.norm, self.eps = norm, norm.eps
        self.weight = nn.Parameter(torch.ones(heads, width, **on))
        self.bias = nn.Parameter(torch.zeros(heads, width, **on)) if bias else None

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def telemetry(self) -> Mapping[str, Tensor]:
        return self.norm.telemetry()

    def forward(self, x: Float[Tensor, "b heads t d"]) -> Float[Tensor, "b heads t d"]:
        wide = x.float() if x.dtype in HALVES else x
        y = self.norm(wide) * self.weight.to(wide.dtype).unsqueeze(1)
        return (y if self.bias is None else y + self.bias.to(wide.dtype).unsqueeze(1)).to(x.dtype)


def _side(
    head_dim: int, kind: str, eps: float | None, affine: bool, bias: bool, heads: int | None, on: dict[str, Any]
) -> Any:
    """The norm of the queries, or of the keys."""
    if kind == "l2":
        return RMSNorm(head_dim, (1e-12 if eps is None else eps) ** 2 / head_dim, elementwise_affine=False)
    shared = affine and heads is None
    norm: RMSNorm | LayerNorm
    if kind == "rms":
        norm = RMSNorm(head_dim, eps, shared, **on)
    else:
        norm = LayerNorm(head_dim, 1e-5 if eps is None else eps, shared, bias, **on)
    return _PerHead(norm, heads, bias, on) if affine and heads is not None else norm


def _laid(norm: Any, x: Tensor) -> Tensor:
    """Normalise vectors without a copy where the heads were split off behind the time, as they mostly are."""
    if isinstance(norm, _PerHead) or x.is_contiguous() or not x.transpose(1, 2).is_contiguous():
        return norm(x)
    return norm(x.transpose(1, 2)).transpose(1, 2)


def _check_settings(
    head_dim: int, kind: str, heads: int | None, key_heads: int | None, bias: bool, temperature: Any
) -> None:
    if kind not in ("rms", "layer", "l2"):
        raise InputError("a kind of norm", repr(kind), 'type: kind="rms", "layer" or "l2"')
    if head_dim < 1 or (heads or 1) < 1 or (key_heads or 1) < 1 or heads == 0 or key_heads == 0:
        got = f"head_dim={head_dim}, heads={heads}, key_heads={key_heads}"
        raise InputError("1 feature and 1 head or more", got, "type: QKNorm(64, heads=8)")
    if heads is None and key_heads is not None:
        raise InputError("the heads of the queries too", f"key_heads={key_heads} alone", "type: heads=")
    if bias and kind != "layer":
        raise InputError("no β without a mean", f'bias=True of kind="{kind}"', 'type: kind="layer"')
    if temperature is None:
        return
    if kind != "l2":
        raise InputError("a temperature of l2", f'temperature of kind="{kind}"', 'type: kind="l2"')
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 < temperature < float("inf"):
        raise InputError("a temperature above 0", repr(temperature), "the paper's: math.log2(L * L - L)")
