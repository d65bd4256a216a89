"""Gradient ICS: how far a layer's gradient moves because the layers before it were updated.

    G_i   = ∇_{W_i} L(W_1, …, W_k; B)                                  at θᵗ
    G′_i  = ∇_{W_i} L(W_1 + ΔW_1, …, W_{i−1} + ΔW_{i−1}, W_i, …, W_k; B)
    ICS_i = ‖G_i − G′_i‖₂

    relative  ‖G_i − G′_i‖ / ‖G_i‖          cosine  cos(G_i, G′_i)
    debiased  √max(0, ⟨D₁, D₂⟩),  D_h = G_i − G′_i on one half of the batch: E⟨D₁, D₂⟩ = ‖E D‖²
    at ρ      the same with the step ΔW_j = −ρ ‖W_j‖ G_j / ‖G_j‖ of every tensor before layer i

What it sees:
    The update of a step is made for all layers at once, each by a gradient that holds the others fixed. The figure is
    what that assumption costs a layer: its gradient as it was computed, against its gradient once the layers that run
    before it have made their real step (biases, gains and shifts included). Layers stand in the order of execution; a
    shared parameter belongs to its first use; the first layer has 0.

Why it matters:
    Where relative ICS nears 1, or the cosine falls, a layer's step was aimed at a network that no longer exists.

When it is wrong:
    Steps of two networks differ in size, and ICS grows with the step: Santurkar et al. found no less of it in networks
    with BatchNorm, at each network's own steps. Compare networks at equal ρ as well; the conclusion can depend on it.
    On one batch the difference contains that batch's noise: raw² beyond debiased² is it (with BatchNorm, halves have
    noisier statistics of their own). The raw norm has the loss's unit over the weight's: where a normaliser follows,
    doubling W halves G, and only `‖W‖·‖G − G′‖` compares (told by w·g = 0; empty elsewhere). ICS says that layers
    interact, not that training suffers from it.

Example:
    >>> import torch
    >>> from torch import nn
    >>> chain = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(2)])  # ŷ = w₂ w₁ x, L = ŷ
    >>> for layer, weight in zip(chain, (3.0, 5.0)):
    ...     _ = nn.init.constant_(layer.weight, weight)
    >>> batch = torch.ones(4, 1), torch.zeros(4)
    >>> def loss_fn(output, targets):
    ...     return output.mean()
    >>> table = gradient_ics(chain, loss_fn, batch, {"0.weight": torch.ones(1, 1)}, at="before", matched=())
    >>> table.rows, table.columns[:3]
    (('0', '1'), ('raw', 'relative', 'cosine'))
    >>> [round(value, 6) for value in table.values[1][:3]]          # G₂ = w₁ = 3, G′₂ = w₁ + 1 = 4
    [1.0, 0.333333, 1.0]

References:
    Santurkar, Tsipras, Ilyas & Madry 2018, "How does batch normalization help optimization?", Definition 2.1.
    van Laarhoven 2017, "L2 regularization versus batch and weight normalization" (scale-invariant weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Table
from holdfast.core.units import Unit
from holdfast.core.warn import warn_user
from holdfast.live.inner import inner_model
from holdfast.live.labelled_batch import LabelledBatch, gradients_of
from holdfast.live.layers import ParameterLayer, parameter_layers
from holdfast.live.moment import Moment
from holdfast.live.repeated import Repeated, repeated

QUANTITY = Quantity(
    "gradient-ics",
    "gradient ICS",
    Unit.BY_COLUMN,
    "higher is worse",
    cost="half a forward and backward per layer",
    logarithmic=True,
)

MATCHED = (1e-3, 1e-2)
"""Relative steps ρ at which networks are compared unless told otherwise."""

# A step of the prefix: from the parameters and their gradients at θᵗ to the parameters after it.
Step = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]

# w·g = 0 to this share of ‖w‖‖g‖: for each output on its own, or for the whole weight. By chance it is about 0.8/√n of
# n weights, so 0.8/√4608 = 0.012 for an output of 512 · 3 · 3 weights, and 0.003 for a whole weight of 65,536.
_OUTPUTS_INVARIANT = 1e-3
_WHOLE_INVARIANT = 1e-4


def gradient_ics(
    model: nn.Module,
    loss_fn: Callable[..., Tensor] | None,
    batch: object,
    update: Mapping[str, Tensor],
    *,
    at: Literal["after", "before"] = "after",
    matched: Sequence[float] = MATCHED,
    debiased: bool = True,
    repeatable: bool = False,
    step: int = 0,
) -> Table:
    """How far each layer's gradient moves because the layers before it were updated.

    The forward pass runs in the modes that the modules have (batch statistics in a training network, without touching
    the running ones), with the same random numbers each time. Parameters, buffers, gradients, random generators are
    afterwards what they were. Calls of modules that come before the layer are not run again, so a layer costs the
    forward and the backward behind it: half a pass on average; `matched` adds as much for each ρ, `debiased` once more.

    Args:
        model: compiled and distributed ones are looked into.
        loss_fn: `(output, targets)` → a scalar.
        batch: `(inputs, targets)`; inputs as the model takes them: one tensor, a tuple of positional or a dictionary of
            keyword arguments.
        update: ΔW = W after the step − W before it, by the parameter's name, as the optimiser really made it; a
            parameter that is left out did not move.
        at: which parameters the model holds now: those `"after"` the update, as in a loop behind `optimizer.step()`,
            or those `"before"` it.
        matched: relative steps ρ for the variant that makes networks comparable; `()` leaves it out.
        debiased: also on two halves of the batch, for the figure without the batch's noise.
        repeatable: the forward is known to draw from the global generators and those of its modules only. Else a model
            with code of the user's is run once more, to see whether it repeats itself.
        step: the optimiser step, for the table.

    Returns:
        One row a layer with something to train, in the order of execution; columns `raw` (L2 norm), `relative`,
        `cosine`, `‖W‖·raw` (scale-invariant weights only), `debiased`, `debiased relative`, and for each ρ
        `relative at ρ=…`, `cosine at ρ=…`. NaN where there is no figure: in the whole row of a layer that no gradient
        reaches. `n` is the number of samples.

    Raises:
        InputError: no loss; no pair of inputs and targets, or too few samples for halves; an update with unknown names,
            other shapes or values that are not finite; a forward that gives another output when it is repeated, or
            that cannot be differentiated.
    """
    if at not in ("after", "before"):
        raise InputError('at="after" or at="before"', f"at={at!r}", 'behind optimizer.step(), type: at="after"')
    with torch.inference_mode(False):
        given = LabelledBatch.of(batch, loss_fn)
        change = _checked_update(model, update)
        present = {name: value.detach() for name, value in inner_model(model).named_parameters()}
        sign = 1.0 if at == "before" else -1.0
        other = {**present, **{name: present[name] + sign * delta for name, delta in change.items()}}
        before, after = (present, other) if at == "before" else (other, present)
        table = _measure(model, given, before, after, _checked_steps(matched), debiased, step, check=not repeatable)
    unreached = [row for row, values in zip(table.rows, table.values, strict=True) if math.isnan(values[0])]
    if unreached:
        warn_user(f"no gradient, or none that is finite, reaches {', '.join(unreached)}: there is no figure")
    return table


def take(moment: Moment) -> list[Table]:
    """Gradient ICS of one step in a watch.

    Args:
        moment: with the parameters before the step, a batch and the loss.

    Returns:
        The table of `gradient_ics`; without the debiased columns where the batch is too small for halves.
    """
    assert moment.before is not None
    given = moment.labelled
    after = {name: value.detach() for name, value in moment.model.named_parameters()}
    before = {**after, **moment.before}
    return [_measure(moment.model, given, before, after, MATCHED, given.can_be_cut(2), moment.step)]


def _measure(
    model: nn.Module,
    batch: LabelledBatch,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    matched: Sequence[float],
    debiased: bool,
    step: int,
    *,
    check: bool = True,
) -> Table:
    def real(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return after

    parts = batch.parts(2, "type: debiased=False") if debiased else ()
    whole = _gradients(model, batch, before, [real, *map(_along_gradient, matched)], check=check)
    halves = [_gradients(model, half, before, [real]) for half in parts]
    columns = ["raw", "relative", "cosine", "‖W‖·raw"]
    columns += ["debiased", "debiased relative"] if debiased else []
    columns += [f"{what} at ρ={rho:g}" for rho in matched for what in ("relative", "cosine")]
    rows = []
    for layer in whole.layers:
        names = [name for name in layer.names if name in whole.old]
        if not names:
            rows.append((math.nan,) * len(columns))
            continue
        shifts = [_Shift.of(whole.old, new, names) for new in whole.new]
        row = [shifts[0].raw, shifts[0].relative, shifts[0].cosine]
        row.append(_scale_free(before, [whole, *halves], names))
        row += _without_noise(halves, names) if debiased else []
        row += [value for shift in shifts[1:] for value in (shift.relative, shift.cosine)]
        rows.append(tuple(row))
    labels = tuple(layer.label for layer in whole.layers)
    return Table(QUANTITY.name, step, QUANTITY.unit, labels, tuple(columns), tuple(rows), batch.samples)


class _Gradients(NamedTuple):
    """Gradients on one batch, at θᵗ and behind the prefix of each step, by name; without those that are `None`."""

    layers: list[ParameterLayer]
    old: dict[str, Tensor]
    new: list[dict[str, Tensor]]


def _gradients(
    model: nn.Module, batch: LabelledBatch, before: Mapping[str, Tensor], steps: Sequence[Step], *, check: bool = False
) -> _Gradients:
    layers: list[ParameterLayer] = []
    behind: list[dict[str, Tensor]] = []
    trained = {name for name, parameter in inner_model(model).named_parameters() if parameter.requires_grad}
    with repeated(model, batch.call()) as forward:
        before = {forward.name_of(name): value for name, value in before.items()}
        leaves = {name: before[name].detach().requires_grad_() for name in sorted(trained)}
        output = forward.run({**before, **leaves})
        old = _present(leaves, gradients_of(batch.traced_loss(output), list(leaves.values())))
        if check:
            batch.refuse_random(model, output, lambda: forward.run(before))
        del output
        for step in steps:
            after = {forward.name_of(name): value for name, value in step(before, old).items()}
            found, new = _behind_prefix(model, forward, batch, before, after, old)
            layers = layers or found
            behind.append(new)
    return _Gradients([layer for layer in layers if trained.intersection(layer.names)], old, behind)


def _behind_prefix(
    model: nn.Module,
    forward: Repeated,
    batch: LabelledBatch,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    old: Mapping[str, Tensor],
) -> tuple[list[ParameterLayer], dict[str, Tensor]]:
    """The gradient of each layer with all layers before it at `after`, itself and all others at `before`."""
    memo = forward.record(after)
    layers = parameter_layers(inner_model(model), memo)
    hidden = sorted(old.keys() - set(memo.order))
    if hidden:
        raise InputError(
            "parameters whose use in the forward pass can be seen",
            f"{hidden[0]!r}, which has a gradient, but no operation of torch took it",
            "hand it to an operation of torch (torch.ops, an autograd.Function), or freeze it",
        )
    new = {name: old[name] for name in layers[0].names if name in old} if layers else {}
    for number, layer in enumerate(layers[1:], start=1):
        names = [name for name in layer.names if name in old]
        if not names:
            continue
        leaves = {name: before[name].detach().requires_grad_() for name in names}
        still = {name: before[name] for each in layers[number:] for name in each.names}
        output = forward.run({**still, **leaves}, memo=memo)
        loss = batch.loss(output)  # without a graph where the layer has no part in it
        found = _present(leaves, gradients_of(loss, list(leaves.values()))) if loss.requires_grad else {}
        new.update({name: found[name] if name in found else torch.zeros_like(old[name]) for name in names})
    return layers, new


def _present(leaves: Mapping[str, Tensor], gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
    pairs = zip(leaves, gradients, strict=True)
    return {name: gradient.detach() for name, gradient in pairs if gradient is not None}


def _along_gradient(rho: float) -> Step:
    """Every tensor moved by ρ‖W‖ against its gradient."""

    def move(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        moved = dict(parameters)
        for name, gradient in gradients.items():
            size = _norm([gradient])
            if size > 0:
                moved[name] = parameters[name] - gradient * (rho * _norm([parameters[name]]) / size)
        return moved

    return move


class _Shift(NamedTuple):
    raw: float
    relative: float
    cosine: float

    @classmethod
    def of(cls, old: Mapping[str, Tensor], new: Mapping[str, Tensor], names: Sequence[str]) -> _Shift:
        g, g_new = ([each[name] for name in names] for each in (old, new))
        raw = _norm([b - a for a, b in zip(g, g_new, strict=True)])
        size, new_size = _norm(g), _norm(g_new)
        relative = raw / size if size > 0 else math.nan
        cosine = _dot(g, g_new) / (size * new_size) if size > 0 and new_size > 0 else math.nan
        if raw == 0 and size > 0:
            cosine = 1.0  # the very same gradient, without the rounding of its norm
        return cls(raw, relative, min(1.0, max(-1.0, cosine)) if math.isfinite(cosine) else math.nan)


def _without_noise(halves: Sequence[_Gradients], names: Sequence[str]) -> tuple[float, float]:
    """√⟨D₁, D₂⟩, and its share of √⟨G₁, G₂⟩; 0 where chance made the product negative."""
    if not all(name in half.old and name in half.new[0] for half in halves for name in names):
        return math.nan, math.nan
    d = [[half.new[0][name] - half.old[name] for name in names] for half in halves]
    g = [[half.old[name] for name in names] for half in halves]
    moved, gradient = _dot(d[0], d[1]), _dot(g[0], g[1])
    value = math.sqrt(max(0.0, moved)) if math.isfinite(moved) else math.nan
    return value, value / math.sqrt(gradient) if gradient > 0 else math.nan


def _scale_free(weights: Mapping[str, Tensor], found: Sequence[_Gradients], names: Sequence[str]) -> float:
    """‖W‖·‖G − G′‖ of the layer's matrices and kernels, NaN where the loss depends on their scale."""
    matrices = [name for name in names if weights[name].ndim >= 2]
    if not matrices:
        return math.nan
    for each in found:
        for gradients in (each.old, *each.new):
            if not all(name in gradients and _orthogonal(weights[name], gradients[name]) for name in matrices):
                return math.nan
    whole = found[0]
    return _norm([weights[name] for name in matrices]) * _norm(
        [whole.new[0][name] - whole.old[name] for name in matrices]
    )


