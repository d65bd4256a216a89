"""`re-estimate`: the running statistics of BatchNorm layers, measured anew with the weights as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.hooks import HookSet
from holdfast.live.optimiser import check_owner
from holdfast.live.random_state import RandomState, preserved_random_state
from holdfast.live.surgery import check_model
from holdfast.stats.channels import ChannelMoments
from holdfast.treatments.change import Batch, Change, call_of, planned, rerun
from holdfast.treatments.frozen import FROZEN
from holdfast.treatments.left import left_alone, why_nothing
from holdfast.treatments.places import expression, named

_KINDS = tuple(FROZEN)
"""The BatchNorms of torch's and ours."""
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, slots=True, eq=False)
class ReEstimate:
    """Measures the running mean and variance of BatchNorm layers anew, with the weights as they are.

    What it does:
        The batches go through the model once, without gradient, the BatchNorms concerned on batch statistics and
        every other module in the mode it is in. Each running mean and variance becomes that of all values of the
        channel over all batches: each sample weighs the same, whatever the size of its batch, and what differs
        between batches counts (law of total variance):

            n = Σ nᵢ,   μ = Σ nᵢ μᵢ / n,   σ² = Σ (nᵢ σᵢ² + nᵢ (μᵢ − μ)²) / (n − 1)

        with biased σᵢ²; n − 1, since torch keeps the unbiased variance. A layer that runs several times in a forward
        pools its calls. Parameters, gradients, the optimiser, modes and random generators stay as they are.
        `num_batches_tracked` does too, except with `momentum=None`, where it becomes the number of batches pooled, so
        that the cumulative average goes on from them.

    When it helps:
        When the running statistics lag behind the weights or mix in other data: few steps at a small momentum, a
        large rate at the end, averaged weights, weights that were changed by hand, another domain, small batches.

    When it is wrong:
        On few samples the estimate is noisier than the average it replaces. A model in train mode is measured with its
        Dropout at work: call `model.eval()` first if it serves so. In training the statistics go on moving from
        here. An undo after further training puts back the statistics of before, which are older than the weights.
        InstanceNorm, SyncBatchNorm among several processes and subclasses of BatchNorm (other than ours) are
        left alone.

    Example:
        >>> norm = nn.Sequential(nn.BatchNorm1d(1))
        >>> batches = [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0]] * 4)]
        >>> receipt = ReEstimate(batches=batches).plan(norm, None).apply()
        >>> round(norm[0].running_mean.item(), 4), round(norm[0].running_var.item(), 4)
        (3.0, 2.8)
        >>> receipt.undo()
        >>> norm[0].running_mean, norm[0].running_var
        (tensor([0.]), tensor([1.]))

    Args:
        batch: one batch, what the model is called with; without `batches` the statistics are its own. The receipt's
            errors are measured on it.
        batches: several: a list, a loader, or a function without arguments that gives either. A generator serves one
            `apply`; for more pass what makes it: `batches=lambda: my_generator()`. Without `batch` the errors are
            measured on the first.
        inputs: what the model is called with, from one item of `batches`; of a loader of pairs
            `inputs=lambda pair: pair[0]`.

    References:
        Wu and Johnson, Rethinking "batch" in BatchNorm, 2021, arXiv:2105.07576, section 3.
    """

    name = "re-estimate"

    batch: Batch | None = None
    batches: Any = None
    inputs: Callable[[Any], Any] | None = None

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out which layers are measured; no batch is read yet.

        Args:
            model: the model.
            optimizer: the one that steps it, if any.
            sites: which layers; every one that qualifies when none is named.

        Returns:
            The plan; its diff also names the layers left alone, and why.

        Raises:
            InputError: there are no batches, or `batches` is nothing that gives any.
            SurgeryError: no layer qualifies, or the model cannot be operated on.
        """
        check_model(model)
        if optimizer is not None:
            check_owner(model, optimizer)
        stream = _Stream(self.batch, self.batches, self.inputs)
        norms: dict[str, _BatchNorm] = {}
        diff = []
        for path, module in named(model, sites) or list(model.named_modules()):
            reason = _reason(module)
            if reason:
                diff += [left_alone(path, reason)] if isinstance(module, _BatchNorm) else []
            elif isinstance(module, _BatchNorm):
                norms[path] = module
                diff += [f"- {path}: running statistics of {_past(module)}", f"+ {path}: those of the batches given"]
        if not norms:
            raise SurgeryError(
                "a BatchNorm with running statistics",
                why_nothing(diff) or "none" + (" among those named" if sites else ""),
                "leave the model as it is",
            )

        def change() -> Change:
            return _write(norms, _measure(model, norms, stream))

        source = _lines([expression(model, path) for path in norms], self.batch if self.batches is None else None)
        return planned(self.name, model, change, diff="\n".join(diff), source=source, batch=stream.first)


class _Stream:
    """The batches: those of one `apply` are opened by `first` and read once by iteration."""

    def __init__(self, batch: Any, batches: Any, inputs: Callable[[Any], Any] | None) -> None:
        if batches is None and batch is not None:
            batches, inputs = [batch], None
        if not callable(batches) and (not isinstance(batches, Iterable) or isinstance(batches, Tensor | str)):
            raise InputError(
                "batches to measure on: batch= for one, batches= for a list, a loader or a function that gives either",
                "none" if batches is None else f"batches= a {type(batches).__name__}",
                "type: holdfast.treatments.ReEstimate(batches=loader, inputs=lambda pair: pair[0])",
            )
        self._example, self._batches, self._inputs = batch, batches, inputs
        self._read = False  # a generator, once
        self._items: Iterator[Any] = iter(())
        self._random = RandomState.capture()

    def first(self) -> Any:
        """Begin anew: the batch on which errors are measured."""
        with preserved_random_state():  # a loader that shuffles draws its seed here
            source = self._batches() if callable(self._batches) else self._batches
            self._items = iter(source)
            if self._items is self._batches:
                if self._read:
                    raise InputError(
                        "batches that can be read again",
                        f"a {type(source).__name__}, which an earlier apply has read",
                        "pass what makes it: batches=lambda: my_generator()",
                    )
                self._read = True
            try:
                head = next(self._items)
            except StopIteration:
                raise InputError("at least one batch", "none", "give batches=[…] that are not empty") from None
            self._random = RandomState.capture()
        self._items = chain([head], self._items)
        return self._called_with(head) if self._example is None else self._example

    def __iter__(self) -> Iterator[Any]:
        self._random.restore()  # batches that are made up by the global generators go on from the first
        return map(self._called_with, self._items)

    def _called_with(self, item: Any) -> Any:
        return item if self._inputs is None else self._inputs(item)


def _reason(module: nn.Module) -> str:
    """Why a module is not measured, `""` when it is."""
    if type(module) not in _KINDS:
        return f"{type(module).__name__} may use its statistics in its own way"
    if module.running_mean is None:
        return "it keeps no running statistics"
    if isinstance(module, nn.SyncBatchNorm) and torch.distributed.is_available() and torch.distributed.is_initialized():
        return "each process would measure its own part of the batches only"
    return ""


def _past(norm: _BatchNorm) -> str:
    count = norm.num_batches_tracked
    if norm.momentum is None:
        return f"the average over {0 if count is None else int(count)} batches"
    return f"a moving average with momentum {norm.momentum:g}"


@dataclass(slots=True, eq=False)
class _Pool:
    """What one layer was given: moments of each channel over its calls."""

    moments: ChannelMoments
    calls: int = 0

    def add(self, values: Tensor) -> None:
        """Merge the input of one call, `(batch, channels, *spatial)`."""
        rows = values.detach().double().transpose(0, 1).flatten(1)
        count = rows.new_full((len(rows),), rows.shape[1])
        variance, mean = torch.var_mean(rows, 1, correction=0)
        columns = (count, mean, variance * count, (rows == 0).sum(1).double())
        self.moments += ChannelMoments(*(each.cpu().numpy() for each in columns))
        self.calls += 1


def _measure(model: nn.Module, norms: dict[str, _BatchNorm], batches: Iterable[Any]) -> dict[str, _Pool]:
    """Run the batches; nothing is changed by it, also when one fails."""
    pools = {path: _Pool(ChannelMoments.empty()) for path in norms}
    modes = [(norm, norm.training) for norm in norms.values()]
    hooks = HookSet()
    for path, norm in norms.items():
        hooks.pre(norm, _listener(pools[path]))
    try:
        with hooks, preserved_random_state():
            for norm, _ in modes:
                norm.training = True
            for batch in batches:
                rerun(model, call_of(batch))
                # every replay puts the generators back; Dropout is to draw other masks for the next batch
                torch.manual_seed(int(torch.randint(2**62, ())))
    finally:
        for norm, mode in modes:
            norm.training = mode
    for path, pool in pools.items():
        _check(path, norms[path], pool)
    return pools


def _listener(pool: _Pool) -> Callable[..., None]:
    def entered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = args[0] if args else kwargs["input"]
        if values.ndim > 1 and values.shape[1] == module.num_features:  # else the forward itself says what is wrong
            pool.add(values)

    return entered


def _check(path: str, norm: _BatchNorm, pool: _Pool) -> None:
    moments = pool.moments
    if not moments.channels or moments.count.min() < 2:
        raise SurgeryError(
            "batches that reach every BatchNorm concerned",
            f"none with two values a channel at {path}",
            "give other batches, or name the layers that run with sites=",
        )
    assert norm.running_var is not None
    greatest = torch.finfo(norm.running_var.dtype).max
    with np.errstate(over="ignore"):
        largest = np.maximum(abs(moments.mean), moments.m2 / (moments.count - 1))
    if not (largest <= greatest).all():
        raise InputError(
            f"finite statistics that fit {norm.running_var.dtype}",
            f"NaN, an infinity or too large ones in the input of {path}",
            "look at the batches, and at the layers before it",
        )


def _write(norms: dict[str, _BatchNorm], pools: dict[str, _Pool]) -> Change:
    """Put the statistics in, into the very buffers that are there; all or nothing."""
    kept = [
        (norm, name, buffer.clone())
        for norm in norms.values()
        for name in _STATISTICS
        if (buffer := norm._buffers.get(name)) is not None
    ]

    def undo() -> None:
        if any(norm._buffers.get(name) is None for norm, name, _ in kept):
            raise SurgeryError(
                "the layers with their running statistics", "one that has none now", "undo the later change first"
            )
        with torch.no_grad():
            for norm, name, value in kept:
                norm.get_buffer(name).copy_(value)

    lines = []
    try:
        for path, norm in norms.items():
            lines += _settle(path, norm, pools[path])
    except BaseException:  # Ctrl-C among them
        undo()
        raise
    return Change(tuple(lines), undo)


@torch.no_grad()
def _settle(path: str, norm: _BatchNorm, pool: _Pool) -> list[str]:
    moments = pool.moments
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    unbiased = moments.m2 / (moments.count - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = abs(moments.mean - mean.double().cpu().numpy()) / moments.sd
    mean.copy_(torch.from_numpy(moments.mean))
    variance.copy_(torch.from_numpy(unbiased))
    furthest = f", a mean moved by up to {np.nanmax(moved):.2g} SD" if np.isfinite(moved).any() else ""
    lines = [
        f"{path}: {_past(norm)} → statistics of {int(moments.count[0]):,} values a channel from {pool.calls} "
        f"{'call' if pool.calls == 1 else 'calls'}{furthest}"
    ]
    count = norm.num_batches_tracked
    if norm.momentum is None and count is not None:
        lines.append(f"{path}: num_batches_tracked {int(count)} → {pool.calls}")
        count.fill_(pool.calls)
    return lines


def _lines(norms: list[str], batch: Any) -> str:
    call = "*batch" if isinstance(batch, tuple) else "**batch" if isinstance(batch, dict) else "batch"
    return f"""\
norms = [{", ".join(norms)}]
modes = [norm.training for norm in norms]
pooled = {{}}

def pool(norm, args):
    rows = args[0].detach().double().transpose(0, 1).flatten(1)
    calls, n, mean, m2 = pooled.get(norm, (0, 0, 0.0, 0.0))
    more, gap = rows.shape[1], rows.mean(1) - mean
    m2 = m2 + rows.var(1, correction=0) * more + gap**2 * (n * more / (n + more))
    pooled[norm] = calls + 1, n + more, mean + gap * (more / (n + more)), m2

hooks = [norm.register_forward_pre_hook(pool) for norm in norms]
for norm in norms:
    norm.training, norm.track_running_stats = True, False  # batch statistics, none kept
with torch.no_grad():
    for batch in {"[batch]" if batch is not None else "batches"}:
        model({call})  # as you call it
for hook, norm, mode in zip(hooks, norms, modes):
    hook.remove()
    calls, n, mean, m2 = pooled[norm]
    norm.training, norm.track_running_stats = mode, True
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(m2 / (n - 1))
    if norm.momentum is None:
        norm.num_batches_tracked.fill_(calls)"""
