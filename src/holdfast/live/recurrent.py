"""`unrolled`: what happens inside `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells, computed again step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

GATES = frozenset({"input", "forget", "output", "reset", "update"})
"""Names of what goes through a sigmoid; `candidate`, `cell` and `hidden` go through a tanh."""

RECTIFIED = "rectified"
"""Name of what a ReLU gave."""

_CELLS: dict[type[nn.RNNCellBase], str] = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU", nn.RNNCell: "RNN"}


@dataclass(frozen=True, slots=True, eq=False)
class Unrolled:
    """One call of a recurrent layer, step by step.

    Args:
        inner: `"l0.forget"`, `"l1_reverse.reset"`, of a cell `"forget"` → what the gate's or the tanh's function takes
            (of a ReLU: what it gives), `(steps and samples, units)`.
        output: as the layer gives it: `(steps and samples, features)`, of a cell the hidden state.
        samples: how many sequences.
    """

    inner: Mapping[str, Tensor]
    output: Tensor
    samples: int


class _Weights(NamedTuple):
    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None
    hidden_bias: Tensor | None
    projection: Tensor | None = None


class _Sequence(NamedTuple):
    data: Tensor  # (steps and samples, features), step after step, as packed sequences have it
    sizes: list[int]  # how many samples each step has


@torch.no_grad()
def unrolled(module: nn.RNNBase | nn.RNNCellBase, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Unrolled:
    """Compute a call of a recurrent layer again in plain PyTorch.

    All layers, both directions, projections, packed sequences. Between layers in training it draws dropout masks from
    where torch's generator stands: those of the call, on a CPU, when it stands where it stood then.

    Args:
        module: the layer.
        args: its arguments.
        kwargs: its keyword arguments.

    Returns:
        What its gates and its tanhs took, and its output.

    Example:
        >>> rnn, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
        >>> again = unrolled(rnn, (x,), {})
        >>> list(again.inner), torch.allclose(again.output.view(5, 2, 4), rnn(x)[0], atol=1e-6)
        (['l0.input', 'l0.forget', 'l0.output', 'l0.candidate', 'l0.cell'], True)
    """
    given = dict(zip(("input", "hx"), args, strict=False)) | dict(kwargs)
    if isinstance(module, nn.RNNCellBase):
        return _cell(module, given["input"], given.get("hx"))
    return _layers(module, given["input"], given.get("hx"))


def _cell(module: nn.RNNCellBase, x: Tensor, hx: Any) -> Unrolled:
    kind = next(name for cell, name in _CELLS.items() if isinstance(module, cell))
    if kind == "RNN":
        kind = f"RNN_{str(module.nonlinearity).upper()}"
    x = x.unsqueeze(0) if x.ndim == 1 else x
    weights = _Weights(*(_wide(getattr(module, f"{name}_{to}")) for name in ("weight", "bias") for to in ("ih", "hh")))
    states = [each.reshape(len(x), -1) for each in (hx if isinstance(hx, tuple) else (hx,)) if each is not None]
    inner, output = _layer(kind, _Sequence(x, [len(x)]), states, weights, reverse=False)
    return Unrolled(inner, output, len(x))


def _layers(module: nn.RNNBase, x: Tensor | PackedSequence, hx: Any) -> Unrolled:
    states = [] if hx is None else [hx] if isinstance(hx, Tensor) else list(hx)
    sequence, order = _as_sequence(module, x)
    if order is not None:
        states = [each.index_select(1, order) for each in states]
    states = [each.unsqueeze(1) if each.ndim == 2 else each for each in states]
    inner: dict[str, Tensor] = {}
    directions = 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        outputs = []
        for reverse in (False, True)[:directions]:
            label = f"l{layer}_reverse" if reverse else f"l{layer}"
            place = layer * directions + reverse
            found, output = _layer(
                module.mode, sequence, [each[place] for each in states], _weights_of(module, label), reverse=reverse
            )
            inner.update((f"{label}.{name}", value) for name, value in found.items())
            outputs.append(output)
        data = torch.cat(outputs, -1)
        if module.training and module.dropout and layer < module.num_layers - 1:
            data = F.dropout(data, module.dropout, True)
        sequence = _Sequence(data, sequence.sizes)
    return Unrolled(inner, sequence.data, sequence.sizes[0])


def _as_sequence(module: nn.RNNBase, x: Tensor | PackedSequence) -> tuple[_Sequence, Tensor | None]:
    """The steps one after the other, and the order in which a packed sequence has its samples."""
    if isinstance(x, PackedSequence):
        return _Sequence(x.data, x.batch_sizes.tolist()), x.sorted_indices
    if x.ndim == 2:
        x = x.unsqueeze(1)
    elif module.batch_first:
        x = x.transpose(0, 1)
    return _Sequence(x.flatten(0, 1), [x.shape[1]] * len(x)), None


def _weights_of(module: nn.RNNBase, label: str) -> _Weights:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    return _Weights(*(_wide(getattr(module, f"{name}_{label}", None)) for name in names))


def _wide(tensor: Any) -> Any:
    """Halves in float32."""
    return tensor.float() if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _layer(
    kind: str, sequence: _Sequence, states: list[Tensor], weights: _Weights, *, reverse: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """One layer in one direction: what is inside, and its output, both in the order of the sequence."""
    samples = sequence.sizes[0]
    width = weights.hidden.shape[1]
    units = width if weights.projection is None else weights.projection.shape[1]
    blank = weights.hidden.new_zeros
    h = _wide(states[0]).clone() if states else blank(samples, width)
    c = _wide(states[1]).clone() if len(states) > 1 else blank(samples, units)
    driven = torch.split(F.linear(_wide(sequence.data), weights.input, weights.input_bias), sequence.sizes)
    steps: list[tuple[dict[str, Tensor], Tensor]] = []
    for t in reversed(range(len(driven))) if reverse else range(len(driven)):
        size = sequence.sizes[t]
        # Samples that have ended, or backwards have not begun, keep their state.
        inner, h[:size], c[:size] = _STEPS[kind](driven[t], h[:size], c[:size], weights)
        steps.append((inner, h[:size].clone()))
    if reverse:
        steps.reverse()
    inside = {name: torch.cat([inner[name] for inner, _ in steps]) for name in steps[0][0]}
    return inside, torch.cat([output for _, output in steps])


def _lstm(driven: Tensor, h: Tensor, c: Tensor, weights: _Weights) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    i, f, g, o = (driven + F.linear(h, weights.hidden, weights.hidden_bias)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    if weights.projection is not None:
        h = F.linear(h, weights.projection)
    return {"input": i, "forget": f, "output": o, "candidate": g, "cell": c}, h, c


def _gru(driven: Tensor, h: Tensor, c: Tensor, weights: _Weights) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    (r, z, n), own = driven.chunk(3, 1), F.linear(h, weights.hidden, weights.hidden_bias).chunk(3, 1)
    r, z = r + own[0], z + own[1]
    n = n + r.sigmoid() * own[2]
    h = n.tanh() + z.sigmoid() * (h - n.tanh())
    return {"reset": r, "update": z, "candidate": n}, h, c


def _tanh(driven: Tensor, h: Tensor, c: Tensor, weights: _Weights) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    z = driven + F.linear(h, weights.hidden, weights.hidden_bias)
    return {"hidden": z}, z.tanh(), c


def _relu(driven: Tensor, h: Tensor, c: Tensor, weights: _Weights) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    h = (driven + F.linear(h, weights.hidden, weights.hidden_bias)).relu()
    return {RECTIFIED: h}, h, c


_STEPS = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _tanh, "RNN_RELU": _relu}
