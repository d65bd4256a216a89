"""`preflight`: what is already wrong before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.clinic.arms import call_model
from holdfast.clinic.batches import check_loss, checked_pair
from holdfast.core.errors import InputError
from holdfast.core.finding import Diagnosis
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.diagnosis.diagnose import RULES, diagnose
from holdfast.diagnosis.wording import plural
from holdfast.kernels.compiler import postponed
from holdfast.live.inner import inner_model
from holdfast.live.leaves import observed_leaves
from holdfast.live.optimiser import check_owner
from holdfast.live.random_state import preserved_random_state
from holdfast.live.replay import record_call, untouched
from holdfast.live.structure import extract
from holdfast.measures.gradient_norm import gradient_norm
from holdfast.monitor.nonfinite import nonfinite_event
from holdfast.monitor.observer import MAX_ELEMENTS, Observer
from holdfast.monitor.roles import roles
from holdfast.monitor.site_readings import Past, site_readings
from holdfast.store.memory import MemoryRun

# What the structure or one batch can show. The other rules need steps, and would only fill the list of what could not
# be decided.
ONE_BATCH = tuple(
    rule
    for rule in RULES
    if rule.static
    or rule.name
    in {
        "collapsed-signal",
        "nonfinite",
        "poor-init",
        "saturated-units",
        "unscaled-input",
        "vanishing-gradient",
    }
)


@postponed()
def preflight(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[[Any, Any], Tensor],
    optimizer: Optimizer | None = None,
) -> Diagnosis:
    """Ask the rules that need one batch, or no more than the model and its optimiser, before training starts.

    The static rules read the structure, the others one forward and one backward pass, up to 16,384 elements of each
    tensor, all samples first; after which parameters, buffers,
    gradients and random generators are bit for bit as they were.

    Args:
        model: the network, in the mode in which it will be trained.
        batch: `(inputs, targets)`; inputs as the model takes them: a tuple for several, a dictionary by name.
        loss_fn: `(output, targets)` → a scalar.
        optimizer: whose settings are judged too; without it the rules on weight decay stay undecided.

    Returns:
        The findings on this batch; `steps` is 1, the batch's.

    Raises:
        InputError: the batch is not a pair, or the loss is not a scalar that the parameters move.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> pixels = 128 + 60 * torch.randn(64, 4)
        >>> [finding.rule for finding in preflight(net, (pixels, torch.zeros(64, 2)), nn.functional.mse_loss)]
        ['unscaled-input']
    """
    check_loss(loss_fn)
    if optimizer is not None:
        check_owner(model, optimizer)
    inputs, targets = checked_pair(batch, "a batch (inputs, targets)", "type: batch=next(iter(loader))")
    inner = inner_model(model)
    if isinstance(inputs, Mapping):
        call = record_call((), dict(inputs))
    else:
        call = record_call(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {})
    structure = extract(inner, optimizer, call=call)
    leaves = observed_leaves(inner)
    layers = roles(leaves, structure)
    observer = Observer(leaves, stream="net", max_elements=MAX_ELEMENTS, roles=layers, failed=_raise)
    run = MemoryRun("preflight")
    run.describe(structure)
    try:
        loss, gradients = _forward_and_backward(inner, inputs, targets, loss_fn, observer)
        seen, flow = observer.observations, observer.gradients
    finally:
        observer.close()
    readings = site_readings(seen, flow, [], past=Past(), structure=structure, roles=layers, step=1)
    for name, gradient in gradients.items():
        module, _, leaf = name.rpartition(".")
        site = Site(module, "weight_grad", leaf=leaf)
        readings.append(gradient_norm(float(gradient.norm()), site=site, step=1, n=gradient.numel()))
    run.write(
        StepRecord(
            1,
            values={"loss": loss, "gradient-norm": float(nn.utils.get_total_norm(list(gradients.values())))},
            summaries={site: each.summary for site, each in seen.items()}
            | {site: each.seen.summary for site, each in flow.items()},
            channels={site: each.channels for site, each in seen.items()},
            readings=tuple(readings),
            events=() if math.isfinite(loss) else (nonfinite_event(inner, call, loss, step=1),),
        )
    )
    found = diagnose(run, rules=ONE_BATCH)
    return replace(found, verdict=_verdict(found, len(next(iter(seen.values())).features.values) if seen else 0))


def _verdict(found: Diagnosis, samples: int) -> str:
    first = next((each for each in found.findings if each.severity != "info"), None)
    if first is None:
        beside = [plural(len(found.findings), "remark")] if found.findings else []
        beside += [f"{', '.join(each.rule for each in found.inconclusive)} undecided"] if found.inconclusive else []
        told = f" ({'; '.join(beside)})" if beside else ""
        return f"Nothing stands against starting that one batch of {samples} samples can show{told}"
    return f"Mend before the first step: {first.rule} ({first.severity}), on one batch of {samples} samples"


def _forward_and_backward(
    model: nn.Module, inputs: Any, targets: Any, loss_fn: Callable[[Any, Any], Tensor], observer: Observer
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by name, the observer filled, the model as before."""
    named = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    if not named:
        raise InputError("a model with a parameter to train", "none that requires a gradient", "unfreeze one first")
    with untouched(model), preserved_random_state(), torch.enable_grad():
        observer.attach()
        loss = loss_fn(call_model(model, inputs), targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise InputError(
                "a loss_fn(output, targets) that gives one number which the parameters move",
                f"{loss.numel()} numbers" if isinstance(loss, Tensor) else f"a {type(loss).__name__}",
                "type: loss_fn=torch.nn.functional.cross_entropy",
            )
        found = torch.autograd.grad(loss, [each for _, each in named], allow_unused=True)
    return float(loss.detach()), {
        name: gradient for (name, _), gradient in zip(named, found, strict=True) if gradient is not None
    }


def _raise(path: str, exception: Exception) -> None:
    raise exception
