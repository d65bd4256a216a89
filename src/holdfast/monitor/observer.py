"""`Observer`: reads every leaf layer's inputs, outputs and output gradients during one pass."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from time import perf_counter
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from holdfast.core.protocols import Telemetry
from holdfast.core.site import Phase, Port, Site
from holdfast.live.hooks import HookSet, on_gradient
from holdfast.live.layout import Layout, Sampling, block, layout_of
from holdfast.live.leaves import saturation_threshold, slope_of
from holdfast.live.measurable import transforming, unmeasured
from holdfast.monitor.batch_norms import batch_statistics, normalises_batches, running_before, told
from holdfast.monitor.compiled import CompiledCalls
from holdfast.monitor.reader import MOST_SKETCHED, Reader
from holdfast.monitor.roles import Roles
from holdfast.stats.batch_statistics import BatchStatistics, Running
from holdfast.stats.channels import ChannelMoments
from holdfast.stats.observation import Observation, observe

T = TypeVar("T", "Observation", "Gradient")

MAX_ELEMENTS = 16_384
"""Elements read of a tensor in sampled mode, all samples first."""

LIGHT = 4
"""By how much fewer are read, in sampled mode, for statistics alone; and fewer than are read are sketched, else.

A histogram costs as much as all the other figures together, and 4,096 values place a quantile within 1.5 % of them."""

MOST_CALLS = 16
"""Calls of a layer in one pass that are all read; of later ones those whose number is a power of two.

A recurrence that is unrolled over a thousand time steps would else have a thousand places where others have one."""


def passed_over(call: int) -> bool:
    """Whether a call of a layer, by its number in a pass, is not read.

    Args:
        call: from 0.

    Example:
        >>> [call for call in range(100) if not passed_over(call)][14:]
        [14, 15, 16, 32, 64]
    """
    return call >= MOST_CALLS and bool(call & (call - 1))


@dataclass(slots=True)
class Gradient:
    """What was seen of the gradient at a layer's output.

    Args:
        seen: over the elements read.
        elements: how many the gradient has.
        samples: how many rows it has.
        scale: what a gradient scaler, and the other ranks' averaging, make it too large by.
    """

    seen: Observation
    elements: int
    samples: int
    scale: float = 1.0

    def __add__(self, other: Gradient) -> Gradient:
        return Gradient(self.seen + other.seen, self.elements + other.elements, self.samples + other.samples)

    @property
    def norm(self) -> float:
        """L2 norm of the unscaled gradient, from the mean square of the elements read."""
        return self.seen.rms * self.elements**0.5 / self.scale


@dataclass(frozen=True, slots=True)
class _Lay:
    """How a tensor lay: what follows it element by element lies the same way when it has the same axes."""

    layout: Layout
    axes: int
    channels: int  # 0 without an axis of features

    @classmethod
    def of(cls, tensor: Tensor, layout: Layout) -> _Lay:
        return cls(layout, tensor.ndim, 0 if layout.channels is None else tensor.shape[layout.channels])

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor made by functions from one that lay so has the same axes."""
        return self.channels > 0 and tensor.ndim == self.axes and self == _Lay.of(tensor, self.layout)


class _Known(NamedTuple):
    """A tensor seen as some layer's output, so that the next layer need not read it again."""

    tensor: weakref.ref[Tensor]
    version: int
    reader: Reader
    observation: Observation

    def serves(self, reader: Reader) -> bool:
        """Whether what was read of it is what a reader would read: the same part, on the same scale, nothing beyond."""
        same = self.reader.layout == reader.layout and reader.threshold is None
        return same and self.observation.exponent == reader.exponent


class _Sums(Generic[T]):
    """What was seen at each site, added up over passes when somebody asks.

    Hooks only note it down: adding up in one go, not amid the training, finds its code in the processor's caches.

    Args:
        sums: to begin with.
    """

    def __init__(self, sums: dict[Site, T]) -> None:
        self._sums: dict[Site, T] = sums
        self._heard: list[tuple[Site, T]] = []

    def hear(self, site: Site, seen: T) -> None:
        self._heard.append((site, seen))

    def sums(self, failed: Callable[[str, Exception], None]) -> dict[Site, T]:
        """What was seen, by site; the same dictionary each time.

        Args:
            failed: called with a layer's path and the exception where two of its things do not add up.
        """
        heard, self._heard = self._heard, []
        for site, seen in heard:
            try:
                self._sums[site] = self._sums[site] + seen if site in self._sums else seen
            except Exception as error:
                failed(site.module, error)
        return self._sums


