"""`reinitialise`: weights drawn anew at the scale that keeps the signal alive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.optimiser import check_optimizer, forget
from holdfast.live.surgery import check_model
from holdfast.treatments.change import Batch, Change, call_of, planned, rerun
from holdfast.treatments.left import left_alone, why_nothing
from holdfast.treatments.places import (
    WEIGHTED,
    Leaf,
    activation_behind,
    expression,
    leaves,
    named,
    weighted_before,
)

Scheme = Literal["auto", "he", "glorot", "orthogonal", "lsuv"]

_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish)

_TOLERANCE, _ROUNDS = 0.02, 10
"""LSUV: how near to 1 the variance of a layer's output is brought, and in how many rounds (as in the paper's code)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Target:
    """One layer whose weights are drawn anew."""

    path: str
    layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    scheme: Scheme
    gain: float


@dataclass(frozen=True, slots=True, eq=False)
class Reinitialise:
    """Draws weights anew and makes the optimiser forget them.

    What it does:
        Weights of the named linear and convolutional layers (of the layers that feed the named activations; of all
        when none is named) are drawn anew and their biases set to zero, in the same `Parameter` objects. What the
        optimiser remembers of them is dropped. Global random generators do not move: the draws come from `seed`.
        He: normal, SD g/√fan_in; Glorot: normal, SD √(2/(fan_in + fan_out)); orthogonal: a random rotation times
        g; g = √2 in front of a rectifier, else 1. LSUV: orthogonal, then each layer in turn is scaled until its
        output on the batch has unit variance.

    When it helps:
        Before or soon after step 1, when the signal collapses or explodes with depth, or units saturate or die
        because of the scale that weights started at.

    When it is wrong:
        On a network that has learnt something: it is lost in these layers. Where the initial scale is meant
        (zero-initialised last layers of residual branches, embeddings tied to the output).

    Example:
        >>> model = nn.Sequential(nn.Linear(400, 100), nn.ReLU(), nn.Linear(100, 1))
        >>> before = model[0].weight.detach().clone()
        >>> receipt = Reinitialise("he").plan(model, None, [Site("0", "weight")]).apply()
        >>> round(model[0].weight.std().item(), 3)  # √(2/400) = 0.071
        0.071
        >>> receipt.undo()
        >>> torch.equal(model[0].weight, before)
        True

    Args:
        scheme: how; `"auto"` is He in front of a rectifier, Glorot elsewhere.
        batch: what the model is called with; needed by LSUV; then the receipt states the error.
        seed: of the draws.

    References:
        Glorot and Bengio, Understanding the difficulty of training deep feedforward networks, AISTATS 2010.
        Saxe, McClelland and Ganguli, Exact solutions to the nonlinear dynamics of learning, 2013, arXiv:1312.6120.
        He et al., Delving deep into rectifiers, 2015, arXiv:1502.01852.
        Mishkin and Matas, All you need is a good init, 2015, arXiv:1511.06422.
    """

    name = "reinitialise"

    scheme: Any = "auto"
    batch: Batch | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a scheme that does not exist.

        Raises:
            InputError: it is unknown.
        """
        if self.scheme not in get_args(Scheme):
            raise InputError(
                "scheme= one of " + ", ".join(map(repr, get_args(Scheme))), repr(self.scheme), 'type: scheme="auto"'
            )

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out which weights are drawn anew, and how.

        Args:
            model: the model.
            optimizer: the one that steps it, if any.
            sites: which layers; all linear and convolutional ones when none is named.

        Returns:
            The plan; its diff also names the layers left alone, and why.

        Raises:
            SurgeryError: no layer qualifies, LSUV has no batch, or the model cannot be operated on.
        """
        check_model(model)
        if optimizer is not None:
            check_optimizer(model, optimizer)
        if self.scheme == "lsuv" and self.batch is None:
            raise SurgeryError("a batch on which LSUV measures", "none", 'type: Reinitialise("lsuv", batch=inputs)')
        order = leaves(model, self.batch)
        targets, diff, source = [], [], ["with torch.no_grad():"]
        for path, module in _layers(model, order, sites):
            reason = _reason_against(model, module)
            if reason is not None:
                diff.append(left_alone(path, reason))
                continue
            target = self._target(order, path, module)
            targets.append(target)
            sd = module.weight.detach().double().std(correction=0).item()
            diff += [f"- {path}.weight: SD {sd:.4g}", f"+ {path}.weight: {_words(target)}"]
            source += [f"    {line}" for line in _lines(target, expression(model, path))]
        if not targets:
            raise SurgeryError(
                "linear or convolutional layers whose weights may be drawn anew",
                why_nothing(diff) or "none among those named",
                "name other layers with sites=",
            )
        if self.scheme == "lsuv":
            source.append("    # then, layer by layer in the order of execution: weight /= SD of its output on a batch")
        source.append("# then build the optimiser anew, so that it forgets the old weights")

        def change() -> Change:
            return self._draw(model, optimizer, targets)

        return planned(
            self.name,
            model,
            change,
            diff="\n".join(diff),
            source="\n".join(source),
            batch=self.batch,
            optimizer=optimizer,
        )

    def _target(self, order: Sequence[Leaf], path: str, layer: nn.Module) -> _Target:
        rectified = isinstance(activation_behind(order, layer), _RECTIFIERS)
        scheme = ("he" if rectified else "glorot") if self.scheme == "auto" else self.scheme
        gain = math.sqrt(2.0) if rectified and scheme in ("he", "orthogonal") else 1.0
        return _Target(path, layer, scheme, gain)  # type: ignore[arg-type]

    def _draw(self, model: nn.Module, optimizer: Optimizer | None, targets: Sequence[_Target]) -> Change:
        """Draw, all or nothing."""
        parameters = [each for target in targets for each in target.layer.parameters(recurse=False)]
        kept = [(each, each.detach().clone()) for each in dict.fromkeys(parameters)]
        before = [_sd(target.layer.weight) for target in targets]

        def restore() -> None:
            with torch.no_grad():
                for parameter, value in kept:
                    parameter.copy_(value)

        try:
            self._fill(model, targets)
            lines = [
                f"{target.path}.weight: SD {sd:.4g} → {_sd(target.layer.weight):.4g}"
                for target, sd in zip(targets, before, strict=True)
            ]
            put_back = forget(optimizer, [each for each, _ in kept])
        except BaseException:  # Ctrl-C among them
            restore()
            raise

        def undo() -> None:
            restore()
            put_back()

        if optimizer is not None:
            lines.append(f"optimiser state of {len(kept)} parameters → none")
        return Change(tuple(lines), undo)

    def _fill(self, model: nn.Module, targets: Sequence[_Target]) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for target in targets:
                weight, bias = target.layer.weight, target.layer.bias
                # Drawn on the CPU in float32, so that a seed gives the same weights on every device.
                weight.copy_(_drawn(target, tuple(weight.shape), generator))
                if bias is not None:
                    bias.zero_()
            if self.scheme == "lsuv" and self.batch is not None:
                for target in targets:
                    _unit_variance(model, target, self.batch)


