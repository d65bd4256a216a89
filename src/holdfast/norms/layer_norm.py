"""`LayerNorm` over the last axes, `LayerNorm2d` over the channels of each position."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.kernels.norm_ref import row_norm_ref
from holdfast.kernels.normalise import row_norm, takes
from holdfast.norms.batch_norm import check_channels
from holdfast.norms.normaliser import HALVES, Normaliser, in_type
from holdfast.norms.running import check_eps
from holdfast.norms.spec import NormSpec, affine_of

_LARGE = 1 << 20
"""Bytes from which the kernel is the faster one."""


class LayerNorm(Normaliser, nn.LayerNorm):
    r"""Centres each vector and divides it by its standard deviation.

    y = γ · (x − μ) / √(σ² + ε) + β, with the mean and the biased variance over the axes of `normalized_shape`.

    What it does:
        Holds mean and length of every vector of features, whatever the layers before it do. One statistic a vector;
        no running state, so that training and evaluation compute the same function.

    Why it matters:
        It does not look at other samples or other time steps: the normaliser of recurrent networks and of
        transformers, at any batch size.

    When it is wrong:
        In convolutional networks it mixes channels of unlike meaning; BatchNorm or GroupNorm are better there. Where
        the mean of the features carries nothing, RMSNorm does the same with less work. Where lengths carry meaning
        (regression on amplitudes), they are erased.

    Example:
        >>> norm = LayerNorm(2)
        >>> norm(torch.tensor([[1.0, 3.0]])).detach().round(decimals=3)
        tensor([[-1.,  1.]])
        >>> norm.telemetry()["variance"].round(decimals=6)
        tensor([1.], dtype=torch.float64)

    What to do:
        `model.norm = LayerNorm(width)` where `torch.nn.LayerNorm(width)` stood: constructor, defaults and state_dict
        keys are the same, and checkpoints load both ways.

    Args:
        normalized_shape: the last axes of the input, which share one statistic.
        eps: ε, added to the variance.
        elementwise_affine: whether γ (`weight`) and β (`bias`) are learnt, one value an element.
        bias: whether there is a β.
        device: of parameters.
        dtype: of parameters.

    Raises:
        InputError: ε below 0.

    References:
        Ba, Kiros and Hinton, Layer Normalization, 2016, arXiv:1607.06450.
    """

    def __init__(
        self,
        normalized_shape: Any,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_eps(eps)
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)

    @property
    def spec(self) -> NormSpec:
        """What is computed."""
        affine = affine_of(self.weight, "elements")
        return NormSpec("layer", ("channels",), affine=affine, bias=self.bias is not None, features_last=True)

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Normalise.

        Args:
            x: `(*, *normalized_shape)`.

        Returns:
            The same shape and type.

        Raises:
            InputError: other last axes, or no floating type.
        """
        shape = self.normalized_shape
        if x.shape[-len(shape) :] != shape or not x.is_floating_point():
            check_last(x, shape, "LayerNorm")
        return rows(self, x, shape, *self._affine(), self.eps)