class _Work:
    """Times what a hook does for a layer; when it fails, the layer is left out from then on."""

    __slots__ = ("_begin", "_observer", "_path")

    def __init__(self, observer: Observer, path: str) -> None:
        self._observer, self._path = observer, path

    def __enter__(self) -> None:
        self._begin = perf_counter()

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        self._observer.seconds += perf_counter() - self._begin
        if isinstance(error, Exception):
            self._observer._leave_out(self._path, error)
        return isinstance(error, Exception)


class Observer:
    """Reads every leaf layer during the passes of one step.

    Between `begin` and the next `begin` the passes of one step (micro-batches) are merged: summaries and channel
    moments add up, features are those of the last pass.

    Args:
        leaves: `(path, module)` of the layers to read.
        stream: name of the model.
        max_elements: the most elements of one tensor that are read, `None` for all.
        roles: from `roles`; when given anew later, in force from the next `begin`.
        failed: called with a layer's path and the exception when reading it failed; the layer is left out from
            then on.

    Attributes:
        seconds: spent in hooks so far.
        normalised: what batch normalisers did in the passes trained on since `begin`, by the site of their input; of
            several passes the last.
        in_force: the roles with which that was read.
        skipped: `"the input of 0"` → why its values cannot be read; over the whole run.
    """

    def __init__(
        self,
        leaves: Sequence[tuple[str, nn.Module]],
        *,
        stream: str,
        max_elements: int | None,
        roles: Roles,
        failed: Callable[[str, Exception], None],
    ) -> None:
        self._stream = stream
        self._max_elements = max_elements
        self.roles = roles
        self.skipped: dict[str, str] = {}
        self._failed = failed
        self.seconds = 0.0
        self._left_out: set[str] = set()
        self._exponents: dict[tuple[str, Port, str], int] = {}
        self._samplings: dict[tuple[str, Port, str, Layout], Sampling] = {}
        self._lays: dict[tuple[str, Port, str], _Lay] = {}
        self._readers: dict[tuple[str, Port, str, int, tuple[Phase, bool]], Reader] = {}
        self._sites: dict[tuple[str, Port, str, int, Phase], Site] = {}
        self._running: dict[str, Running | None] = {}
        self.in_force = roles
        self._compiled = CompiledCalls(self.see)
        self._hook(leaves)
        self.begin(0.0)

    def rehook(self, leaves: Sequence[tuple[str, nn.Module]]) -> None:
        """Read other layers from now on; the scales of sketches stay, so that what is at a place still merges.

        Args:
            leaves: `(path, module)` of all the layers to read.
        """
        self._hooks.close()
        for kept in (self._lays, self._readers, self._samplings):
            kept.clear()
        self._left_out.clear()
        self._hook(leaves)

    def _hook(self, leaves: Sequence[tuple[str, nn.Module]]) -> None:
        # whose threshold moves as they learn
        self._sloped = {path: module for path, module in leaves if slope_of(module) is not None}
        self._batch_norms = [(path, module) for path, module in leaves if normalises_batches(module)]
        self._hooks = HookSet()
        for path, module in leaves:
            if normalises_batches(module):
                traced = functools.partial(self._normalises_compiled, path, module)
                self._hooks.pre(module, functools.partial(self._normalises, path), traced=traced)
                if isinstance(module, Telemetry):  # before `_after`, which counts the call
                    self._hooks.post(module, functools.partial(self._tells, path))
            listener = functools.partial(self._compiled.listener, path, module)
            self._hooks.pre(module, functools.partial(self._before, path), traced=listener("input"))
            self._hooks.post(
                module,
                functools.partial(self._after, path),
                traced=listener("output"),
                gradient=listener("grad_output"),
            )

    def begin(self, where: float, *, only: frozenset[str] | None = None) -> None:
        """Forget the last step and start a new one.

        Args:
            where: in [0, 1), where the strided reading of positions starts during this step.
            only: with statistics alone, fewer elements read, and of outputs those of these layers; `None` takes also
                what the measures need: every output, the values of each sample, what batch normalisers do, and what
                functions make of an output.
        """
        self._where = where
        self._whole = only is None
        self._only = only
        self._observations = _Sums[Observation]({})
        self._gradients = _Sums[Gradient]({})
        self.normalised: dict[Site, BatchStatistics] = {}
        # Not before: what is compared within a step must be read in the same way.
        if self.in_force is not self.roles:
            self.in_force = self.roles
            self._readers.clear()
        if self._sloped:
            for key in [key for key in self._readers if key[0] in self._sloped and key[1] == "input"]:
                del self._readers[key]
        self.begin_pass("train", trained_on=True)

    def begin_pass(self, phase: Phase, *, reading: bool = True, trained_on: bool = False) -> None:
        """Start a pass of the model.

        Args:
            phase: of the sites that it will fill.
            reading: whether to read it at all.
            trained_on: whether the pass is one of the training's own, and not a probe's or an evaluation's.
        """
        self._observations.sums(self._leave_out)
        self._gradients.sums(self._leave_out)
        self._phase: Phase = phase
        self._turn = phase, self._whole
        self._reading = reading
        self._trained_on = trained_on
        self._calls: dict[str, int] = {}
        self._recomputed: dict[str, int] = {}
        self._known: dict[int, _Known] = {}
        self._compiled.begin_pass()
        if trained_on and self._whole and self._batch_norms and (self.compiled or not self._sites):
            # Compiled code may move running averages before it tells what was normalised; which layers are compiled
            # is not known before the first pass.
            self._running = {path: running_before(module) for path, module in self._batch_norms}

    @property
    def observations(self) -> dict[Site, Observation]:
        """What was read since `begin`, by site."""
        return self._observations.sums(self._leave_out)

    @observations.setter
    def observations(self, observations: dict[Site, Observation]) -> None:
        self._observations = _Sums(observations)

    @property
    def gradients(self) -> dict[Site, Gradient]:
        """What was seen on the way back since `begin`, by site."""
        return self._gradients.sums(self._leave_out)

    @property
    def compiled(self) -> frozenset[nn.Module]:
        """The layers that tell from compiled code."""
        return frozenset(self._hooks.traced)

    @property
    def scales(self) -> Mapping[tuple[str, Port, str], int]:
        """Exponents of the sketches' scales, by module, port and leaf."""
        return self._exponents

    def rescale(self, scales: Mapping[tuple[str, Port, str], int]) -> None:
        """Use given scales from the next tensor on, for instance those of another process.

        Args:
            scales: as `scales` has them; the others stay.
        """
        self._exponents.update(scales)
        self._readers.clear()

    def attach(self) -> None:
        """Let the hooks run."""
        self._hooks.attach()

    def detach(self) -> None:
        """Take the hooks off; nothing of them remains in the model's calls."""
        self._hooks.detach()

    def close(self) -> None:
        """Take the hooks off for good."""
        self._hooks.close()
        self.begin(0.0)

    # What the hooks call. `_current_graph_task_id` tells a checkpoint's recomputation, which runs inside
    # `backward()`, from a forward pass: its values were counted when they were computed first.

    def _before(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._reading or path in self._left_out or torch._C._current_graph_task_id() != -1:
            return
        if transforming():
            self.skipped["what flows inside a transform of torch.func"] = "only plain passes are measured"
            return
        call = self._calls.get(path, 0)
        if passed_over(call):
            return
        begin = perf_counter()
        try:
            if len(args) == 1 and type(args[0]) is Tensor and not kwargs:
                self._read(path, module, "input", "", args[0], call)
            else:
                for leaf, tensor in _leaves((args, kwargs) if kwargs else args):
                    self._read(path, module, "input", leaf, tensor, call)
        except Exception as error:
            self._leave_out(path, error)
        self.seconds += perf_counter() - begin

    def see(self, path: str, module: nn.Module, port: Port, leaf: str, tensor: Tensor, call: int) -> None:
        """Read a tensor that compiled code tells.

        Args:
            path: of the layer.
            module: the layer.
            port: `input`, `output` or `grad_output`.
            leaf: path of the tensor in the value at the port.
            tensor: as it is now; the memory may be written to again without its version counter telling.
            call: which call of the layer in the pass.
        """
        if path in self._left_out or not self._reading or passed_over(call):
            return
        if port == "grad_output":
            if self._phase == "train":
                self._gradient(path, leaf, call, module, tensor)
            return
        with _Work(self, path):
            self._read(path, module, port, leaf, tensor, call)
            self._known.clear()

    def _normalising(self, path: str) -> bool:
        """Whether what a batch normaliser does in this pass is wanted."""
        wanted = self._whole and self._trained_on and path not in self._left_out
        wanted = wanted and not passed_over(self._calls.get(path, 0))
        return wanted and torch._C._current_graph_task_id() == -1 and not transforming()

    def _normalises_compiled(self, path: str, module: nn.Module, tensor: Tensor, leaf: str, grad: bool) -> None:
        if not self._normalising(path):
            return
        with _Work(self, path):
            limit, running = self._max_elements, self._running.get(path)
            seen = batch_statistics(module, tensor, max_elements=limit, where=self._where, running=running)
            if seen is not None:
                self.normalised[self._site(path, "input", "", self._compiled.calls(path), self._phase)] = seen

    def _normalises(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._normalising(path):
            return
        with _Work(self, path), torch.no_grad():
            if isinstance(module, Telemetry):  # it may tell after its forward, by then the averages have moved
                self._running[path] = running_before(module)
                return
            tensor = next((tensor for _, tensor in _leaves((args, kwargs) if kwargs else args)), None)
            if tensor is not None:
                self._normalised(path, module, tensor, None)

    def _tells(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._normalising(path):
            return
        with _Work(self, path), torch.no_grad():
            tensor = next((tensor for _, tensor in _leaves((args, kwargs) if kwargs else args)), None)
            if tensor is not None and output is not None:
                self._normalised(path, module, tensor, self._running.pop(path, None))

    def _normalised(self, path: str, module: nn.Module, tensor: Tensor, running: Running | None) -> None:
        """Keep what a batch normaliser did: as it tells, else by reading its input."""
        seen = told(module, tensor, running)
        if seen is None:
            limit = self._max_elements
            seen = batch_statistics(module, tensor, max_elements=limit, where=self._where, running=running)
        if seen is not None:
            self.normalised[self._site(path, "input", "", self._calls.get(path, 0), self._phase)] = seen

    def _after(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._reading or path in self._left_out or transforming():
            return
        begin = perf_counter()
        try:
            recomputed = torch._C._current_graph_task_id() != -1
            # Segments are recomputed from the last to the first.
            calls = self._recomputed if recomputed else self._calls
            before = calls.get(path, 0)
            calls[path] = before + 1
            call = max(0, self._calls.get(path, 0) - calls[path]) if recomputed else before
            if passed_over(call):
                place = f"calls of {path or 'the model'} in one pass after the first {MOST_CALLS}"
                self.skipped[place] = "only those numbered by a power of two are read"
            else:
                self._see_output(path, module, output, call, recomputed)
        except Exception as error:
            self._leave_out(path, error)
        self.seconds += perf_counter() - begin

    def _see_output(self, path: str, module: nn.Module, output: Any, call: int, recomputed: bool) -> None:
        reads = not recomputed and (self._only is None or path in self._only)
        for leaf, tensor in (("", output),) if type(output) is Tensor else _leaves(output):
            if reads:
                self._read(path, module, "output", leaf, tensor, call)
            elif not recomputed and not self._lies_as_before(path, leaf, tensor):
                self._reader(path, module, "output", leaf, tensor, call)  # the gradient will lie as it does
            if self._phase == "train" and tensor.requires_grad and tensor.is_floating_point():
                on_gradient(tensor, functools.partial(self._gradient, path, leaf, call, module))

    def _lies_as_before(self, path: str, leaf: str, output: Tensor) -> bool:
        lay = self._lays.get((path, "output", leaf))
        return lay is not None and lay.axes == output.ndim

    def _gradient(self, path: str, leaf: str, call: int, module: nn.Module, gradient: Tensor) -> None:
        if path in self._left_out:
            return
        begin = perf_counter()
        try:
            reader = self._readers.get((path, "grad_output", leaf, call, self._turn))
            if reader is None or not reader.fits(gradient):
                reader = self._reader(path, module, "grad_output", leaf, gradient, call)
            if reader is not None:
                seen = reader.read(gradient, self._where, features=False)
                self._gradients.hear(reader.site, Gradient(seen, reader.elements, reader.samples))
        except Exception as error:
            self._leave_out(path, error)
        self.seconds += perf_counter() - begin

    def _read(self, path: str, module: nn.Module, port: Port, leaf: str, tensor: Tensor, call: int) -> None:
        reader = self._readers.get((path, port, leaf, call, self._turn))
        if reader is None or not reader.fits(tensor):
            reader = self._reader(path, module, port, leaf, tensor, call)
            if reader is None:
                return
        known = self._same(tensor)
        if known is not None and known.serves(reader):
            observation = known.observation
        else:
            observation = reader.read(tensor, self._where, features=self._whole)
            if not tensor.is_inference():  # which has no version to notice a change by
                self._known[id(tensor)] = _Known(weakref.ref(tensor), tensor._version, reader, observation)
        if port == "output" and self._whole and (zero := self.in_force.rectified.get(path)) is not None:
            observation = copy(observation)
            observation.rectified = self._rectified(reader, tensor, zero)
        self._observations.hear(reader.site, observation)

    def _same(self, tensor: Tensor) -> _Known | None:
        """What was read of this very tensor, if nobody has changed it since."""
        known = self._known.get(id(tensor))
        return known if known and known.tensor() is tensor and known.version == tensor._version else None

    def _rectified(self, reader: Reader, tensor: Tensor, zero: float) -> ChannelMoments:
        with torch.no_grad():
            values = block(tensor, reader.layout, reader.sampling, self._where).sub(zero).relu_()
            return observe(values, exponent=0).channels

    def _reader(self, path: str, module: nn.Module, port: Port, leaf: str, tensor: Tensor, call: int) -> Reader | None:
        """How to read a tensor from now on; `None` where it has no statistics."""
        reason = unmeasured(tensor)
        if reason is not None:
            if port != "grad_output":
                self.skipped[f"the {port} of {path or 'the model'}"] = reason
            return None
        place = (path, port, leaf)
        known = None if port == "grad_output" else self._same(tensor)
        if port == "grad_output":
            lay = self._lays.get((path, "output", leaf))
        else:
            lay = _Lay.of(tensor, known.reader.layout) if known else self._source(path, port, tensor)
        layout = self._layout(module, tensor, lay, leaf)
        if layout is None:
            return None
        if port != "grad_output":
            self._lays[place] = _Lay.of(tensor, layout)
        site = self._site(path, port, leaf, call, self._phase)
        shared = known.reader if known and known.reader.layout == layout else None
        sampling = self._samplings.get((*place, layout))
        if sampling is None:
            sampling = Sampling.of(tensor, layout, self._max_elements)
            if shared is not None:
                sampling = replace(sampling, channel_step=shared.sampling.channel_step)
            self._samplings[*place, layout] = sampling
        if shared is not None and shared.exponent is not None:
            self._exponents.setdefault(place, shared.exponent)
        sketched = MOST_SKETCHED
        if sampling.max_elements is not None:
            sketched = sampling.max_elements // LIGHT
            if not self._whole:  # the same channels, all of them sketched
                sampling, sketched = replace(sampling, max_elements=sketched), 0
        reader = Reader(site, tensor, layout, sampling, self._threshold(site), sketched, self._exponents)
        self._readers[path, port, leaf, call, self._turn] = reader
        return reader

    def _source(self, path: str, port: Port, tensor: Tensor) -> _Lay | None:
        """How the layer's input lies, for its output; how the outputs of its sources lie, for its input."""
        if port == "output":
            candidates = {self._lays.get((path, "input", leaf)) for leaf in ("", "0")} - {None}
        else:
            candidates = {self._lays.get((source, "output", "")) for source in self.in_force.sources.get(path, ())}
        lay = candidates.pop() if len(candidates) == 1 else None
        return lay if lay is not None and lay.fits(tensor) else None

    def _layout(self, module: nn.Module, tensor: Tensor, lay: _Lay | None, leaf: str) -> Layout | None:
        inherited = lay.layout if lay is not None and lay.axes == tensor.ndim else None
        return layout_of(module, tensor, inherited, leaf=leaf, time_first=self.in_force.time_first)

    def _site(self, path: str, port: Port, leaf: str, call: int, phase: Phase) -> Site:
        """The same object each time: whoever looks a site up by its identity first finds it there."""
        key = (path, port, leaf, call, phase)
        found = self._sites.get(key)
        if found is None:
            found = self._sites[key] = Site(path, port, self._stream, leaf, call, phase)
        return found

    def _threshold(self, site: Site) -> float | None:
        if site.port == "input" and site.module in self._sloped:
            return saturation_threshold(self._sloped[site.module])
        return self.in_force.saturating.get((site.module, site.port))

    def _leave_out(self, path: str, exception: Exception) -> None:
        self._left_out.add(path)
        self._failed(path, exception)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested tuples, lists, dicts and dataclasses, each with its path; a lone tensor has path `""`.

    The arguments of a call come as a tuple: a tuple of one is taken as its element.
    """
    if isinstance(value, Tensor):
        yield path, value
        return
    if isinstance(value, tuple | list):
        if len(value) == 1 and not path:
            yield from _leaves(value[0], path)
            return
        items: Iterator[tuple[Any, Any]] = iter(enumerate(value))
    elif isinstance(value, Mapping):
        items = iter(value.items())
    elif is_dataclass(value) and not isinstance(value, type):
        items = ((each.name, getattr(value, each.name)) for each in fields(value))
    else:
        return
    for key, each in items:
        yield from _leaves(each, f"{path}.{key}" if path else str(key))
