"""`Observer`: reads every leaf layer's inputs, outputs and output gradients during one pass."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.site import Phase, Port, Site
from holdfast.core.structure import Structure
from holdfast.live.hooks import HookSet, on_gradient
from holdfast.live.layout import Layout, Sampling, block, layout_of
from holdfast.live.leaves import is_rectifier, saturation_threshold
from holdfast.stats.observation import Observation, observe
from holdfast.stats.summary import Summary


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
    """What some layers are watched for in particular.

    Args:
        saturating: `(path, port)` whose values enter an activation with two flat ends → |x| beyond which it is flat.
        rectifiers: paths of the layers whose units can die.
    """

    saturating: Mapping[tuple[str, Port], float]
    rectifiers: frozenset[str]


def roles(leaves: Sequence[tuple[str, nn.Module]], structure: Structure) -> Roles:
    """Who saturates and who can die, told from types and from the structure, never from a range of values.

    Args:
        leaves: `(path, module)` of the layers observed.
        structure: names the functions that take a layer's output.

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
    for call in structure.functional:
        limit = saturation_threshold(call.name)
        if limit is not None and call.producer is not None:
            saturating[call.producer, "output"] = limit
    return Roles(saturating, frozenset(path for path, module in leaves if is_rectifier(module)))


@dataclass(slots=True)
class _Known:
    """A tensor seen as some layer's output, so that the next layer need not read it again."""

    tensor: weakref.ref[Tensor]
    version: int
    layout: Layout
    sampling: Sampling
    observation: Observation


class Observer:
    """Reads every leaf layer during the passes of one step.

    Between `begin` and the next `begin` the passes of one step (micro-batches) are merged: summaries and channel
    moments add up, features are those of the last pass.

    Args:
        leaves: `(path, module)` of the layers to read.
        stream: name of the model.
        max_elements: the most elements of one tensor that are read, `None` for all.
        saturating: from `roles`; may grow later.
        failed: called with a layer's path and the exception when reading it failed; the layer is left out from
            then on.
        timed: context manager under which the work in hooks is booked.
    """

    def __init__(
        self,
        leaves: Sequence[tuple[str, nn.Module]],
        *,
        stream: str,
        max_elements: int | None,
        saturating: Mapping[tuple[str, Port], float],
        failed: Callable[[str, Exception], None],
        timed: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._stream = stream
        self._max_elements = max_elements
        self.saturating = saturating
        self._failed = failed
        self._timed = timed
        self._left_out: set[str] = set()
        self._exponents: dict[tuple[str, Port, str], int] = {}
        self._samplings: dict[tuple[str, Port, str], Sampling] = {}
        self._sites: dict[tuple[str, Port, str, int, Phase], Site] = {}
        self._hooks = HookSet()
        for path, module in leaves:
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
        self.skipped: dict[str, str] = {}
        self.begin_pass("train")

    def begin_pass(self, phase: Phase, *, reading: bool = True) -> None:
        """Start a pass of the model.

        Args:
            phase: of the sites that it will fill.
            reading: whether to read it at all.
        """
        self._phase: Phase = phase
        self._reading = reading
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
                layout = layout_of(module, gradient, leaf=site.leaf)
                if layout is None:
                    return
                seen = self._observe(site, gradient, layout)
                found = Gradient(seen.summary, gradient.numel(), gradient.shape[layout.samples])
                self.gradients[site] = self.gradients[site] + found if site in self.gradients else found
            except Exception as exception:
                self._leave_out(site.module, exception)

    def _read(self, path: str, module: nn.Module, port: Port, leaf: str, tensor: Tensor, call: int) -> None:
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            self.skipped[f"{path}:{port}"] = f"{tensor.dtype} {tensor.layout} values are not floating-point arrays"
            return
        known = self._known.get(id(tensor))
        if known is not None and (known.tensor() is not tensor or known.version != tensor._version):
            known = None
        layout = layout_of(module, tensor, known.layout if known else None, leaf=leaf)
        if layout is None:
            return
        site = self._site(path, port, leaf, call, self._phase)
        if known and known.layout == layout and self._threshold(site) is None:
            observation = known.observation
            key = (path, port, leaf)
            self._exponents.setdefault(key, observation.summary.sketch.exponent)
            self._samplings.setdefault(key, known.sampling)
        else:
            observation = self._observe(site, tensor, layout)
        if port == "output":
            self._known[id(tensor)] = _Known(
                weakref.ref(tensor), tensor._version, layout, self._samplings[path, port, leaf], observation
            )
        before = self.observations.get(site)
        if before is not None:
            observation = Observation(
                before.summary + observation.summary, before.channels + observation.channels, observation.features
            )
        self.observations[site] = observation

    def _observe(self, site: Site, tensor: Tensor, layout: Layout) -> Observation:
        key = (site.module, site.port, site.leaf)
        sampling = self._samplings.get(key)
        if sampling is None:
            sampling = self._samplings[key] = Sampling.of(tensor, layout, self._max_elements)
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
        return self.saturating.get((site.module, site.port))

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
