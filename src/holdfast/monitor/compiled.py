"""`CompiledCalls`: what compiled code tells of a model's layers, counted call by call."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from holdfast.core.site import Port
from holdfast.live.traced import Listener

See = Callable[[str, nn.Module, Port, str, Tensor, int], None]


class CompiledCalls:
    """Tells which call of a layer within a pass a tensor from compiled code belongs to.

    Compiled code runs no hook, so calls are counted by the tensors that arrive: the second output of a layer in a pass
    is that of its second call. Gradients arrive from the last call to the first. What a checkpoint computes once more
    on the way back was counted when it was computed first.

    Args:
        see: called as `see(path, module, port, leaf, tensor, call)`.
    """

    def __init__(self, see: See) -> None:
        self._see = see
        self._calls: Counter[tuple[str, Port, str]] = Counter()

    def begin_pass(self) -> None:
        """Count anew."""
        self._calls.clear()

    def calls(self, path: str) -> int:
        """Which call of a layer is under way, before its input is counted."""
        counts = [count for (where, port, _), count in self._calls.items() if where == path and port == "input"]
        return max(counts, default=0)

    def listener(self, path: str, module: nn.Module, port: Port) -> Listener:
        """What to call with the tensors at a port of a layer.

        Args:
            path: of the layer.
            module: the layer.
            port: `input`, `output` or `grad_output`.
        """
        return functools.partial(self._back if port == "grad_output" else self._forth, path, module, port)

    def _forth(self, path: str, module: nn.Module, port: Port, tensor: Tensor, leaf: str, grad: bool) -> None:
        if torch._C._current_graph_task_id() == -1:
            call = self._calls[path, port, leaf]
            self._calls[path, port, leaf] = call + 1
            self._see(path, module, port, leaf, tensor, call)

    def _back(self, path: str, module: nn.Module, port: Port, tensor: Tensor, leaf: str, grad: bool) -> None:
        behind = self._calls[path, port, leaf]
        self._calls[path, port, leaf] = behind + 1
        self._see(path, module, port, leaf, tensor, max(0, self._calls[path, "output", leaf] - 1 - behind))
