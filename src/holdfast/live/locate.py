"""`first_nonfinite`: where a NaN or an infinity came from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from holdfast.live.inner import inner_model
from holdfast.live.operations import FILLING, operation_name
from holdfast.live.passage import Passage
from holdfast.live.replay import Call
from holdfast.live.tensors import tensors_in


@dataclass(frozen=True, slots=True)
class Culprit:
    """What made a value that is not finite.

    Args:
        where: path of the module; `""` is the model itself.
        operation: name of the operation, such as `"exp"`; `""` when none is to blame.
        kind: `"input"`: the batch; `"parameter"`: a parameter or a buffer was broken before; `"operation"`: the
            forward; `"loss"`: what the script computes after the forward; `"gradient"`: the backward.
        detail: one sentence for a person.
    """

    where: str
    operation: str
    kind: Literal["input", "parameter", "operation", "loss", "gradient"]
    detail: str


def first_nonfinite(model: nn.Module, call: Call, loss: float | None = None) -> Culprit | None:
    """Replay a call exactly and name the first thing that was not finite.

    Looked at in turn: the batch, the parameters, every operation of the forward, the loss, the gradients that the
    parameters hold. An infinity that a mask plants (`masked_fill` before a softmax) is not one of them, unless a NaN
    comes of it.

    Args:
        model: a compiled or a distributed one is looked into.
        call: the call whose forward, loss or backward went wrong.
        loss: what the loss was, if it is known.

    Returns:
        The culprit; `None` when all is finite.

    Example:
        >>> from holdfast.live.replay import record_call
        >>> class Log(nn.Module):
        ...     def forward(self, x):
        ...         return x.log()
        >>> net = nn.Sequential(nn.Identity(), Log())
        >>> culprit = first_nonfinite(net, record_call((torch.tensor([2.0, -1.0]),), {}))
        >>> culprit.where, culprit.operation, culprit.kind
        ('1', 'log', 'operation')
        >>> culprit.detail
        'log in 1 gave 1 NaN among 2 values (float32) from finite inputs between -1 and 2'
    """
    inner = inner_model(model)
    culprit = _in_batch(call) or _in_parameters(inner)
    if culprit is not None:
        return culprit
    search = _Search(inner)
    output = search.follow(inner, call)
    found = search.origin_of(tensors_in(output))
    if found is not None:
        return found
    if loss is not None and not math.isfinite(loss):
        return Culprit("", "", "loss", _loss_detail(output, loss) + search.hidden())
    return _in_gradients(inner, search)


def _in_batch(call: Call) -> Culprit | None:
    for name, value in [*enumerate(call.args), *call.kwargs.items()]:
        for tensor in tensors_in(value):
            if not _finite(tensor) and not _is_mask(tensor):
                label = f"argument {name + 1}" if isinstance(name, int) else f"argument {name!r}"
                return Culprit("", "", "input", f"the batch itself ({label} of the model) holds {_count(tensor)}")
    return None


def _in_parameters(model: nn.Module) -> Culprit | None:
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            detail = f"the parameter {name} already held {_count(parameter)} before this forward"
            return Culprit(name.rpartition(".")[0], "", "parameter", detail)
    return None


def _in_gradients(model: nn.Module, search: _Search) -> Culprit | None:
    broken = {
        path
        for path, module in model.named_modules()
        if any(
            each is not None and each.grad is not None and not _finite(each.grad)
            for each in module._parameters.values()
        )
    }
    last = next((path for path in reversed(search.finished) if path in broken), None)
    if last is None:
        return None
    # The backward runs from the last layer to the first.
    detail = (
        "forward and loss are finite, the gradient is not; coming from the loss, the first layer that it broke is "
        f"{last or 'the model itself'}" + search.hidden()
    )
    return Culprit(last, "backward", "gradient", detail)


def _loss_detail(output: Any, loss: float) -> str:
    largest = max((_largest(tensor) for tensor in tensors_in(output)), default=math.nan)
    size = "" if math.isnan(largest) else f" (largest magnitude {largest:.3g})"
    return f"the loss is {loss} although the model's output is finite{size}: look at the loss function and the targets"


class _Bad(NamedTuple):
    tensor: Tensor  # kept alive
    origin: Culprit | None  # None: an infinity that was planted


class _Search(Passage):
    """Follows a replay and keeps, for every tensor that is not finite, the operation that it comes from."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._bad: dict[int, _Bad] = {}
        self._first: Culprit | None = None
        self.finished: list[str] = []

    def origin_of(self, outputs: list[Tensor]) -> Culprit | None:
        """The first operation that made the outputs what they are, `None` when they are as they should be."""
        origins = [self._bad[id(each)].origin for each in outputs if id(each) in self._bad]
        return self._first if self._first in origins else next(filter(None, origins), None)

    def hidden(self) -> str:
        """A clause on an operation whose result did not reach the output, as that of a `where` does not."""
        if self._first is None:
            return ""
        return f"; on the way {self._first.detail}, which did not reach the output but breaks the gradient"

    def entered(self, path: str, module: nn.Module, inputs: Any) -> None:
        """Excuse the masks among the model's arguments."""
        if len(self.stack) == 1:
            for tensor in tensors_in(inputs):
                if not _finite(tensor):
                    self._bad[id(tensor)] = _Bad(tensor, None)

    def left(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Look at what operations that cannot be followed have made."""
        self.finished.append(path)
        for tensor in tensors_in(output):
            if id(tensor) not in self._bad and not _finite(tensor):
                kind = type(module).__name__
                self._blame(tensor, path, kind, f"{kind} at {path or 'the top'} gave {_count(tensor)}")

    def before(self, function: Callable[..., Any], inputs: Any) -> Any:
        """Keep the inputs that were broken before, and every input's version."""
        return [(tensor, tensor._version, id(tensor) in self._bad) for tensor in tensors_in(inputs)]

    def after(self, function: Callable[..., Any], inputs: Any, output: Any, memo: Any) -> None:
        """Ask whether the operation broke something."""
        name = operation_name(function)
        if "empty" in name:
            return  # memory as it was found
        origins = [self._bad[id(tensor)].origin for tensor, _, bad in memo if bad]
        changed = [tensor for tensor, version, _ in memo if tensor._version != version]
        results = {id(tensor): tensor for tensor in [*tensors_in(output), *changed]}
        written = [tensor for tensor in results.values() if not isinstance(tensor, nn.Parameter)]
        for tensor in written:
            if _finite(tensor):
                self._bad.pop(id(tensor), None)
                continue
            inherited = next(filter(None, origins), None)
            fresh = [each for each, _, bad in memo if not bad and id(each) not in results]
            source = next((each for each in fresh if not _finite(each)), None)
            if inherited is not None:
                self._bad[id(tensor)] = _Bad(tensor, inherited)
            elif not _has_nan(tensor) and (
                origins or name in FILLING or name == "" or (source is not None and _is_mask(source))
            ):
                self._bad[id(tensor)] = _Bad(tensor, None)
            elif source is not None and not _is_mask(source):
                self._blame_constant(tensor, source, name)
            else:
                path = self.stack[-1][0]
                detail = (
                    f"{name} in {path or 'the model itself'} gave {_count(tensor)} from {_inputs(fresh, bool(origins))}"
                )
                self._blame(tensor, path, name, detail)

    def _blame(self, tensor: Tensor, path: str, name: str, detail: str, kind: Any = "operation") -> None:
        culprit = Culprit(path, name, kind, detail)
        self._first = self._first or culprit
        self._bad[id(tensor)] = _Bad(tensor, culprit)

    def _blame_constant(self, tensor: Tensor, source: Tensor, name: str) -> None:
        path = self.stack[-1][0]
        buffer = next((each for each, value in self._model.named_buffers() if value is source), None)
        if buffer is None:
            what = f"a constant that it took held {_count(source)}"
        else:
            what = f"the buffer {buffer} already held {_count(source)}"
        self._blame(tensor, path, name, f"{what} when {name} in {path or 'the model itself'} used it", "parameter")


def _finite(tensor: Tensor) -> bool:
    try:
        return not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor).all())
    except (NotImplementedError, RuntimeError):  # sparse, quantised, meta
        return True


def _has_nan(tensor: Tensor) -> bool:
    return bool(torch.isnan(tensor).any())


def _is_mask(tensor: Tensor) -> bool:
    """Zeros and infinities, nothing else: what is added to scores to hide some of them."""
    return bool(((tensor == 0) | torch.isinf(tensor)).all())


def _largest(tensor: Tensor) -> float:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return math.nan
    return float(tensor.detach().abs().max())


def _count(tensor: Tensor) -> str:
    nan, infinite = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
    parts = [f"{nan} NaN"] if nan else []
    parts += [f"{infinite} {'infinity' if infinite == 1 else 'infinities'}"] if infinite else []
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{' and '.join(parts)} among {tensor.numel()} values ({kind})"


def _inputs(tensors: list[Tensor], masked: bool) -> str:
    real = [each.detach() for each in tensors if each.is_floating_point() and each.numel()]
    if masked:
        return "inputs that a mask had filled with infinities"
    if not real:
        return "finite inputs"
    low, high = (min(float(each.min()) for each in real), max(float(each.max()) for each in real))
    return f"finite inputs between {low:.4g} and {high:.4g}"
