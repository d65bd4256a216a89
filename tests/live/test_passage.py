import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.live.operations import operation_name
from holdfast.live.passage import Passage
from holdfast.live.replay import record_call


class Log(Passage):
    def __init__(self):
        super().__init__()
        self.lines = []

    def entered(self, path, module, inputs):
        inputs[0][0].sum()  # an operation of the listener, which is none of the model's
        self.lines.append(f"> {path}")

    def left(self, path, module, inputs, output):
        self.lines.append(f"< {path}")

    def after(self, function, inputs, output, memo):
        self.lines.append(f"{self.stack[-1][0]}:{operation_name(function)}")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2))
        self.fail = False

    def forward(self, x):
        x = F.gelu(self.inner(x))
        if self.fail:
            raise RuntimeError("planted")
        return x


def test_modules_and_operations_are_told_in_order():
    log = Log()
    log.follow(Net(), record_call((torch.ones(1, 2),), {}))
    lines = [line for line in log.lines if not line.endswith(":")]  # without looks at attributes
    assert lines == ["> ", "> inner", "> inner.0", "inner.0:linear", "< inner.0", "< inner", ":gelu", "< "]
    assert log.stack == []


def test_a_forward_that_raises_leaves_neither_hooks_nor_a_stack():
    net, log = Net(), Log()
    net.fail = True
    call = record_call((torch.ones(1, 2),), {})
    with pytest.raises(RuntimeError, match="planted"):
        log.follow(net, call)
    assert log.stack == []
    assert log.lines[-1] == "< "
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    net.fail = False
    log.lines.clear()
    log.follow(net, call)
    assert log.lines[0] == "> "