class LayerNorm2d(Normaliser, nn.Module):
    r"""LayerNorm over the channels of each position of `(batch, channels, height, width)`.

    y = γ · (x − μ) / √(σ² + ε) + β, with the mean and the biased variance over the channels of one position.

    What it does:
        The same as LayerNorm on a vector of features: each pixel by itself.

    Why it matters:
        The normaliser of convolutional networks built like transformers (ConvNeXt), and of patch embeddings, without
        moving axes in the model.

    When it is wrong:
        With few channels (below about 8) the statistics are noise. To normalise over positions too, as the paper of
        LayerNorm does for images, take `GroupNorm(1, channels)`.

    Example:
        >>> norm = LayerNorm2d(2)
        >>> norm(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)).detach().flatten().round(decimals=3)
        tensor([-1.,  1.])

    What to do:
        `LayerNorm2d(width)` behind a depthwise convolution; it is fastest on channels_last inputs.

    Args:
        num_channels: channels, on axis 1 of the input.
        eps: ε, added to the variance.
        affine: whether γ (`weight`) and β (`bias`) are learnt, one value a channel.
        bias: whether there is a β.
        device: of parameters.
        dtype: of parameters.

    Raises:
        InputError: ε below 0.

    References:
        Ba, Kiros and Hinton, Layer Normalization, 2016, arXiv:1607.06450.
        Liu et al., A ConvNet for the 2020s, 2022, arXiv:2201.03545.
    """

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_eps(eps)
        super().__init__()
        self.num_channels, self.eps, self.affine = num_channels, eps, affine
        kind = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(num_channels, **kind)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels, **kind)) if affine and bias else None

    @property
    def spec(self) -> NormSpec:
        """What is computed."""
        affine = affine_of(self.weight)
        return NormSpec("layer", ("channels",), affine=affine, bias=self.bias is not None)

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Normalise.

        Args:
            x: `(batch, channels, height, width)`.

        Returns:
            The same shape, type and layout.

        Raises:
            InputError: other than 4 axes, other channels, or no floating type.
        """
        if x.dim() != 4:
            raise InputError("(batch, channels, height, width)", f"a shape of {tuple(x.shape)}", "reshape it")
        check_channels(x, self.num_channels, "LayerNorm2d")
        last = x.movedim(1, -1)
        y = rows(self, last, (self.num_channels,), self.weight, self.bias, self.eps).movedim(-1, 1)
        return y if last.is_contiguous() else y.contiguous()

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.num_channels}, eps={self.eps}, affine={self.affine}, bias={self.bias is not None}"


def rows(
    norm: Normaliser, x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Shaped[Tensor, "*shape"]:
    """Normalise each vector of the last axes, by whoever is fastest.

    Args:
        norm: keeps the statistics.
        x: `(*, *shape)`.
        shape: the axes that share a statistic.
        weight: γ of that shape.
        bias: β.
        eps: ε.

    Returns:
        The shape and type of x.
    """
    plain = weight is None or bias is None  # torch's sums of the gradient come with both only
    if takes(x, 0 if plain else _LARGE):
        flat, gain, level = x.flatten(-len(shape)), _flat(weight), _flat(bias)
        return row_norm(flat, gain, level, eps, True, norm._keeping()).view(x.shape)
    if torch.compiler.is_compiling():
        wide = (x.float() if x.dtype in HALVES else x).flatten(-len(shape))
        y = row_norm_ref(wide, in_type(_flat(weight), wide), in_type(_flat(bias), wide), eps)
        mean = wide.mean(-1)
        norm._note(norm._keeping(), mean, (wide - mean.unsqueeze(-1)).square().mean(-1))
        return y.view(x.shape).to(x.dtype)
    if x.device.type != "cpu":
        return F.layer_norm(x, shape, in_type(weight, x), in_type(bias, x), eps)
    kind = torch.float32 if x.dtype in HALVES else x.dtype
    if weight is not None and weight.dtype is not kind:
        weight = weight.to(kind)
    if bias is not None and bias.dtype is not kind:
        bias = bias.to(kind)
    y, mean, rate = torch.native_layer_norm(x, shape, weight, bias, eps)
    kept = norm._keeping()
    kept.in_rows = True
    kept.take(y, mean, rate, eps, norm._listened)
    return y


def check_last(x: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Refuse an input of other last axes, or of a type that cannot be normalised.

    Args:
        x: the input.
        shape: its last axes, as expected.
        name: of the layer, for the line to type.

    Raises:
        InputError: one of the two.
    """
    if tuple(x.shape[-len(shape) :]) != tuple(shape):
        sizes = x.shape[-1] if len(shape) == 1 and x.dim() else tuple(x.shape[-len(shape) :])
        raise InputError(
            f"the last axes to be {tuple(shape)}", f"an input of shape {tuple(x.shape)}", f"type: {name}({sizes})"
        )
    if not x.is_floating_point():
        raise InputError("a floating input", f"{x.dtype}", "type: x.float()")


def _flat(parameter: Tensor | None) -> Tensor | None:
    return parameter if parameter is None or parameter.dim() == 1 else parameter.flatten()
