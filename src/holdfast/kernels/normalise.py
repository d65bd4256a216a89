"""Normalisation by the compiled kernels: which tensors they take, and the passes as operations of autograd."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from holdfast.kernels import threads
from holdfast.kernels.dispatch import readable
from holdfast.kernels.norm_ref import channel_norm_ref, row_norm_ref

_PIECE = 16_384  # elements along which memory is read at once: 64 KB of float32, within a second-level cache
_COLUMN_PIECE = 8_192  # read twice: within a first-level cache
_ALONE = 32_768  # elements below which one thread is faster than two
_BLOCKS = 64  # of rows: enough to share between cores, few enough for their sums to stay small
_ROWS = 16  # of a block, at least
_SHAPES = 64  # of which the geometry is kept
_SPARE = 4 << 20  # bytes of a shape's rooms that are kept for the next step; more would be a leak where shapes vary
_TYPES = {torch.float32: 0, torch.bfloat16: 1}


class Kept:
    """What a layer's last training step computed anyway: filled by the passes, read when somebody asks."""

    def __init__(self, given: tuple[Tensor | None, Tensor] | None = None) -> None:
        self.given = given
        """Mean (`None` where nothing is centred) and variance, from whoever computed them without a kernel."""
        self.eps: float | None = None
        """Where what was given is not σ² but 1 / √(σ² + ε)."""
        self.in_rows = False
        """Whether it is one value a row, whatever its shape."""
        self.sums: tuple[Tensor | None, Tensor | None] | None = None
        """The same of Σ dy and Σ dy · x̂."""
        self.plan: _Plan | None = None
        self.room: _Room | None = None
        self.totals: NDArray[np.float64] | None = None

    def take(self, y: Tensor, mean: Tensor, rate: Tensor, eps: float, gradients: bool) -> None:
        """Keep what an operation of torch's has computed.

        Args:
            y: its output.
            mean: μ.
            rate: 1 / √(σ² + ε).
            eps: ε.
            gradients: whether the sums of the gradient are wanted too.
        """
        if torch._C._functorch.is_functorch_wrapped_tensor(mean):
            return  # it must not outlive its transformation
        self.given, self.eps = (mean, rate), eps
        if gradients and y.grad_fn is not None:
            y.grad_fn.register_hook(self._take_gradients)

    def _take_gradients(self, inputs: tuple[Tensor | None, ...], _outputs: Any) -> None:
        self.sums = (inputs[2], inputs[1])

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance, by whoever computed them; without centring 0 and the mean square.

        Returns:
            `(statistics, groups)` or `(rows,)`; of the kernels in float64. Views, good until the next pass.
        """
        if self.plan is not None and self.room is not None:
            mean, variance = torch.from_numpy(self.plan.view(self.room, "moments"))
            return mean, variance
        assert self.given is not None
        mean, variance = self.given[0], self.given[1].detach()
        mean = None if mean is None else mean.detach()
        if self.in_rows:
            mean, variance = None if mean is None else mean.flatten(), variance.flatten()
        if self.eps is not None:
            variance = (variance.double().pow(-2) - self.eps).clamp(min=0.0)
        return torch.zeros_like(variance) if mean is None else mean, variance

    def _by_sample(self, plan: _Plan, cut: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of every channel of every sample; the backward pass writes over them."""
        samples, pieces, positions, length = cut
        assert self.room is not None
        mean, m2 = torch.from_numpy(plan.view(self.room, "sums").reshape(2, samples, pieces, -1))
        counts = torch.full((pieces, 1), float(length), dtype=torch.float64)
        counts[-1] = positions - length * (pieces - 1)
        centre = (mean * counts).sum(1) / positions
        spread = (m2 + counts * (mean - centre.unsqueeze(1)).square()).sum(1) / positions
        return centre, spread

    def figures(self) -> dict[str, Tensor]:
        """Everything by name, as telemetry.

        Returns:
            `mean` and `variance`, or `mean_square`; after a backward pass `gradient_sum` and `gradient_product`,
            `(statistics, channels)` or `(width,)`; before it, where the kernel took them, `sample_mean` and
            `sample_variance` of every channel of every sample, `(samples, channels)`. Empty before the first pass.
        """
        if self.plan is None and self.given is None:
            return {}
        mean, variance = self.moments()
        centred = self.plan.centre if self.plan is not None else self.given is not None and self.given[0] is not None
        found = {"mean": mean.clone(), "variance": variance.clone()} if centred else {"mean_square": variance.clone()}
        sums = self.sums if self.totals is None else torch.from_numpy(self.totals).clone().unbind()
        if self.totals is None and self.plan is not None and self.plan.samples is not None:
            found["sample_mean"], found["sample_variance"] = self._by_sample(self.plan, self.plan.samples)
        names = ("gradient_sum", "gradient_product")
        return found | {name: each for name, each in zip(names, sums or (), strict=False) if each is not None}


