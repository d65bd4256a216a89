"""`Observer`: reads every leaf layer's inputs, outputs and output gradients during one pass."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.protocols import Telemetry
from holdfast.core.site import Phase, Port, Site
from holdfast.core.structure import Structure
from holdfast.live.hooks import HookSet, on_gradient
from holdfast.live.layout import Layout, Sampling, block, layout_of
from holdfast.live.leaves import is_rectifier, saturation_threshold, zero_up_to
from holdfast.monitor.batch_norms import batch_statistics, normalises_batches, running_before, told
from holdfast.stats.batch_statistics import BatchStatistics, Running
from holdfast.stats.observation import Observation, observe
from holdfast.stats.summary import Summary

MAX_ELEMENTS = 16_384
"""Elements read of a tensor in sampled mode, all samples first."""


@dataclass(slots=True)
class Gradient:
    """What was seen of the gradient at a layer's output.

    Args:
        summary: over the elements read.
        elements: how many the gradient has.
        samples: how many rows it has.
        scale: what a gradient scaler multiplied it by.
    """

    summary: Summary
    elements: int
    samples: int
    scale: float = 1.0

    def __add__(self, other: Gradient) -> Gradient:
        return Gradient(self.summary + other.summary, self.elements + other.elements, self.samples + other.samples)

    @property
    def norm(self) -> float:
        """L2 norm of the unscaled gradient, from the mean square of the elements read."""
        return float(self.summary.moments.rms * self.elements**0.5) / self.scale


@dataclass(frozen=True, slots=True)
class Roles:
    """What some layers are watched for in particular, and what else of the structure tells how to read a layer.

    Args:
        saturating: `(path, port)` whose values enter an activation with two flat ends → |x| beyond which it is flat.
        rectifiers: paths of the layers whose units can die.
        rectified: paths of the layers whose output a rectifying function takes → the value up to which it gives zero.
        sources: path of a layer → paths of the observed layers that feed it.
        time_first: whether sequences have time on axis 0 and samples on axis 1.
    """

    saturating: Mapping[tuple[str, Port], float] = field(default_factory=dict)
    rectifiers: frozenset[str] = frozenset()
    rectified: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    time_first: bool = False


def roles(leaves: Sequence[tuple[str, nn.Module]], structure: Structure) -> Roles:
    """Who saturates and who can die, told from types and from the structure, never from a range of values.

    A model keeps its sequences time first when it holds recurrent or attention layers and none is `batch_first`.

    Args:
        leaves: `(path, module)` of the layers observed.
        structure: names the functions that take a layer's output, and which layer feeds which.

    Returns:
        The roles.

    Example:
        >>> net = [("act", nn.Tanh()), ("rect", nn.ReLU())]
        >>> found = roles(net, Structure("net", "Net", ()))
        >>> list(found.saturating), sorted(found.rectifiers)
        ([('act', 'input')], ['rect'])
    """
    saturating: dict[tuple[str, Port], float] = {}
    for path, module in leaves:
        limit = saturation_threshold(module)
        if limit is not None:
            saturating[path, "input"] = limit
    rectifiers = frozenset(path for path, module in leaves if is_rectifier(module))
    rectified: dict[str, float] = {}
    observed = {path for path, _ in leaves}
    for call in structure.functional:
        # A module of known type that calls the function itself is one place, not two.
        if call.producer not in observed or (call.owner, "input") in saturating or call.owner in rectifiers:
            continue
        limit = saturation_threshold(call.name)
        if limit is not None:
            saturating[call.producer, "output"] = limit
        zero = zero_up_to(call.name)
        if zero is not None and call.producer not in rectifiers:
            rectified[call.producer] = zero
    sources: dict[str, tuple[str, ...]] = {}
    for source, target in structure.edges:
        if source:
            sources[target] = (*sources.get(target, ()), source)
    batch_first = {
        bool(node.settings.get("batch_first"))
        for node in structure.modules
        if {"RNNBase", "MultiheadAttention"} & set(node.bases)
    }
    return Roles(saturating, rectifiers, rectified, sources, batch_first == {False})


@dataclass(slots=True)
class _Known:
    """A tensor seen as some layer's output, so that the next layer need not read it again."""

    tensor: weakref.ref[Tensor]
    version: int
    layout: Layout
    sampling: Sampling
    observation: Observation


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
        timed: context manager under which the work in hooks is booked.

    Attributes:
        observations: what was read since `begin`, by site.
        gradients: what was seen on the way back since `begin`, by site.
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
        timed: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._stream = stream
        self._max_elements = max_elements
        self.roles = roles
        self.skipped: dict[str, str] = {}
        self._failed = failed
        self._timed = timed
        self._left_out: set[str] = set()
        self._exponents: dict[tuple[str, Port, str], int] = {}
        self._samplings: dict[tuple[str, Port, str, Layout], Sampling] = {}
        self._lays: dict[tuple[str, Port, str], _Lay] = {}
        self._sites: dict[tuple[str, Port, str, int, Phase], Site] = {}
        self._running: dict[str, Running | None] = {}
        self._hooks = HookSet()
        for path, module in leaves:
            if normalises_batches(module):
                self._hooks.pre(module, functools.partial(self._normalises, path))
                if isinstance(module, Telemetry):  # before `_after`, which counts the call
                    self._hooks.post(module, functools.partial(self._tells, path))
            self._hooks.pre(module, functools.partial(self._before, path))
            self._hooks.post(module, functools.partial(self._after, path))
        self.begin(0.0)

    def begin(self, where: float) -> None:
        """Forget the last step and start a new one.

        Args:
            where: in [0, 1), where the strided reading of positions starts during this step.
        """
        self._where = where
        self.observations: dict[Site, Observation] = {}
        self.gradients: dict[Site, Gradient] = {}
        self.normalised: dict[Site, BatchStatistics] = {}
        # Not before: what is compared within a step must be read in the same way.
        self.in_force = self.roles
        self.begin_pass("train", trained_on=True)

    def begin_pass(self, phase: Phase, *, reading: bool = True, trained_on: bool = False) -> None:
        """Start a pass of the model.

        Args:
            phase: of the sites that it will fill.
            reading: whether to read it at all.
            trained_on: whether the pass is one of the training's own, and not a probe's or an evaluation's.
        """
        self._phase: Phase = phase
        self._reading = reading
        self._trained_on = trained_on
        self._calls: dict[str, int] = {}
        self._recomputed: dict[str, int] = {}
        self._known: dict[int, _Known] = {}

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
        with self._timed(), torch.no_grad():
            try:
                for leaf, tensor in _leaves((args, kwargs) if kwargs else args):
                    self._read(path, module, "input", leaf, tensor, self._calls.get(path, 0))
            except Exception as exception:
                self._leave_out(path, exception)

    def _normalises(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._trained_on or path in self._left_out or torch._C._current_graph_task_id() != -1:
            return
        with self._timed(), torch.no_grad():
            try:
                if isinstance(module, Telemetry):  # it may tell after its forward, by then the averages have moved
                    self._running[path] = running_before(module)
                    return
                tensor = next((tensor for _, tensor in _leaves((args, kwargs) if kwargs else args)), None)
                if tensor is not None:
                    self._normalised(path, module, tensor, None)
            except Exception as exception:
                self._leave_out(path, exception)

    def _tells(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._trained_on or path in self._left_out or torch._C._current_graph_task_id() != -1:
            return
        with self._timed(), torch.no_grad():
            try:
                tensor = next((tensor for _, tensor in _leaves((args, kwargs) if kwargs else args)), None)
                if tensor is not None and output is not None:
                    self._normalised(path, module, tensor, self._running.pop(path, None))
            except Exception as exception:
                self._leave_out(path, exception)

    def _normalised(self, path: str, module: nn.Module, tensor: Tensor, running: Running | None) -> None:
        """Keep what a batch normaliser did: as it tells, else by reading its input."""
        seen = told(module, tensor, running)
        if seen is None:
            limit = self._max_elements
            seen = batch_statistics(module, tensor, max_elements=limit, where=self._where, running=running)
        if seen is not None:
            self.normalised[self._site(path, "input", "", self._calls.get(path, 0), self._phase)] = seen

    def _after(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._reading or path in self._left_out:
            return
        with self._timed(), torch.no_grad():
            try:
                recomputed = torch._C._current_graph_task_id() != -1
                # Segments are recomputed from the last to the first.
                calls = self._recomputed if recomputed else self._calls
                before = calls.get(path, 0)
                calls[path] = before + 1
                call = max(0, self._calls.get(path, 0) - calls[path]) if recomputed else before
                for leaf, tensor in _leaves(output):
                    if not recomputed:
                        self._read(path, module, "output", leaf, tensor, call)
                    if self._phase == "train" and tensor.requires_grad and tensor.is_floating_point():
                        site = self._site(path, "grad_output", leaf, call, "train")
                        on_gradient(tensor, functools.partial(self._gradient, site, module))
            except Exception as exception:
                self._leave_out(path, exception)

    def _gradient(self, site: Site, module: nn.Module, gradient: Tensor) -> None:
        if site.module in self._left_out:
            return
        with self._timed():
            try:
                output = self._lays.get((site.module, "output", site.leaf))
                layout = self._layout(module, gradient, output, site.leaf)
                if layout is None:
                    return
                seen = self._observe(site, gradient, layout)
                found = Gradient(seen.summary, gradient.numel(), gradient.shape[layout.samples])
                self.gradients[site] = self.gradients[site] + found if site in self.gradients else found
            except Exception as exception:
                self._leave_out(site.module, exception)

    def _read(self, path: str, module: nn.Module, port: Port, leaf: str, tensor: Tensor, call: int) -> None:
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
            self.skipped[f"the {port} of {path or 'the model'}"] = f"{kind} values are not measured"
            return
        known = self._known.get(id(tensor))
        if known is not None and (known.tensor() is not tensor or known.version != tensor._version):
            known = None
        lay = _Lay.of(tensor, known.layout) if known else self._source(path, port, tensor)
        layout = self._layout(module, tensor, lay, leaf)
        if layout is None:
            return
        key = (path, port, leaf)
        self._lays[key] = _Lay.of(tensor, layout)
        site = self._site(path, port, leaf, call, self._phase)
        if known and known.layout == layout and self._threshold(site) is None:
            observation = known.observation
            self._exponents.setdefault(key, observation.summary.sketch.exponent)
            self._samplings.setdefault((*key, layout), known.sampling)
        else:
            observation = self._observe(site, tensor, layout)
        if port == "output":
            sampling = self._samplings[*key, layout]
            self._known[id(tensor)] = _Known(weakref.ref(tensor), tensor._version, layout, sampling, observation)
            zero = self.in_force.rectified.get(path)
            if zero is not None:
                values = block(tensor, layout, sampling, self._where).sub(zero).relu_()
                observation = observation._replace(rectified=observe(values, exponent=0).channels)
        before = self.observations.get(site)
        self.observations[site] = observation if before is None else _merged(before, observation)

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

    def _observe(self, site: Site, tensor: Tensor, layout: Layout) -> Observation:
        key = (site.module, site.port, site.leaf)
        sampling = self._samplings.get((*key, layout))
        if sampling is None:
            sampling = self._samplings[*key, layout] = Sampling.of(tensor, layout, self._max_elements)
        observation = observe(
            block(tensor, layout, sampling, self._where),
            exponent=self._exponents.get(key),
            threshold=self._threshold(site),
        )
        self._exponents.setdefault(key, observation.summary.sketch.exponent)
        return observation

    def _site(self, path: str, port: Port, leaf: str, call: int, phase: Phase) -> Site:
        """The same object each time: whoever looks a site up by its identity first finds it there."""
        key = (path, port, leaf, call, phase)
        found = self._sites.get(key)
        if found is None:
            found = self._sites[key] = Site(path, port, self._stream, leaf, call, phase)
        return found

    def _threshold(self, site: Site) -> float | None:
        return self.in_force.saturating.get((site.module, site.port))

    def _leave_out(self, path: str, exception: Exception) -> None:
        self._left_out.add(path)
        self._failed(path, exception)


def _merged(before: Observation, now: Observation) -> Observation:
    """Of several passes of a step: summaries and channels add up, features are those of the last pass."""
    rectified = None
    if before.rectified is not None and now.rectified is not None:
        rectified = before.rectified + now.rectified
    return Observation(before.summary + now.summary, before.channels + now.channels, now.features, rectified)


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
