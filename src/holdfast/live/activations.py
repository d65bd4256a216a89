"""`Activations`: what every activation of a model takes or gives, modules and functions alike, in one replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.core.site import Port, Site
from holdfast.live.flow import Flow
from holdfast.live.layout import Layout, Sampling, block
from holdfast.live.lays import Lays
from holdfast.live.leaves import is_rectifier, saturation_threshold, zero_up_to
from holdfast.live.measurable import unmeasured
from holdfast.live.operations import SHAPING, operation_name
from holdfast.live.random_state import preserved_random_state
from holdfast.live.recurrent import GATES, RECTIFIED, Unrolled, unrolled
from holdfast.live.tensors import storage_of, tensors_in
from holdfast.stats.observation import Observation, observe

Role = Literal["saturating", "gate", "rectifying"]

_MULTIPLYING = frozenset({"mul", "mul_", "multiply", "multiply_", "addcmul", "addcmul_", "lerp", "lerp_"})
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_WHOLE = Sampling(None, 1)


@dataclass(slots=True, eq=False)
class Activated:
    """One call of an activation.

    Args:
        site: of what was read: a module's input or output; a function's under the name of the layer whose output it
            takes, else of the module that calls it, with the function's name as the leaf.
        role: a sigmoid that another signal is multiplied with is a gate.
        seen: of what a saturating one takes, those beyond its threshold counted; of what a rectifying one gives.
        low: how many lie beyond the threshold on the negative side.
        samples: how many.
    """

    site: Site
    role: Role
    seen: Observation
    low: int
    samples: int


class Activations(Flow):
    """Follows one replay and reads every sigmoid, tanh, dynamic tanh and rectifier, whoever calls it.

    What is inside `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells is computed again, each gate under its own name. The
    steps of a cell are one, at its first call.

    After `follow`, beside what `Flow` has:
        found: the activations, in the order of execution.
        not_seen: a sentence for each recurrent layer that could not be computed again to its own output.

    Args:
        model: the plain module.
        stream: its name in the run.

    Example:
        >>> import torch
        >>> from holdfast.live.replay import record_call
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = nn.Linear(2, 3), nn.Linear(2, 3)
        ...     def forward(self, x):
        ...         return torch.tanh(self.a(x) + self.b(x)) * torch.sigmoid(self.b(x))
        >>> net = Net()
        >>> activations = Activations(net)
        >>> _ = activations.follow(net, record_call((torch.ones(4, 2),), {}))
        >>> [(str(each.site), each.role) for each in activations.found]
        [('net/:input[tanh]#0@train', 'saturating'), ('net/b:output#1@train', 'gate')]
    """

    def __init__(self, model: nn.Module, stream: str = "net") -> None:
        super().__init__(model)
        self.found: list[Activated] = []
        self.not_seen: list[str] = []
        self._stream = stream
        self._lays = Lays(model)
        self._times: dict[tuple[str, str], int] = {}
        self._gates: dict[int, Activated] = {}  # by the storage of what they gave
        self._random: Tensor | None = None  # where torch's generator stood when a recurrent layer began
        self._steps: dict[str, list[Unrolled]] = {}  # of cells

    # modules

    def entered(self, path: str, module: nn.Module, inputs: Any) -> None:
        """Read what a saturating layer is given."""
        idle = self._leaf is None
        super().entered(path, module, inputs)
        if not idle or self._leaf is not module:
            return
        if isinstance(module, _RECURRENT):
            self._random = torch.get_rng_state()
        args, kwargs = inputs
        limit = saturation_threshold(module)
        sources = self._sources(tensors_in(inputs))
        for leaf, tensor, layout in self._lays.given(path, module, (args, kwargs) if kwargs else args, sources):
            if limit is not None:
                site = Site(path, "input", self._stream, leaf, self.calls[path] - 1)
                self._read(site, "saturating", tensor, layout, limit)

    def left(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Read what a rectifying layer gave."""
        leaf = module is self._leaf
        super().left(path, module, inputs, output)
        if len(self.stack) == 1:
            for cell, steps in self._steps.items():
                self._inside(cell, 0, steps)
        if not leaf or output is None:
            return
        if isinstance(module, _RECURRENT):
            self._unroll(path, module, inputs, output)
        self._lays.gave(path, module, output)
        tensors = tensors_in(output)
        if is_rectifier(module) and tensors:
            site = Site(path, "output", self._stream, call=self.calls[path] - 1)
            self._read(site, "rectifying", tensors[0], self._lays.of(tensors[0], ()))
        if isinstance(module, nn.Sigmoid) and tensors and self.found:
            self._gates[storage_of(tensors[0])] = self.found[-1]

    def _unroll(self, path: str, module: nn.RNNBase | nn.RNNCellBase, inputs: Any, output: Any) -> None:
        args, kwargs = inputs
        given = tensors_in(output)[0]
        reason = next(filter(None, map(unmeasured, tensors_in(inputs)[:1])), None)
        if reason is None:
            exact = not torch.is_autocast_enabled(given.device.type)
            with preserved_random_state(), torch.autocast(given.device.type, enabled=False):
                if self._random is not None:
                    torch.set_rng_state(self._random)
                again = unrolled(module, args, kwargs)
            turned = isinstance(module, nn.RNNBase) and module.batch_first and given.ndim == 3
            if _agree(again.output, given.transpose(0, 1) if turned else given, exact=exact):
                if isinstance(module, nn.RNNCellBase):
                    self._steps.setdefault(path, []).append(again)
                else:
                    self._inside(path, self.calls[path] - 1, [again])
                return
            reason = "computed again, its output is another"
        self.not_seen.append(f"what is inside {path or '(model)'} ({type(module).__name__}): {reason}")

    def _inside(self, path: str, call: int, steps: list[Unrolled]) -> None:
        """Read the gates of a recurrent layer, all steps together."""
        for name in steps[0].inner:
            values = torch.cat([step.inner[name] for step in steps])
            role, ends = _part(name.rpartition(".")[2])
            site = Site(path, "output", self._stream, name, call)
            self._add(site, role, values.unsqueeze(2), ends, steps[0].samples)

    # functions

    def before(self, function: Callable[..., Any], inputs: Any) -> Any:
        """Read what a saturating function takes: it may be overwritten."""
        memo = super().before(function, inputs)
        name = operation_name(function)
        limit = saturation_threshold(name)
        if limit is None or self._in_known():
            return memo, None
        tensor = memo[0][0]
        layout = self._lays.of(tensor, self._sources([tensor]))
        return memo, self._read(self._site(name, "input", tensor), "saturating", tensor, layout, limit)

    def after(self, function: Callable[..., Any], inputs: Any, output: Any, memo: Any) -> None:
        """Read what a rectifying function gave, and tell gates by what becomes of them."""
        flow, activated = memo
        super().after(function, inputs, output, flow)
        name, results = operation_name(function), tensors_in(output)
        taken = [tensor for tensor, _ in flow]
        if not results or not taken:
            return
        if zero_up_to(name) is not None and not self._in_known():
            layout = self._lays.of(results[0], self._sources(results[:1]))
            self._read(self._site(name, "output", taken[0]), "rectifying", results[0], layout)
        elif activated is not None and name.startswith("sigmoid"):
            self._gates[storage_of(results[0])] = activated
        elif name in SHAPING:
            gate = next((self._gates[key] for key in map(storage_of, taken) if key in self._gates), None)
            if gate is not None:
                self._gates.update((storage_of(each), gate) for each in results)
        elif name in _MULTIPLYING:
            self._multiplied([tensor for tensor in taken if self._sources([tensor]) and tensor.is_floating_point()])

    def _multiplied(self, signals: list[Tensor]) -> None:
        keys = {storage_of(tensor) for tensor in signals}
        for key in keys if len(keys) > 1 else ():
            if key in self._gates:
                self._gates[key].role = "gate"

    def _in_known(self) -> bool:
        """Whether the function belongs to a layer that is read as a whole."""
        leaf = self._leaf
        return leaf is not None and (self._wrapped() or saturation_threshold(leaf) is not None or is_rectifier(leaf))

    def _site(self, function: str, port: Port, tensor: Tensor) -> Site:
        producer = self._producer(tensor)
        if producer is not None:
            return Site(producer, "output", self._stream, call=self.calls[producer] - 1)
        key = self.stack[-1][0], function.rstrip("_")
        self._times[key] = self._times.get(key, 0) + 1
        return Site(key[0], port, self._stream, key[1], self._times[key] - 1)

    def _read(
        self, site: Site, role: Role, tensor: Tensor, layout: Layout | None, threshold: float | None = None
    ) -> Activated | None:
        if layout is None:
            return None
        values = block(tensor.detach(), layout, _WHOLE, 0.0)
        return self._add(site, role, values, threshold, tensor.shape[layout.samples])

    def _add(self, site: Site, role: Role, values: Tensor, threshold: float | None, samples: int) -> Activated:
        low = 0 if threshold is None else int((values < -threshold).sum())
        self.found.append(Activated(site, role, observe(values, threshold=threshold), low, samples))
        return self.found[-1]


def _part(name: str) -> tuple[Role, float | None]:
    """What a part of a recurrent layer is, and where it is flat."""
    if name in GATES:
        return "gate", saturation_threshold("sigmoid")
    return ("rectifying", None) if name == RECTIFIED else ("saturating", saturation_threshold("tanh"))


def _agree(again: Tensor, output: Tensor, *, exact: bool) -> bool:
    """Whether an output was reproduced, to rounding of its type (of TensorFloat-32 on a GPU) or of a half."""
    again, given = again.flatten(), output.detach().to(again.dtype).flatten()
    single = 1e-4 if output.device.type == "cpu" else 5e-3
    tolerance = {torch.float64: 1e-9, torch.float32: single}.get(output.dtype, 0.05) if exact else 0.05
    return again.shape == given.shape and torch.allclose(again, given, rtol=0.0, atol=tolerance, equal_nan=True)
