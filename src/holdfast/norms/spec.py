"""`NormSpec`: what a normaliser computes, as one value from which its formula, its reference and its picture follow."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from holdfast.core.errors import InputError

Axis = Literal["samples", "channels", "positions"]
Scale = Literal["sd", "rms", "l2", "none"]
Affine = Literal["channels", "elements", "one", "none"]
State = Literal["none", "running"]
Then = Literal["", "threshold", "tanh", "swish", "larger"]

AXES: tuple[Axis, ...] = ("samples", "channels", "positions")
_LETTER = {"samples": "n", "channels": "c", "positions": "s"}
_DENOMINATOR = {"sd": "√(σ²{0} + ε)", "rms": "√(m{0} + ε)", "l2": "max(‖x‖{0}, ε)"}


def affine_of(weight: Tensor | None, shape: Affine = "channels") -> Affine:
    """The shape of γ, or that there is none.

    Args:
        weight: γ.
        shape: of γ where there is one.

    Returns:
        As `NormSpec.affine`.
    """
    return "none" if weight is None else shape


@dataclass(frozen=True, slots=True)
class NormSpec:
    """One normaliser: which cells share a statistic, what is done with it, and what is kept.

    An input is `(samples, channels, *positions)`, or `(samples, *positions, channels)` where `features_last`. μ is the
    mean, σ² the biased variance, m the mean square of the cells that share a statistic.

    Args:
        name: as in `make`.
        over: the axes whose cells share one statistic; none for a rule without one.
        centre: whether the mean is subtracted.
        scale: what it is divided by: √(σ² + ε), √(m + ε), the larger of the L2 norm and ε, or nothing.
        affine: γ for each channel, for each element that shares a statistic, one for all, or none.
        bias: whether there is a β of γ's shape; it needs γ.
        state: whether evaluation uses running statistics instead of the input's.
        groups: into how many runs of equal length the channels are cut, each with a statistic of its own.
        chunk: the fewest samples that share a statistic; 0 for all of them.
        features_last: whether the channels are the last axis.
        then: the rule beside or after the statistic: `threshold` max(y, τ), `tanh` of αx, `swish` of x instead of x,
            `larger` of two denominators; `""` for none.
        mix: specs that are mixed, instead of `over`'s own.
        mixes: whether it is their statistics that are mixed, or their outputs.

    Raises:
        InputError: groups without channels among the axes, or a chunk without samples.

    Example:
        >>> NormSpec("group", over=("channels", "positions"), groups=8).formula
        'y = γ_c · (x − μ_ng) / √(σ²_ng + ε) + β_c'
    """

    name: str
    over: tuple[Axis, ...]
    centre: bool = True
    scale: Scale = "sd"
    affine: Affine = "channels"
    bias: bool = True
    state: State = "none"
    groups: int = 1
    chunk: int = 0
    features_last: bool = False
    then: Then = ""
    mix: tuple[NormSpec, ...] = ()
    mixes: Literal["statistics", "outputs"] = "statistics"

    def __post_init__(self) -> None:
        if self.groups < 1 or (self.groups > 1 and "channels" not in self.over):
            raise InputError(
                "groups of channels that share a statistic",
                f"groups={self.groups} over {', '.join(self.over)}",
                'type: over=("channels", "positions")',
            )
        if self.chunk and "samples" not in self.over:
            raise InputError(
                "chunks of samples that share a statistic",
                f"chunk={self.chunk} over {', '.join(self.over)}",
                'type: over=("samples", "positions")',
            )

    @property
    def index(self) -> str:
        """Letters of what has a statistic of its own: n a sample, k a chunk, c a channel, g a group, s a position."""
        kept = [_LETTER[axis] for axis in AXES if axis not in self.over]
        if self.chunk:
            kept.insert(0, "k")
        if self.groups > 1:
            kept.insert(1 if kept and kept[0] in "nk" else 0, "g")
        return "".join(kept)

    @property
    def formula(self) -> str:
        """What is computed, on one line."""
        level = f" + {self._gain('β')}" if self.bias and self.affine != "none" else ""
        gain = f"{self._gain('γ')} · " if self.affine != "none" else ""
        if self.mix and self.mixes == "statistics":
            parts = " + ".join(f"w_{each.name}·{{0}}_{each.index}" for each in self.mix)
            means, squares = parts.format("μ"), parts.format("σ²").replace("w_", "v_")
            return f"y = {gain}(x − μ) / √(σ² + ε){level}, μ = {means}, σ² = {squares}"
        if self.mix:
            parts = " + ".join(f"w_{each.name}·{each._ratio()}" for each in self.mix)
            return f"y = {gain}({parts}){level}"
        y = f"{gain}{self._ratio()}{level}"
        return f"y = max({y}, τ_c)" if self.then == "threshold" else f"y = {y}"

    def _ratio(self) -> str:
        index = f"_{self.index}" if self.index else ""
        if self.then == "tanh":
            return "tanh(α·x)"
        if self.then == "larger":
            return f"x / max(√(σ²{index} + ε), v_c·x + √(σ²_nc + ε))"
        top = "x·sigmoid(v_c·x)" if self.then == "swish" else f"(x − μ{index})" if self.centre else "x"
        return top if self.scale == "none" else f"{top} / {_DENOMINATOR[self.scale].format(index)}"

    def _gain(self, letter: str) -> str:
        if self.affine == "elements":
            return f"{letter}_{''.join(_LETTER[axis] for axis in AXES if axis in self.over)}"
        return f"{letter}_c" if self.affine == "channels" else letter

    def cells(self, samples: int, channels: int, positions: int) -> Bool[Tensor, "samples channels positions"]:
        """Which cells share their statistic with the first one: the picture of the axes.

        Args:
            samples: length of the axis N.
            channels: length of C.
            positions: how many positions there are.

        Returns:
            `(samples, channels, positions)`; of a mix the cells of all its parts, without a statistic only the first.

        Example:
            >>> NormSpec("instance", over=("positions",)).cells(2, 2, 3)[0].tolist()
            [[True, True, True], [False, False, False]]
        """
        found = torch.zeros(samples, channels, positions, dtype=torch.bool)
        for part in self.mix:
            found |= part.cells(samples, channels, positions)
        if not self.mix:
            n = min(self.chunk or samples, samples) if "samples" in self.over else 1
            c = max(1, channels // self.groups) if "channels" in self.over else 1
            found[:n, :c, : positions if "positions" in self.over else 1] = True
        return found

    def statistics(
        self, x: Shaped[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*statistics"], Float[Tensor, "*statistics"]]:
        """Mean and biased variance; without `centre` 0 and the mean square.

        Args:
            x: of a floating type, in which they are computed.

        Returns:
            Both as x, with one value for every cell: those that share a statistic have the same.
        """
        if self.features_last:
            x = x.movedim(-1, 1)
        view = self._view(x)
        axes = self._reduced(x.ndim - 2)
        mean = _mean(view, axes) if self.centre else view.new_zeros(())
        square = _mean((view - mean).square(), axes) if self.over else view.new_zeros(())
        return tuple(self._back(each.expand_as(view), x) for each in (mean, square))  # type: ignore[return-value]

    def distinct(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*statistics"]:
        """One value a statistic, from one for every cell.

        Args:
            values: as `statistics` gives them.

        Returns:
            `(chunks, samples, groups, channels, *positions)` without the axes that share a statistic.

        Example:
            >>> spec = NormSpec("instance", over=("positions",))
            >>> spec.distinct(spec.statistics(torch.randn(2, 3, 7))[0]).shape
            torch.Size([1, 2, 1, 3])
        """
        values = values.movedim(-1, 1) if self.features_last else values
        shared = self._reduced(values.ndim - 2) if self.over else ()
        view = self._view(values)
        return view[tuple(0 if axis in shared else slice(None) for axis in range(view.ndim))]

    def _view(self, x: Tensor) -> Tensor:
        """`(chunks, samples, groups, channels, *positions)`; chunks that are not alike are refused."""
        chunks = max(1, len(x) // self.chunk) if self.chunk else 1
        if len(x) % chunks:
            raise InputError(f"a batch of a multiple of {chunks}", f"{len(x)} samples", "chunks must be alike here")
        return x.unflatten(1, (self.groups, -1)).unflatten(0, (chunks, -1))  # type: ignore[no-untyped-call]

    def _reduced(self, dims: int) -> tuple[int, ...]:
        places = {"samples": (1,), "channels": (3,), "positions": tuple(range(4, 4 + dims))}
        return tuple(itertools.chain.from_iterable(places[axis] for axis in self.over))

    def _back(self, values: Tensor, x: Tensor) -> Tensor:
        values = values.reshape(x.shape)
        return values.movedim(1, -1) if self.features_last else values

    def reference(
        self,
        x: Shaped[Tensor, "*shape"],
        parameters: Mapping[str, Tensor] | None = None,
        eps: float = 1e-5,
        running: tuple[Tensor, Tensor] | None = None,
    ) -> Shaped[Tensor, "*shape"]:
        """What is computed, in plain PyTorch and in the type of x: the oracle of every faster way.

        Args:
            x: `(samples, channels, *positions)`, or with the channels last; float64 for an oracle.
            parameters: `weight` γ, `bias` β, and where the rule has them `threshold` τ, `alpha` α, `v`; of a mix
                `mean_weight` and `variance_weight` (logits), or `gate` (the first part's share).
            eps: ε.
            running: mean and variance `(channels,)` to be used instead of the input's own.

        Returns:
            The shape of x.

        Raises:
            InputError: chunks of unlike length.

        Example:
            >>> NormSpec("layer", over=("channels",)).reference(torch.tensor([[1.0, 3.0]]), eps=0.0)
            tensor([[-1.,  1.]])
        """
        given = dict(parameters or {})
        y = self._mixed(x, given, eps, running) if self.mix else self._hat(x, given, eps, running)
        if self.affine != "none" and "weight" in given:
            y = y * self._along(given["weight"], x)
        if self.bias and "bias" in given:
            y = y + self._along(given["bias"], x)
        return torch.maximum(y, self._along(given["threshold"], x)) if self.then == "threshold" else y

    def _hat(self, x: Tensor, given: dict[str, Tensor], eps: float, running: tuple[Tensor, Tensor] | None) -> Tensor:
        if self.then == "tanh":
            return torch.tanh(given["alpha"] * x)
        if running is not None and self.state == "running":
            mean, square = (self._along(each, x) for each in running)
        else:
            mean, square = self.statistics(x)
        if self.then == "larger":
            own = NormSpec("instance", ("positions",)).statistics(x)[1]
            return x / torch.maximum((square + eps).sqrt(), self._along(given["v"], x) * x + (own + eps).sqrt())
        top = x * torch.sigmoid(self._along(given["v"], x) * x) if self.then == "swish" else x - mean
        if self.scale == "l2":
            return top / (square * self._count(x)).sqrt().clamp(min=eps)
        return top if self.scale == "none" else top / (square + eps).sqrt()

    def _mixed(self, x: Tensor, given: dict[str, Tensor], eps: float, running: tuple[Tensor, Tensor] | None) -> Tensor:
        if self.mixes == "outputs":
            gate = given["gate"]
            first, second = (part._hat(x, {}, eps, running) for part in self.mix)
            return gate * first + (1 - gate) * second
        found = [
            tuple(self._along(each, x).expand_as(x) for each in running)
            if running is not None and part.state == "running"
            else part.statistics(x)
            for part in self.mix
        ]
        shares = [given[name].softmax(0) for name in ("mean_weight", "variance_weight")]
        mean, square = (
            torch.stack([share * part[i] for share, part in zip(shares[i], found, strict=True)]).sum(0)
            for i in range(2)
        )
        return (x - mean) / (square + eps).sqrt()

    def _count(self, x: Tensor) -> int:
        """How many cells share a statistic."""
        shape = x.movedim(-1, 1).shape if self.features_last else x.shape
        lengths = {
            "samples": shape[0] // max(1, shape[0] // self.chunk if self.chunk else 1),
            "channels": shape[1] // self.groups,
            "positions": shape[2:].numel(),
        }
        return torch.Size([lengths[axis] for axis in self.over]).numel()

    def _along(self, parameter: Tensor, x: Tensor) -> Tensor:
        """A parameter of one value a channel, where it meets x."""
        if self.features_last or parameter.dim() != 1 or parameter.numel() == 1:
            return parameter
        return parameter.view((1, -1) + (1,) * (x.ndim - 2))


def _mean(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Over no axes each value is its own mean; torch's would be over all of them."""
    return x.mean(axes, keepdim=True) if axes else x