@dataclass(frozen=True, slots=True)
class Channels:
    """Which cells of `(samples, channels, *positions)` share a statistic."""

    groups: int
    bounds: tuple[int, ...] | range
    """The sample with which each run begins, and the number of samples."""
    centre: bool = True


def takes(x: Any, floor: int = 0) -> bool:
    """Whether the compiled kernels take a tensor: by its size, type and memory, and by what is being traced.

    Under `torch.compile`, `torch.func`'s transforms and forward-mode differentiation they do not: the compiler fuses
    plain operations, and the others need operations that they know.

    Args:
        x: what would be normalised.
        floor: bytes below which it does not pay; `HOLDFAST_KERNELS=compiled` takes tensors of any size.

    Returns:
        Whether `channel_norm` and `row_norm` may be called with it.
    """
    # The cheapest test that says no comes first: small tensors feel every microsecond.
    if torch.compiler.is_compiling() or (x.nbytes < floor and _mode() != "compiled"):
        return False
    return (
        x.dtype in _TYPES
        and readable(x)
        and torch.autograd.forward_ad._current_level < 0
        and not torch._C._is_tracing()
        and _mode() != "reference"
    )


def channel_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, over: Channels, kept: Kept
) -> Tensor:
    """Normalise: y = γ · (x − μ) / √(σ² + ε) + β, each statistic over a run of samples and a group of channels.

    Args:
        x: `(samples, channels, *positions)` that `takes` allows.
        weight: γ, `(channels,)`.
        bias: β.
        eps: ε.
        over: which cells share a statistic.
        kept: filled with the statistics, and in the backward pass with the sums of the gradient.

    Returns:
        The shape, type and layout of x.
    """
    # Made contiguous before the operation, which saves what it is given: a copy of its own would be in no graph.
    x, planes = _laid_out(x)
    return _ChannelNorm.apply(x, planes, weight, bias, eps, over, kept)  # type: ignore[no-untyped-call]


def row_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centre: bool, kept: Kept) -> Tensor:
    """Normalise: y = γ · (x − μ) / √(σ² + ε) + β, a statistic a row; not centred, μ is 0 and σ² the mean square.

    Args:
        x: rows along the last axis, which `takes` allows.
        weight: γ, `(width,)`.
        bias: β.
        eps: ε.
        centre: whether the mean is subtracted.
        kept: filled with the statistics, and in the backward pass with the sums of the gradient.

    Returns:
        The shape and type of x, contiguous.
    """
    return _RowNorm.apply(x.contiguous(), weight, bias, eps, centre, kept)  # type: ignore[no-untyped-call]


