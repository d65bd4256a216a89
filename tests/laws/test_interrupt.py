"""Ctrl-C at any line leaves a model changed with a receipt, or as it was."""

import contextlib
import random
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast
from holdfast.live.replay import record_call, replay, untouched
from holdfast.treatments import DropBias, Fold, Reinitialise, ScaleRate, SwapNorm

PACKAGE = str(Path(holdfast.__file__).parent)
TRIES = 12
SLOW = ("drop-bias", "fold", "lsuv")
MAKERS = {
    "drop-bias": lambda batch: DropBias(batch=batch),
    "fold": lambda batch: Fold(batch=batch),
    "lsuv": lambda batch: Reinitialise("lsuv", batch=batch),
    "reinitialise": lambda batch: Reinitialise(),
    "scale-rate": lambda batch: ScaleRate(0.5),
    "swap-norm": lambda batch: SwapNorm("group"),
}


class Interrupted:
    """Runs a function, with one SIGINT at a chosen line of the package, or of `contextlib` on its behalf."""

    def __init__(self, at=-1):
        self.lines, self.at = 0, at

    def run(self, function):
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            return function()
        finally:
            sys.settrace(before)

    def _call(self, frame, event, argument):
        while frame.f_code.co_filename == contextlib.__file__:
            frame = frame.f_back
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame, event, argument):
        if event == "line":
            self.lines += 1
            if self.lines - 1 == self.at:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return self._line


def patient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = torch.randn(16, 4)
    model(batch).square().sum().backward()
    optimizer.step()
    return model, optimizer, batch


def everything(model, optimizer):
    """Which objects there are, their modes, and every value."""
    tensors = [*model.state_dict(keep_vars=True).items()]
    tensors += [(key, each) for state in optimizer.state.values() for key, each in state.items()]
    return (
        [(path, id(each), each.training, dict(each._forward_pre_hooks)) for path, each in model.named_modules()],
        [(key, id(each), each.detach().numpy().tobytes()) for key, each in tensors],
        [[id(each) for each in group["params"]] + [group["lr"]] for group in optimizer.param_groups],
        list(map(id, optimizer.state)),
        torch.get_rng_state().tolist(),
    )


def places(lines):
    """A sample of them, the first and the last ones among it."""
    return sorted({*range(3), *range(lines - 8, lines), *random.Random(0).sample(range(lines), min(TRIES, lines))})


@pytest.mark.parametrize("name", [pytest.param(each, marks=[pytest.mark.slow] * (each in SLOW)) for each in MAKERS])
def test_apply_and_undo(name):
    def measured():
        model, optimizer, batch = patient()
        return MAKERS[name](batch).plan(model, optimizer), model, optimizer

    def attempt(function, at):
        interrupted = Interrupted(at)
        try:
            return interrupted.run(function), interrupted.lines
        except KeyboardInterrupt:
            return None, interrupted.lines

    handler = signal.getsignal(signal.SIGINT)
    plan, _, _ = measured()
    receipt, lines = attempt(plan.apply, -1)
    _, lines_of_undo = attempt(receipt.undo, -1)
    stopped = 0
    for at in places(lines):
        plan, model, optimizer = measured()
        before = everything(model, optimizer)
        receipt, _ = attempt(plan.apply, at)
        assert signal.getsignal(signal.SIGINT) is handler
        stopped += receipt is None
        if receipt is not None:
            receipt.undo()
        assert everything(model, optimizer) == before, at
        plan.apply().undo()
        assert everything(model, optimizer) == before, at
    assert stopped > TRIES / 2
    for at in places(lines_of_undo):
        plan, model, optimizer = measured()
        before = everything(model, optimizer)
        receipt = plan.apply()
        attempt(receipt.undo, at)
        if not receipt.undone:
            receipt.undo()
        assert everything(model, optimizer) == before, at


@pytest.mark.parametrize("bare", [False, True])
def test_replay(bare):
    model, optimizer, batch = patient()
    call = record_call((batch,), {})

    def run():
        if not bare:
            return replay(model, call, mode="eval")
        with untouched(model, mode="eval"):
            return model(batch)

    counted = Interrupted()
    counted.run(run)
    before = everything(model, optimizer)
    for at in places(counted.lines):
        with pytest.raises(KeyboardInterrupt):
            Interrupted(at).run(run)
        assert everything(model, optimizer) == before, at