def _orthogonal(weight: Tensor, gradient: Tensor) -> bool:
    """Whether w·g = 0: for every output on its own (BatchNorm behind it), or for the whole (LayerNorm)."""
    w, g = (_real(each).flatten(1) for each in (weight, gradient))
    dots, sizes = (w * g).sum(1), _norm([w]) * _norm([g])
    if not sizes > 0:
        return False
    if abs(float(dots.sum())) < _WHOLE_INVARIANT * sizes:
        return True
    by_output = float(dots.abs().sum())
    if by_output > _OUTPUTS_INVARIANT * sizes:  # Σ ‖w_c‖‖g_c‖ ≤ ‖w‖‖g‖
        return False
    return by_output < _OUTPUTS_INVARIANT * float((w.norm(dim=1) * g.norm(dim=1)).sum())


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(_real(each))) for each in tensors))


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    # Not by @, which the caller's automatic casting would round to half precision.
    return sum(float((_real(x) * _real(y)).sum()) for x, y in zip(a, b, strict=True))


def _real(tensor: Tensor) -> Tensor:
    """In a type that sums keep their digits in: torch's float32 sums of n values round to about 1e-7 of their size."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.detach() if tensor.dtype in (torch.float32, torch.float64) else tensor.detach().float()


def _checked_update(model: nn.Module, update: object) -> dict[str, Tensor]:
    """The update by first names, in the parameters' types."""
    fix = "type: update = {name: p.detach() - before[name] for name, p in model.named_parameters()}"
    if not isinstance(update, Mapping) or not update:
        raise InputError(
            "the update of at least one parameter, by its name", f"{type(update).__name__} {update!r:.60}", fix
        )
    inner = inner_model(model)
    first = {id(value): name for name, value in inner.named_parameters()}
    parameters = dict(inner.named_parameters(remove_duplicate=False))
    found: dict[str, Tensor] = {}
    for name, delta in update.items():
        if name not in parameters:
            raise InputError("updates of the model's parameters", f"one of {name!r}, which it has not", fix)
        parameter = parameters[name]
        if not isinstance(delta, Tensor) or delta.shape != parameter.shape:
            got = f"shape {tuple(delta.shape)}" if isinstance(delta, Tensor) else f"a {type(delta).__name__}"
            raise InputError(f"an update of shape {tuple(parameter.shape)} for {name!r}", got, fix)
        if not math.isfinite(_norm([delta])):
            raise InputError(
                "a finite update", f"NaN or infinity in that of {name!r}", "measure a step that did not diverge"
            )
        name = first[id(parameter)]
        if name in found and not torch.equal(found[name], delta.to(parameter)):
            raise InputError(f"one update for {name!r}", "two that differ, under two of its names", fix)
        found[name] = delta.detach().to(parameter)
    return found


def _checked_steps(matched: Sequence[float]) -> tuple[float, ...]:
    if not all(isinstance(rho, int | float) and 0 < rho < math.inf for rho in matched):
        raise InputError("relative steps above 0", f"matched={matched!r}", "type: matched=(1e-3, 1e-2)")
    return tuple(float(rho) for rho in matched)
