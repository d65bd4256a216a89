"""`Norm`: the module of any specification, for those that no other class is written for."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.norms.batch_norm import check_channels
from holdfast.norms.normaliser import HALVES, Normaliser, empty
from holdfast.norms.running import Tracked, check_momentum
from holdfast.norms.spec import NormSpec


class Norm(Normaliser, Tracked, nn.Module):
    r"""The normaliser that a `NormSpec` describes, in plain PyTorch where no kernel knows it.

    What it does:
        `NormSpec.formula`, with γ of ones and β of zeros at first.

    Why it matters:
        A combination that nobody has named yet is tried in a line: RMS over groups, statistics over positions
        without centring, LayerNorm over channels of a sequence.

    When it is wrong:
        Where a class of its own exists, that one is faster, has torch's keys, and is tested against torch.

    Example:
        >>> spec = NormSpec("group-rms", over=("channels", "positions"), centre=False, scale="rms", groups=2)
        >>> Norm(spec, 4)(torch.tensor([[3.0, 3.0, 5.0, 5.0]])).detach().round(decimals=3)
        tensor([[1., 1., 1., 1.]])

    What to do:
        `holdfast.norms.make(spec, num_channels=64)`.

    Args:
        spec: what is computed; without a mix or a rule, with γ for each channel, one, or none.
        num_channels: channels, on axis 1 of the input, or its last where `spec.features_last`.
        eps: ε.
        momentum: m, of running statistics; `None` is the average over all batches.
        device: of parameters and buffers.
        dtype: of parameters.

    Raises:
        InputError: a spec that needs a class of its own, groups that do not divide, m outside [0, 1], or ε below 0.

    References:
        Huang et al., Normalization Techniques in Training DNNs, 2020, arXiv:2009.12836 (the common form).
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        spec: NormSpec,
        num_channels: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_momentum(momentum, eps)
        per_channel = spec.over == ("samples", "positions") or spec.over == ("samples",)
        if spec.mix or spec.then or (spec.affine == "elements" and not spec.features_last):
            raise InputError("a spec of axes and a scale", f"{spec.formula}", "the rest have classes of their own")
        if spec.state == "running" and not per_channel:
            raise InputError("one running statistic a channel", f"one over {spec.over}", 'type: state="none"')
        if num_channels % spec.groups:
            raise InputError("groups that divide the channels", f"{spec.groups} of {num_channels}", "take a divisor")
        self.spec, self.num_channels, self.eps, self.momentum = spec, num_channels, eps, momentum
        kind = {"device": device, "dtype": dtype}
        size = {"none": None, "one": 1}.get(spec.affine, num_channels)
        self.weight = None if size is None else nn.Parameter(torch.ones(size, **kind))
        self.bias = None if size is None or not spec.bias else nn.Parameter(torch.zeros(size, **kind))
        tracks = spec.state == "running"
        self.register_buffer("running_mean", torch.zeros(num_channels, device=device) if tracks else None)
        self.register_buffer("running_var", torch.ones(num_channels, device=device) if tracks else None)
        counter = torch.tensor(0, dtype=torch.long, device=device) if tracks else None
        self.register_buffer("num_batches_tracked", counter)

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Normalise.

        Args:
            x: `(batch, channels, *positions)`, or with the channels last.

        Returns:
            The same shape and type.

        Raises:
            InputError: fewer than 2 axes, other channels, or no floating type.
        """
        if x.dim() < 2:
            raise InputError("at least 2 axes", f"a shape of {tuple(x.shape)}", "type: x.unsqueeze(0)")
        check_channels(x.movedim(-1, 1) if self.spec.features_last else x, self.num_channels, "make")
        if x.numel() == 0:
            return empty(x, self.weight, self.bias) if not self.spec.features_last else x
        wide = x.float() if x.dtype in HALVES else x
        named = {"weight": self.weight, "bias": self.bias}
        given = {name: each.to(wide.dtype) for name, each in named.items() if each is not None}
        running = None
        if self.spec.state == "running" and not self.training:
            assert self.running_mean is not None
            assert self.running_var is not None
            running = (self.running_mean.to(wide.dtype), self.running_var.to(wide.dtype))
        elif self.training:
            self._told(wide.detach())
        return self.spec.reference(wide, given, self.eps, running).to(x.dtype)

    def _told(self, x: Tensor) -> None:
        """Keep one value a statistic as telemetry, and move the running ones."""
        if not self.spec.over:
            return
        mean, variance = (self.spec.distinct(each) for each in self.spec.statistics(x))
        if self.spec.state == "running":
            self._track(mean.flatten(), variance.flatten(), x.numel() / self.num_channels)
        self._note(self._keeping(), mean if self.spec.centre else None, variance)

    def extra_repr(self) -> str:
        """The formula."""
        return f"{self.num_channels}, {self.spec.formula}"
