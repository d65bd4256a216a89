import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.live.locate import first_nonfinite
from holdfast.live.replay import record_call


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def located(net, *args, loss=None, **kwargs):
    return first_nonfinite(net, record_call(args, kwargs), loss)


def constant(value):
    layer = nn.Linear(2, 2, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


@pytest.mark.parametrize(
    ("function", "operation", "count"),
    [
        (lambda x: (x - 3).log(), "log", "4 NaN among 4 values (float32) from finite inputs between -1 and -1"),
        (lambda x: (x - 2) / (x - 2), "div", "4 NaN among 4 values (float32) from finite inputs between 0 and 0"),
        (
            lambda x: (x * 50).exp(),
            "exp",
            "4 infinities among 4 values (float32) from finite inputs between 100 and 100",
        ),
        (lambda x: F.softplus(x).half() * 60000, "mul", "4 infinities among 4 values (float16)"),
        (lambda x: (x - 3).log_(), "log_", "4 NaN among 4 values (float32)"),
    ],
    ids=["log of negative", "0/0", "overflow", "half overflow", "in place"],
)
def test_planted_operations_are_named_with_module_and_function(function, operation, count):
    net = nn.Sequential(constant(1.0), nn.Sequential(nn.ReLU(), Apply(function)), nn.Identity())
    culprit = located(net, torch.ones(2, 2))
    assert (culprit.where, culprit.operation, culprit.kind) == ("1.1", operation, "operation")
    assert culprit.detail.startswith(f"{operation} in 1.1 gave {count}")


def test_a_layer_of_torch_is_named():
    net = nn.Sequential(constant(1e30), nn.ReLU(), constant(1e30))
    culprit = located(net, torch.ones(1, 2))
    assert (culprit.where, culprit.operation) == ("2", "linear")
    assert culprit.detail.startswith("linear in 2 gave 2 infinities among 2 values (float32) from finite inputs")


def test_nan_in_the_batch():
    culprit = located(nn.Linear(2, 2), torch.tensor([[1.0, math.nan]]))
    assert (culprit.where, culprit.operation, culprit.kind) == ("", "", "input")
    assert culprit.detail == "the batch itself (argument 1 of the model) holds 1 NaN among 2 values (float32)"
    culprit = located(nn.Linear(2, 2), input=torch.tensor([[1.0, -math.inf]]))
    assert "argument 'input' of the model) holds 1 infinity" in culprit.detail


def test_nan_in_a_weight():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    net[1][0].weight.data[0, 0] = math.nan
    culprit = located(net, torch.ones(1, 2))
    assert (culprit.where, culprit.kind) == ("1.0", "parameter")
    assert culprit.detail == "the parameter 1.0.weight already held 1 NaN among 4 values (float32) before this forward"


def test_nan_in_a_buffer_only_where_it_is_used():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    net[0].running_mean[0] = math.nan
    assert located(net, torch.randn(4, 2)) is None  # training uses the batch's statistics
    culprit = located(net.eval(), torch.randn(4, 2))
    assert (culprit.where, culprit.operation, culprit.kind) == ("0", "batch_norm", "parameter")
    assert "the buffer 0.running_mean already held 1 NaN" in culprit.detail


def test_running_statistics_spoilt_by_the_failing_forward_are_not_blamed():
    net = nn.Sequential(Apply(lambda x: (x - 9).log()), nn.BatchNorm1d(2))
    x = torch.ones(4, 2)
    call = record_call((x,), {})
    net(x)
    assert net[1].running_mean.isnan().all()
    assert first_nonfinite(net, call).operation == "log"


def test_a_loss_that_broke_after_a_finite_forward():
    culprit = located(constant(1.5), torch.ones(1, 2), loss=math.inf)
    assert (culprit.where, culprit.operation, culprit.kind) == ("", "", "loss")
    assert culprit.detail == (
        "the loss is inf although the model's output is finite (largest magnitude 3): look at the loss function "
        "and the targets"
    )


def test_all_finite():
    assert located(nn.Linear(2, 2), torch.ones(1, 2)) is None
    assert located(nn.Linear(2, 2), torch.ones(1, 2), loss=0.5) is None
    assert located(nn.Embedding(3, 2), torch.tensor([1])) is None


def masked_attention(x, mask):
    scores = x @ x.transpose(-1, -2)
    return scores.masked_fill(mask, -math.inf).softmax(-1) @ x


def test_infinities_of_a_mask_are_excused():
    mask = torch.ones(3, 3).triu(1).bool()
    assert located(Apply(lambda x: masked_attention(x, mask)), torch.randn(3, 2)) is None
    layer = nn.TransformerEncoderLayer(4, 1, 8, batch_first=True)
    causal = nn.Transformer.generate_square_subsequent_mask(3)
    assert located(layer, torch.randn(2, 3, 4), src_mask=causal) is None


def test_a_row_that_is_masked_as_a_whole_is_blamed_on_the_softmax():
    mask = torch.ones(3, 3).bool()
    culprit = located(Apply(lambda x: masked_attention(x, mask)), torch.randn(3, 2))
    assert culprit.operation == "softmax"
    assert culprit.detail.endswith("from inputs that a mask had filled with infinities")


def test_what_does_not_reach_the_output_is_blamed_only_for_the_gradient():
    # The classical trap: the branch not taken by `where` is NaN, its gradient is too.
    net = nn.Sequential(nn.Linear(1, 1), Apply(lambda x: torch.where(x > 0, x.sqrt(), 0.0)))
    nn.init.constant_(net[0].weight, -1.0)
    nn.init.constant_(net[0].bias, 0.0)
    x = torch.ones(2, 1)
    assert located(net, x) is None
    call = record_call((x,), {})
    loss = net(x).sum()
    loss.backward()
    culprit = first_nonfinite(net, call, loss.item())
    assert (culprit.where, culprit.operation, culprit.kind) == ("0", "backward", "gradient")
    assert "sqrt in 1 gave 2 NaN among 2 values (float32)" in culprit.detail
    assert culprit.detail.endswith("which did not reach the output but breaks the gradient")


def test_the_first_of_several_is_named():
    def function(x):
        early, late = (x - 5).log(), (x - 6).sqrt()
        return late, early.exp()

    assert located(Apply(function), torch.ones(2)).operation == "log"


def test_uninitialised_memory_is_not_blamed():
    def function(x):
        output = torch.empty(2)  # NaN, under deterministic algorithms
        assert output.isnan().all()
        output[:1] = (x - 5).log()[:1]
        return output

    torch.use_deterministic_algorithms(True)
    try:
        assert located(Apply(function), torch.ones(2)).operation == "log"
    finally:
        torch.use_deterministic_algorithms(False)


def test_what_was_mended_is_forgotten():
    assert located(Apply(lambda x: (x - 5).log().nan_to_num_(0.0)), torch.ones(2)) is None


def test_masked_logits_as_output_are_as_they_should_be():
    mask = torch.tensor([True, False])
    assert located(Apply(lambda x: x.masked_fill(mask, -math.inf) + 1), torch.ones(2)) is None


def test_operations_that_cannot_be_followed_are_named_by_their_module():
    class Hidden(nn.Module):
        def forward(self, x):
            with torch._C.DisableTorchFunction():
                return (x - 5).log()

    culprit = located(nn.Sequential(nn.Identity(), Hidden()), torch.ones(2))
    assert (culprit.where, culprit.operation) == ("1", "Hidden")


def test_overflow_under_autocast_is_repeated():
    net = nn.Sequential(constant(300.0), constant(300.0))
    with torch.autocast("cpu", torch.float16):
        call = record_call((torch.ones(1, 2),), {})
    culprit = first_nonfinite(net, call)
    assert culprit.where == "1"
    assert "(float16)" in culprit.detail


def test_no_trace_is_left(hard, everything):
    x = torch.randn(16, 6)
    output = hard(x).sum()
    before = everything(hard)
    located(hard, x)
    assert everything(hard) == before
    output.backward()
