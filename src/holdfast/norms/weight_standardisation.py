"""`WeightStandardisation`: the weights of each output centred and scaled, in place of its activations."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from holdfast.core.errors import InputError
from holdfast.norms.normaliser import HALVES
from holdfast.norms.rms_norm import power_of_two_above
from holdfast.norms.running import check_eps
from holdfast.norms.sums import spread, total

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class WeightStandardisation(nn.Module):
    r"""Centres the weights of each output, and divides them by their standard deviation.

    Ŵ = g · (W − μ) / √(σ² + ε), with the mean and the biased variance over the fan-in of one output: all weights that
    it is a sum over. g is 1, or learnt, one value an output.

    What it does:
        The layer computes with Ŵ; W itself is what is stored and trained. Whatever the length and mean of W, outputs
        stay of one scale, and gradients neither grow W's mean nor its length.

    Why it matters:
        With GroupNorm behind it, it reaches BatchNorm's accuracy in image classification and detection where only 1
        or 2 samples fit a device. It costs nothing per sample, and nothing after training: fold it away.

    When it is wrong:
        Without a normaliser behind it: Ŵ has variance 1, so that outputs are √(fan-in) times larger than their inputs;
        learn g there, from a small start. With few weights an output (depthwise convolutions of 3 × 3 have 9) it
        takes much of what a kernel can be. With a BatchNorm of large batches behind it, it gains little.

    Example:
        >>> layer = weight_standardise(nn.Linear(2, 1, bias=False), eps=0.0)
        >>> with torch.no_grad():
        ...     _ = layer.parametrizations.weight.original.copy_(torch.tensor([[1.0, 5.0]]))
        >>> layer.weight.detach()
        tensor([[-1.,  1.]])

    What to do:
        `weight_standardise(conv)` for each convolution before a GroupNorm, before the optimiser is built where g is
        learnt. `remove_weight_standardisation(conv, fold=True)` after training.

    Args:
        outputs: outputs of the layer.
        eps: ε, added to the variance.
        gain: whether g (`gain`, ones at first) is learnt.
        transposed: whether W is `(inputs, outputs / groups, *kernel)`, as of transposed convolutions, instead of
            `(outputs, inputs / groups, *kernel)`.
        groups: of a transposed convolution.
        device: of g.
        dtype: of g.

    Raises:
        InputError: ε below 0.

    References:
        Qiao, Wang, Liu, Shen and Yuille, Micro-Batch Training with Batch-Channel Normalization and Weight
        Standardization, 2019, arXiv:1903.10520.
        Brock, De and Smith, Characterizing signal propagation to close the performance gap in unnormalized ResNets,
        2021, arXiv:2101.08692 (the learnt gain).
    """

    def __init__(
        self,
        outputs: int,
        eps: float = 1e-5,
        *,
        gain: bool = False,
        transposed: bool = False,
        groups: int = 1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_eps(eps)
        super().__init__()
        self.outputs, self.eps, self.transposed, self.groups = outputs, eps, transposed, groups
        self.gain = nn.Parameter(torch.ones(outputs, device=device, dtype=dtype)) if gain else None

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Standardise.

        Args:
            weight: W.

        Returns:
            Ŵ, of the same shape and type; halves are computed in float32.
        """
        wide = weight.float() if weight.dtype in HALVES else weight
        # The groups get an axis of their own: an output of a transposed W is a group and a place in it.
        view = wide.unflatten(0, (self.groups, -1)) if self.transposed else wide.unsqueeze(0)  # type: ignore[no-untyped-call]
        axes = (1, *range(3, view.dim())) if self.transposed else tuple(range(2, view.dim()))
        unit = power_of_two_above(view.detach(), axes)
        scaled, cells = view / unit, view.numel() // max(1, unit.numel())
        centred = scaled - spread(total(scaled, axes) / cells, scaled)
        rate = (total(centred.square(), axes) / cells + self.eps / unit.square()).rsqrt()
        if self.gain is not None:
            rate = rate * self.gain.to(rate.dtype).view_as(rate)
        return (centred * spread(rate, centred)).reshape(weight.shape).to(weight.dtype)

    def right_inverse(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What is stored where a weight is assigned: the weight itself.

        Args:
            weight: assigned.

        Returns:
            The same.
        """
        return weight

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.outputs}, eps={self.eps}, gain={self.gain is not None}"


def weight_standardise(module: nn.Module, *, gain: bool = False, eps: float = 1e-5) -> nn.Module:
    """Let a layer compute with its standardised weight.

    The stored weight stays the same parameter, so that an optimiser that has it goes on; g is a new one. In the
    state_dict `weight` becomes `parametrizations.weight.original`. The layer can be copied, not pickled: save its
    state_dict, as with every parametrisation of torch's.

    Args:
        module: a linear layer or a convolution, transposed or not.
        gain: whether g is learnt.
        eps: ε, added to the variance.

    Returns:
        The same module.

    Raises:
        InputError: another kind of module, a weight that has no size yet, is standardised already or has one value an
            output, or ε below 0.

    Example:
        >>> conv = weight_standardise(nn.Conv2d(8, 4, 3))
        >>> bool(conv.weight.mean((1, 2, 3)).abs().max() < 1e-6)
        True
    """
    weight = _check(module)
    transposed = isinstance(module, _TRANSPOSED)
    groups = int(module.groups) if transposed else 1  # type: ignore[arg-type]
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    on: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    own = WeightStandardisation(outputs, eps, gain=gain, transposed=transposed, groups=groups, **on)
    parametrize.register_parametrization(module, "weight", own.train(module.training))
    return module


def remove_weight_standardisation(module: nn.Module, *, fold: bool = False) -> nn.Module:
    """Undo `weight_standardise`.

    Args:
        module: that was given to it.
        fold: whether the standardised weight stays, for use after training; else the stored one is back, bit for bit.

    Returns:
        The same module, with a plain weight that is the same parameter as before.

    Raises:
        InputError: a module whose weight is not standardised, or parametrised by more than that.

    Example:
        >>> linear = nn.Linear(4, 2)
        >>> before = linear.weight
        >>> remove_weight_standardisation(weight_standardise(linear)).weight is before
        True
    """
    if not _standardised(module):
        raise InputError(
            "a module whose weight is standardised", f"a {type(module).__name__}", "type: weight_standardise(module)"
        )
    if len(module.parametrizations.weight) > 1:  # type: ignore[union-attr, arg-type]
        raise InputError(
            "a weight that is standardised and nothing else",
            f"{len(module.parametrizations.weight)} parametrisations",  # type: ignore[union-attr, arg-type]
            "torch.nn.utils.parametrize.remove_parametrizations removes all of them",
        )
    # Copies share the class that torch made for the module, and removal would take `weight` off it for all of them.
    shared = type(module)
    own = {name: each for name, each in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, own)
    return parametrize.remove_parametrizations(module, "weight", leave_parametrized=fold)


def _standardised(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module, "weight") and any(
        isinstance(each, WeightStandardisation)
        for each in module.parametrizations.weight  # type: ignore[union-attr]
    )


def _check(module: Any) -> Tensor:
    """The weight of a module whose weight can be standardised."""
    if not isinstance(module, _PLAIN + _TRANSPOSED):
        raise InputError(
            "a linear layer or a convolution",
            f"a {type(module).__name__}",
            "type: for each in list(model.modules()): ... if isinstance(each, nn.Conv2d)",
        )
    if isinstance(module.weight, nn.parameter.UninitializedParameter):
        raise InputError("a weight of a known size", "a lazy module", "run a batch through the model first")
    if _standardised(module):
        raise InputError("a plain weight", "one that is standardised already", "once is enough")
    weight = module.weight
    transposed = isinstance(module, _TRANSPOSED)
    outputs = weight.shape[1] * module.groups if transposed else weight.shape[0]  # type: ignore[operator]
    if weight.numel() <= outputs:
        raise InputError(
            "more than 1 weight an output",
            f"a weight of shape {tuple(weight.shape)}",
            "its distance from its own mean is 0: leave this layer as it is",
        )
    return weight
