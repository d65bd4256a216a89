"""`VirtualBatchNorm`: each sample normalised by the statistics of a fixed reference batch and itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.norms.batch_norm import check_channels
from holdfast.norms.normaliser import HALVES, Normaliser, empty, in_type
from holdfast.norms.running import check_eps
from holdfast.norms.spec import NormSpec, affine_of

_NAMES = ("reference_mean", "reference_var")


class VirtualBatchNorm(Normaliser, nn.Module):
    r"""BatchNorm in which a sample meets a fixed reference batch instead of its neighbours.

    y = γ · (x − μ) / √(σ² + ε) + β, with the mean and the biased variance of a channel over the positions of the n
    reference samples and of x itself: μ = (1 − w) · μ_r + w · μ_x, σ² = (1 − w) · σ²_r + w · σ²_x +
    w · (1 − w) · (μ_x − μ_r)², w = 1 / (n + 1) where all have as many positions. The reference itself is normalised
    by its own statistics.

    What it does:
        Keeps BatchNorm's per-channel scale while no sample's output depends on another of its batch. Training and
        evaluation compute the same function, of any batch size.

    Why it matters:
        In a GAN, BatchNorm makes the samples of a batch alike and lets the discriminator tell batches apart; here
        neither happens. Gradient penalties see one sample at a time.

    When it is wrong:
        It costs a forward pass of the reference batch at each step, for the reference's statistics are those of the
        weights that computed them. With a reference that is not like the data it is worse than LayerNorm, which
        needs none. For images in a plain classifier BatchNorm is cheaper and as good.

    Example:
        >>> norm = VirtualBatchNorm(1)
        >>> norm.refer(torch.tensor([[0.0], [3.0]])).detach().round(decimals=3).flatten()  # by itself
        tensor([-1.,  1.])
        >>> norm(torch.tensor([[3.0]])).detach().round(decimals=3).flatten()  # among 0, 3, 3
        tensor([0.7070])

    What to do:
        Draw the reference once. Then, as weights move, before each step: `with reference_pass(model):
        model(reference)`, which gives every layer of the model the statistics of the reference as it arrives there.
        Where nothing is said, the first training batch becomes the reference, and stays.

    No gradient passes through the reference, unless `reference_pass(model, gradient=True)` says so. Its statistics are
    buffers: they are in the state_dict, and evaluation needs no reference batch.

    Args:
        num_features: channels, on axis 1 of the input.
        eps: ε, added to the variance.
        affine: whether γ (`weight`) and β (`bias`) are learnt, one value a channel.
        device: of parameters and buffers.
        dtype: of parameters.

    Raises:
        InputError: fewer than 1 channel, or ε below 0.

    References:
        Salimans et al., Improved Techniques for Training GANs, 2016, arXiv:1606.03498, section 3.5.
    """

    reference_mean: Tensor
    reference_var: Tensor
    reference_count: Tensor
    _reads = False
    _graph: tuple[Tensor, Tensor] | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_eps(eps)
        if num_features < 1:
            raise InputError("1 channel or more", f"num_features={num_features}", "type: VirtualBatchNorm(64)")
        self.num_features, self.eps = num_features, eps
        kind = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(num_features, **kind)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, **kind)) if affine else None
        self.register_buffer("reference_mean", torch.zeros(num_features, device=device))
        self.register_buffer("reference_var", torch.ones(num_features, device=device))
        self.register_buffer("reference_count", torch.tensor(0, dtype=torch.long, device=device))
        self._referred = False

    def reset_parameters(self) -> None:
        """As the constructor left it, without a reference."""
        for each, start in ((self.weight, 1.0), (self.bias, 0.0)):
            if each is not None:
                nn.init.constant_(each, start)
        for buffer, start in ((self.reference_mean, 0), (self.reference_var, 1), (self.reference_count, 0)):
            buffer.fill_(start)
        self._referred, self._graph = False, None

    @property
    def spec(self) -> NormSpec:
        """The cells of the input that share a statistic; the reference's are added to them."""
        affine = affine_of(self.weight)
        return NormSpec("virtual-batch", ("positions",), affine=affine)

    def refer(self, x_reference: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Take a batch as the reference, instead of the one before.

        Args:
            x_reference: `(batch, channels, *positions)` as it arrives at this layer, 1 sample or more.

        Returns:
            The same, normalised by its own statistics.

        Raises:
            InputError: one value a channel, other axes or channels, or no floating type.
        """
        self._check(x_reference)
        cells = x_reference.numel() // self.num_features
        if cells < 2:
            got = f"a reference of shape {tuple(x_reference.shape)}"
            raise InputError("more than 1 value per channel in a reference", got, "take 32 samples or more")
        wide = _wide(x_reference)
        variance, mean = torch.var_mean(wide, (0, *range(2, wide.ndim)), correction=0)
        with torch.no_grad():
            self.reference_mean.copy_(mean)
            self.reference_var.copy_(variance)
            self.reference_count.fill_(cells)
        self._referred = True
        self._graph = (mean, variance) if mean.requires_grad else None
        shape = (1, -1) + (1,) * (wide.ndim - 2)
        return self._by(wide, mean.view(shape), variance.view(shape)).to(x_reference.dtype)

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Normalise.

        Args:
            x: `(batch, channels, *positions)`, of any batch size and any number of positions.

        Returns:
            The same shape, type and layout; halves are computed in float32.

        Raises:
            InputError: no reference in evaluation, other axes or channels, or no floating type.
        """
        if self._reads:
            return self.refer(x)
        self._check(x)
        if x.numel() == 0:
            return empty(x, self.weight, self.bias)
        if not self._referred:
            if not self.training:
                raise InputError("a reference batch", "none", "type: norm.refer(x), or with reference_pass(model)")
            with torch.no_grad():
                self.refer(x)
        wide = _wide(x)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        mean, variance = (each.to(wide.dtype).view(shape) for each in self._reference())
        cells = x[0, 0].numel()
        w = cells / (self.reference_count.to(wide.dtype) + cells)
        axes = tuple(range(2, x.ndim))
        level = wide.mean(axes, keepdim=True) if axes else wide
        own = (wide - level).square().mean(axes, keepdim=True) if axes else torch.zeros_like(wide)
        # Pooled, not E[x²] − μ²: nothing is lost far from zero.
        away = level - mean
        mean, variance = mean + w * away, (1 - w) * variance + w * own + w * (1 - w) * away.square()
        if self.training:
            self._note(self._keeping(), mean.flatten(1), variance.flatten(1))
        return self._by(wide, mean, variance).to(x.dtype)

    def _reference(self) -> tuple[Tensor, Tensor]:
        if self._graph is not None and self.training:
            return self._graph
        return self.reference_mean, self.reference_var

    def _by(self, wide: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        rate, shape = (variance + self.eps).rsqrt(), (1, -1) + (1,) * (wide.ndim - 2)
        if self.weight is not None:
            rate = rate * in_type(self.weight, wide).view(shape)  # type: ignore[union-attr]
        y = (wide - mean) * rate
        return y if self.bias is None else y + in_type(self.bias, wide).view(shape)  # type: ignore[union-attr]

    def _check(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise InputError("at least 2 axes", f"a shape of {tuple(x.shape)}", "type: x.unsqueeze(0)")
        check_channels(x, self.num_features, "VirtualBatchNorm")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As a module's; the reference's statistics keep float32 through `.half()` and `.bfloat16()`."""
        before = [self._buffers[name] for name in _NAMES]
        super()._apply(fn, recurse)
        for name, buffer in zip(_NAMES, before, strict=True):
            present = self._buffers[name]
            if buffer is not None and present is not None and present.dtype in HALVES:
                self._buffers[name] = buffer.to(present.device)
        self._graph = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: each for name, each in super().__getstate__().items() if name not in ("_graph", "_reads")}

    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)
        if not self.reference_count.is_meta:
            self._referred, self._graph = bool(self.reference_count > 0), None

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}"


@contextmanager
def reference_pass(model: nn.Module, gradient: bool = False) -> Iterator[None]:
    r"""Within it, what is forwarded through a model is the reference batch of all its VirtualBatchNorms.

    Each takes the batch as it arrives there, already normalised by the layers before it, so that one forward of the
    reference sets them all: once at the start, and again whenever weights have moved. Layers of other kinds see a batch
    like any other: with BatchNorm or dropout among them, put the model in evaluation mode for it.

    Args:
        model: with such layers; or one of them.
        gradient: whether the next backward passes through the reference's statistics too; then the reference must be
            forwarded anew before each backward, and without activation checkpointing.

    Raises:
        InputError: the model has no such layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), VirtualBatchNorm(3), nn.Tanh(), nn.Linear(3, 3), VirtualBatchNorm(3))
        >>> with reference_pass(model):
        ...     _ = model(torch.randn(64, 2))
        >>> model(torch.randn(1, 2)).shape
        torch.Size([1, 3])
    """
    layers = [each for each in model.modules() if isinstance(each, VirtualBatchNorm)]
    if not layers:
        got = f"a {type(model).__name__} without"
        raise InputError("a model with a VirtualBatchNorm", got, "type: from holdfast.norms import VirtualBatchNorm")
    for layer in layers:
        layer._reads = True
    try:
        with torch.set_grad_enabled(gradient):
            yield
    finally:
        for layer in layers:
            layer._reads = False


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALVES else x
