"""`read_inputs`: what every leaf layer is given, in one pass repeated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from holdfast.core.site import Site
from holdfast.core.structure import Structure
from holdfast.live.hooks import HookSet
from holdfast.live.inner import inner_model
from holdfast.live.layout import Layout
from holdfast.live.lays import Lays
from holdfast.live.leaves import observed_leaves
from holdfast.live.replay import Call, replay

Reader = Callable[[Site, Tensor, Layout], None]


def read_inputs(
    model: nn.Module, call: Call, reader: Reader, *, stream: str = "net", structure: Structure | None = None
) -> None:
    """Replay a call and hand the tensors that each observed layer is given to a function, while they are what they are.

    Args:
        model: a compiled or a distributed one is looked into.
        call: from `record_call`.
        reader: called with site, tensor and layout; must neither change nor keep the tensor, which the model may write
            to afterwards.
        stream: the model's name in the run.
        structure: tells which layer feeds which, so that a layer that works element by element, behind a function, is
            read as the layer before it; `None` where it is not known.

    Example:
        >>> import torch
        >>> from holdfast.live.replay import record_call
        >>> net, seen = nn.Sequential(nn.Linear(3, 5), nn.ReLU()), []
        >>> call = record_call((torch.ones(2, 3),), {})
        >>> read_inputs(net, call, lambda site, tensor, layout: seen.append((site.module, tuple(tensor.shape))))
        >>> seen
        [('0', (2, 3)), ('1', (2, 5))]
    """
    inner = inner_model(model)
    sources: dict[str, tuple[str, ...]] = {}
    if structure is not None:
        sources = {path: structure.sources(path) for path in structure.order}
    lays, calls = Lays(inner), dict[str, int]()

    def before(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for leaf, tensor, layout in lays.given(path, module, (args, kwargs) if kwargs else args, sources.get(path, ())):
            reader(Site(path, "input", stream, leaf, calls.get(path, 0)), tensor, layout)

    def behind(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[path] = calls.get(path, 0) + 1
        lays.gave(path, module, output)

    hooks = HookSet()
    for path, module in observed_leaves(inner):
        hooks.pre(module, partial(before, path))
        hooks.post(module, partial(behind, path))
    with hooks:
        replay(model, call)
