"""`FeatureReader`: what every leaf layer is given and gives for each sample, in one pass after another."""

from __future__ import annotations

import functools
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from holdfast.core.site import Phase, Port, Site
from holdfast.core.structure import Structure
from holdfast.live.hooks import HookSet
from holdfast.live.inner import inner_model
from holdfast.live.layout import Layout, Sampling, block
from holdfast.live.lays import Lays
from holdfast.live.leaves import leaf_modules, passes_through
from holdfast.stats.features import Features

MAX_ELEMENTS = 16_384
"""Elements read of a tensor, all samples first."""


class _Seen(NamedTuple):
    tensor: weakref.ref[Tensor]
    version: int
    features: Features


class FeatureReader:
    """Reads the inputs and outputs of a model's leaf layers during the passes that run within it.

    Every pass is read in one way, by the same code over the same elements, so that where two passes computed the same
    their features are equal to the last bit. A tensor that is seen again, at another site or in another pass, gives the
    same `Features` object.

    Args:
        model: a compiled or a distributed one is looked into.
        structure: of the model, with the data flow of such a pass: which layer lies like which.
        stream: name of the model, for the sites.
        max_elements: the most elements of one tensor that are read, `None` for all.

    Attributes:
        found: features by site of the last pass, in the order of execution; layers that only change shapes are left
            out.

    Example:
        >>> from holdfast.live.replay import record_call, replay
        >>> from holdfast.live.structure import extract
        >>> net, call = nn.Sequential(nn.Linear(2, 3), nn.ReLU()), record_call((torch.ones(4, 2),), {})
        >>> with FeatureReader(net, extract(net, call=call)) as reader:
        ...     _ = replay(net, call)
        >>> [f"{site.module}:{site.port} {tuple(features.values.shape)}" for site, features in reader.found.items()]
        ['0:input (4, 2)', '0:output (4, 3)', '1:input (4, 3)', '1:output (4, 3)']
    """

    def __init__(
        self, model: nn.Module, structure: Structure, *, stream: str = "net", max_elements: int | None = MAX_ELEMENTS
    ) -> None:
        self._model = inner_model(model)
        self._leaves = leaf_modules(self._model)
        self._stream = stream
        self._phase: Phase = "train" if self._model.training else "eval"
        self._max_elements = max_elements
        self._sources = {path: structure.sources(path) for path, _ in self._leaves}
        self._lays = Lays(self._model)
        self._known: dict[tuple[int, Layout], _Seen] = {}
        self._begin()

    def __enter__(self) -> FeatureReader:
        self._known = {key: seen for key, seen in self._known.items() if seen.tensor() is not None}
        self._lays.forget()
        self._hooks = HookSet()
        self._hooks.pre(self._model, self._begin)
        for path, module in self._leaves:
            self._hooks.pre(module, functools.partial(self._before, path))
            self._hooks.post(module, functools.partial(self._after, path))
        self._hooks.attach()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def _begin(self, *_: object) -> None:
        """A pass begins: what was found in the last one is dropped."""
        self.found: dict[Site, Features] = {}
        self._calls: dict[str, int] = {}

    def _before(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = (args, kwargs) if kwargs else args
        self._read(path, module, "input", self._lays.given(path, module, inputs, self._sources[path]))

    def _after(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._read(path, module, "output", self._lays.gave(path, module, output))
        self._calls[path] = self._calls.get(path, 0) + 1

    def _read(self, path: str, module: nn.Module, port: Port, tensors: list[tuple[str, Tensor, Layout]]) -> None:
        if not passes_through(module):
            for leaf, tensor, layout in tensors:
                site = Site(path, port, self._stream, leaf, self._calls.get(path, 0), self._phase)
                self.found[site] = self._features(tensor, layout)

    def _features(self, tensor: Tensor, layout: Layout) -> Features:
        """Of this very tensor as they were read before, if nobody has changed it since."""
        known = self._known.get((id(tensor), layout))
        if known is None or known.tensor() is not tensor or known.version != tensor._version:
            with torch.no_grad():
                part = block(tensor, layout, Sampling.of(tensor, layout, self._max_elements), 0.5)
                known = _Seen(weakref.ref(tensor), tensor._version, Features.of(part))
            self._known[id(tensor), layout] = known
        return known.features