def _drawn(target: _Target, shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    fresh = torch.empty(shape)
    if target.scheme == "he":
        fan_in = nn.init._calculate_fan_in_and_fan_out(fresh)[0]
        return nn.init.normal_(fresh, 0.0, target.gain / math.sqrt(fan_in), generator=generator)
    if target.scheme == "glorot":
        return nn.init.xavier_normal_(fresh, generator=generator)
    return nn.init.orthogonal_(fresh, gain=target.gain, generator=generator)


def _unit_variance(model: nn.Module, target: _Target, batch: Batch) -> None:
    """Scale one layer until its output on the batch has unit variance."""
    seen: list[float] = []
    call = call_of(batch)

    def measure(module: nn.Module, args: object, output: Tensor) -> None:
        seen.append(output.detach().double().var(correction=0).item())

    handle = target.layer.register_forward_hook(measure)
    try:
        for _ in range(_ROUNDS):
            seen.clear()
            rerun(model, call)
            if not seen or not math.isfinite(seen[-1]) or seen[-1] == 0.0:
                raise SurgeryError(
                    "a layer whose output varies over the batch",
                    f"{target.path}, whose output has variance {seen[-1] if seen else 'unknown: it did not run'}",
                    "leave this layer out with sites=, or give another batch",
                )
            if abs(seen[-1] - 1.0) < _TOLERANCE:
                return
            target.layer.weight.div_(math.sqrt(seen[-1]))
    finally:
        handle.remove()


def _layers(
    model: nn.Module, order: Sequence[Leaf], sites: Sequence[Site]
) -> list[tuple[str, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d]]:
    """The layers named, or that feed those named (all when none is), in the order of execution."""
    found: list[tuple[str, Any]] = []
    if not sites:
        found = [(leaf.path, leaf.module) for leaf in order if isinstance(leaf.module, WEIGHTED)]
    else:
        for path, module in named(model, sites):
            feeding = None if isinstance(module, WEIGHTED) else weighted_before(order, module)
            if isinstance(module, WEIGHTED):
                found.append((path, module))
            elif feeding is not None:
                found.append((feeding.path, feeding.module))
    places = {id(leaf.module): place for place, leaf in enumerate(order)}
    distinct = {id(module): (path, module) for path, module in found}
    return [distinct[key] for key in sorted(distinct, key=lambda key: places.get(key, len(places)))]


def _reason_against(model: nn.Module, layer: nn.Module) -> str | None:
    if type(layer) not in WEIGHTED:
        return f"{type(layer).__name__} is a subclass, which may use its weight in its own way"
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is computed from others (parametrisation)"
    if not weight.requires_grad:
        return "its weight is frozen"
    owners = [each for each in model.modules() if any(own is weight for own in each._parameters.values())]
    if any(type(owner) not in WEIGHTED for owner in owners):
        return "its weight is tied to a layer of another kind"
    return None


def _words(target: _Target) -> str:
    if target.scheme == "lsuv":
        return "orthogonal, then scaled to unit variance of the output"
    if target.scheme == "orthogonal":
        return f"orthogonal, gain {target.gain:.4g}"
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(target.layer.weight)
    if target.scheme == "he":
        return f"He normal, SD {target.gain / math.sqrt(fan_in):.4g}"
    return f"Glorot normal, SD {math.sqrt(2.0 / (fan_in + fan_out)):.4g}"


def _lines(target: _Target, layer: str) -> list[str]:
    if target.scheme == "he":
        fill = f'nn.init.kaiming_normal_({layer}.weight, nonlinearity="{"relu" if target.gain > 1 else "linear"}")'
    elif target.scheme == "glorot":
        fill = f"nn.init.xavier_normal_({layer}.weight)"
    else:
        fill = f"nn.init.orthogonal_({layer}.weight, gain={target.gain!r})"
    return [fill] if target.layer.bias is None else [fill, f"nn.init.zeros_({layer}.bias)"]


def _sd(tensor: Tensor) -> float:
    return tensor.detach().double().std(correction=0).item()