class _ChannelNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        planes: bool,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        over: Channels,
        kept: Kept,
    ) -> Tensor:
        plan = _channel_plan(x.shape, planes, _TYPES[x.dtype], over, eps)
        room = plan.room()
        y = torch.empty_like(x)
        gain, level = _wide(weight), _wide(bias)
        words = room.words
        words[plan.x], words[plan.y] = x.data_ptr(), y.data_ptr()
        words[plan.weight], words[plan.bias] = _address(gain), _address(level)
        _run_channels(0, plan, room)
        kept.plan, kept.room, kept.totals = plan, room, None
        ctx.save_for_backward(x, weight, bias)
        ctx.plan, ctx.room, ctx.over, ctx.eps, ctx.kept = plan, room, over, eps, kept
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weight, bias = ctx.saved_tensors
        plan, room = ctx.plan, ctx.room
        if torch.is_grad_enabled():  # a graph of the gradient is wanted: second derivatives
            over, eps = ctx.over, ctx.eps

            def plain(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
                return channel_norm_ref(x, weight, bias, eps, over.groups, over.bounds, over.centre)

            slope, *others = _again(plain, (x, weight, bias), dy)
            return slope, None, *others, None, None, None
        dx, dy, gain = torch.empty_like(x), _like(dy, x), _wide(weight)
        words = room.words
        words[plan.x], words[plan.y], words[plan.dy] = x.data_ptr(), dx.data_ptr(), dy.data_ptr()
        words[plan.weight] = _address(gain)
        _run_channels(1, plan, room)
        totals = plan.view(room, "totals")
        if ctx.kept.room is room:
            ctx.kept.totals = totals  # a view, as long as the room is kept
        return dx, None, *_parameter_gradients(totals.sum(1), weight, bias), None, None, None


def _run_channels(which: int, plan: _Plan, room: _Room) -> None:
    from holdfast.kernels.norm_cpu import FUSED, GROUPS, JOIN, MAP, PIECES, STATISTICS, SUMS

    function = _compiled("channels", plan.kind)[which]
    cores = 1 if plan.elements < _ALONE else torch.get_num_threads()
    # Twice as many parts as threads: a core that is held up takes fewer. Whoever takes one, the bits are the same.
    if cores == 1:
        plan.call(function, room, FUSED, STATISTICS, 1)
    elif plan.statistics >= cores:
        plan.call(function, room, FUSED, STATISTICS, min(plan.statistics, 2 * cores))
    elif plan.planes and plan.groups >= cores:
        plan.call(function, room, FUSED, GROUPS, min(plan.groups, 2 * cores))
    else:
        plan.call(function, room, SUMS, PIECES, min(plan.pieces, 2 * cores))
        plan.call(function, room, JOIN, GROUPS, 1)
        plan.call(function, room, MAP, PIECES, min(plan.pieces, 2 * cores))


class _RowNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centre: bool, kept: Kept
    ) -> Tensor:
        plan = _row_plan(x.numel() // x.shape[-1], x.shape[-1], _TYPES[x.dtype], centre, eps)
        room = plan.room()
        y = torch.empty_like(x)
        gain, level = _wide(weight), _wide(bias)
        words = room.words
        words[plan.x], words[plan.y] = x.data_ptr(), y.data_ptr()
        words[plan.weight], words[plan.bias] = _address(gain), _address(level)
        plan.call(_compiled("rows", plan.kind)[0], room, 0, 0, plan.pieces)
        kept.plan, kept.room, kept.totals = plan, room, None
        ctx.save_for_backward(x, weight, bias)
        ctx.plan, ctx.room, ctx.centre, ctx.eps, ctx.kept = plan, room, centre, eps, kept
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weight, bias = ctx.saved_tensors
        plan, room = ctx.plan, ctx.room
        if torch.is_grad_enabled():
            centre, eps = ctx.centre, ctx.eps

            def plain(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
                return row_norm_ref(x, weight, bias, eps, centre)

            return *_again(plain, (x, weight, bias), dy), None, None, None
        dx, dy, gain = torch.empty_like(x), _like(dy, x), _wide(weight)
        shares = plan.shares.room()
        words = room.words
        words[plan.x], words[plan.y], words[plan.dy] = x.data_ptr(), dx.data_ptr(), dy.data_ptr()
        words[plan.weight], words[plan.share] = _address(gain), shares.address
        plan.call(_compiled("rows", plan.kind)[1], room, 0, 0, plan.pieces)
        used = plan.shares.view(shares, "shares")[: 2 * plan.pieces]
        totals = used.reshape(2, plan.pieces, -1).sum(1)
        if ctx.kept.room is room:
            ctx.kept.totals = totals
        return dx, *_parameter_gradients(totals, weight, bias), None, None, None


def _parameter_gradients(
    totals: NDArray[np.float64], weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    narrow = totals.astype(np.float32)
    slope = None if weight is None else torch.from_numpy(narrow[1])
    level = None if bias is None else torch.from_numpy(narrow[0])
    return (
        slope if slope is None or weight.dtype is torch.float32 else slope.to(weight.dtype),  # type: ignore[union-attr]
        level if level is None or bias.dtype is torch.float32 else level.to(bias.dtype),  # type: ignore[union-attr]
    )


class _Plan:
    """The geometry of a shape, worked out once: what a call reads, and where its small arrays lie behind that.

    A call's `room` is one array of 8-byte words: the order that the kernel reads, then its work space. Rooms are used
    again: fresh memory of this size costs as much in page faults as a small tensor's passes.
    """

    def __init__(
        self, job: Any, order: Sequence[int], arrays: Mapping[str, tuple[int, ...]], elements: int = 0
    ) -> None:
        self.fields = () if job is None else job._fields
        self.order = list(order)
        if job is not None:
            self.x, self.y, self.dy, self.weight, self.bias = (
                self.fields.index(name) for name in ("x", "y", "dy", "weight", "bias")
            )
            self.kind, self.centre = job.kind, bool(job.centre)
        self.elements = elements
        self.free: list[tuple[NDArray[np.int64], int]] = []
        self.words = len(self.order)
        self.places: list[tuple[int, int]] = []
        self.arrays: dict[str, tuple[int, tuple[int, ...]]] = {}
        for name, shape in arrays.items():
            self.arrays[name] = (self.words, shape)
            if job is not None:
                self.places.append((self.fields.index(name), 8 * self.words))
            self.words += math.prod(shape)

    kind = 0
    centre = True
    share: int
    shares: _Plan
    planes = False
    statistics = groups = pieces = 1
    samples: tuple[int, int, int, int] | None = None
    """How many, pieces of each, positions, positions of a piece: where sums are taken of each sample's channels."""
    starts: NDArray[np.int64]

    def room(self) -> _Room:
        """One that nobody uses, or a new one."""
        try:
            return _Room(self, *self.free.pop())
        except IndexError:
            words = np.empty(self.words, np.int64)
        words[: len(self.order)] = self.order
        base = words.ctypes.data
        for field, offset in self.places:
            words[field] = base + offset
        return _Room(self, words, base)

    def view(self, room: _Room, name: str) -> NDArray[np.float64]:
        """One of the float64 arrays in a room; good as long as the room is."""
        start, shape = self.arrays[name]
        return room.words[start : start + math.prod(shape)].view(np.float64).reshape(shape)

    def call(self, function: int, room: _Room, step: int, source: int, parts: int) -> None:
        """Run one step, in so many parts at most side by side."""
        end, words = len(self.order), room.words
        words[end - 4], words[end - 3], words[end - 2], words[end - 1] = step, source, parts, 0
        threads.run(function, room.address, 1 if self.elements < _ALONE else parts)


class _Room:
    """The memory of one call, which goes back to its plan when the last who needs it lets go."""

    __slots__ = ("address", "plan", "words")

    def __init__(self, plan: _Plan, words: NDArray[np.int64], address: int) -> None:
        self.plan, self.words, self.address = plan, words, address

    def __del__(self) -> None:
        if (len(self.plan.free) + 1) * self.words.nbytes <= _SPARE:
            self.plan.free.append((self.words, self.address))


@lru_cache(_SHAPES)
def _channel_plan(shape: tuple[int, ...], planes: bool, kind: int, over: Channels, eps: float) -> _Plan:
    from holdfast.kernels.native_cpu import order
    from holdfast.kernels.norm_cpu import Job

    samples, channels = shape[:2]
    elements = math.prod(shape)
    positions = elements // (samples * channels)
    bounds, statistics = over.bounds, len(over.bounds) - 1
    merged = not planes and statistics == 1 and positions * channels < _COLUMN_PIECE
    if merged:  # one long sample: pieces of equal size, however few positions there are
        samples, positions, bounds = 1, samples * positions, (0, 1)
    cut = min(positions, _PIECE if planes else max(1, _COLUMN_PIECE // channels))
    per_sample = -(-positions // cut)
    pieces = samples * per_sample
    starts = np.array(bounds, np.int64) * per_sample
    sizes = (kind, int(planes), channels, positions, cut, per_sample, pieces, over.groups, statistics)
    job = Job(*sizes, starts.ctypes.data, int(over.centre), *[0] * 9)
    arrays = {
        "sums": (2, pieces, channels),
        "moments": (2, statistics, over.groups),
        "totals": (2, statistics, channels),
        "coefficients": (5, statistics, channels),  # of half a word each
    }
    plan = _Plan(job, order(job, eps), arrays, elements)
    if not merged and over.groups == channels and over.centre:
        plan.samples = (samples, per_sample, positions, cut)
    plan.planes, plan.statistics, plan.groups, plan.pieces = planes, statistics, over.groups, pieces
    plan.starts = starts  # the kernel has its address
    return plan


@lru_cache(_SHAPES)
def _row_plan(rows: int, width: int, kind: int, centre: bool, eps: float) -> _Plan:
    from holdfast.kernels.native_cpu import order
    from holdfast.kernels.row_norm_cpu import RowJob

    block = max(_ROWS, -(-rows // _BLOCKS))
    job = RowJob(kind, rows, width, block, int(centre), *[0] * 7)
    plan = _Plan(job, order(job, eps), {"moments": (2, rows)}, rows * width)
    plan.pieces, plan.share = -(-rows // block), job._fields.index("shares")
    plan.shares = _row_shares(width)
    return plan


@lru_cache(_SHAPES)
def _row_shares(width: int) -> _Plan:
    """Room for the blocks' shares, however many rows there are."""
    return _Plan(None, (), {"shares": (2 * _BLOCKS, width)})


def _again(norm: Callable[..., Tensor], inputs: Sequence[Tensor | None], dy: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients by plain operations, which can be differentiated again."""
    halves = next(each for each in inputs if each is not None).dtype
    with torch.enable_grad():
        y = norm(*(None if each is None else each.to(torch.float32) for each in inputs)).to(halves)
        wanted = [each for each in inputs if each is not None and each.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True, allow_unused=True))
    return tuple(next(found) if each is not None and each.requires_grad else None for each in inputs)


def _laid_out(x: Tensor) -> tuple[Tensor, bool]:
    """The tensor as it is or made contiguous, and whether its positions lie side by side."""
    if x.ndim > 2 and x.is_contiguous():
        return x, True
    if x.ndim == 2 or not x.movedim(1, -1).is_contiguous():
        return x.contiguous(), x.ndim > 2
    return x, False


def _like(dy: Tensor, x: Tensor) -> Tensor:
    """The gradient, laid out as the input."""
    fits = dy.stride() == x.stride() and dy.dtype == x.dtype and not dy.is_neg()
    return dy if fits else torch.empty_like(x).copy_(dy)


def _wide(parameter: Tensor | None) -> Tensor | None:
    if parameter is None or (parameter.dtype is torch.float32 and parameter.is_contiguous()):
        return parameter
    return parameter.detach().to(torch.float32).contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _mode() -> str:
    return os.environ.get("HOLDFAST_KERNELS", "auto")


_lock = threading.Lock()
_built: dict[tuple[str, int], tuple[int, int]] = {}


def _compiled(family: str, kind: int) -> tuple[int, int]:
    """The addresses of a family's passes. A process's first call waits for Numba: seconds, 0.3 s once cached."""
    found = _built.get((family, kind))
    if found is None:
        with _lock:
            found = _built.get((family, kind))
            if found is None:
                if family == "rows":
                    from holdfast.kernels import row_norm_cpu as home
                else:
                    from holdfast.kernels import norm_cpu as home  # type: ignore[no-redef]
                found = _built[family, kind] = home.build(bool(kind))
    return found
