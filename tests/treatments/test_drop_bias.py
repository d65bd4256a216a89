import copy

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.norms.adopt import adopt
from holdfast.treatments.drop_bias import DropBias


class Net(nn.Module):
    """Convolutions and a linear layer that run in another order than they are registered in."""

    def __init__(self, between=lambda y: y, beside=lambda y: 0.0):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(2, 4, 3)
        self.plain = nn.Conv2d(4, 4, 3)
        self.between, self.beside = between, beside

    def forward(self, x):
        y = self.conv(x)
        return self.plain(self.norm(self.between(y)).relu()) + self.beside(y)


def trained(model, x):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.named_parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return optimizer


def images():
    torch.manual_seed(1)
    return torch.randn(8, 2, 7, 7) * 3 + 1


def test_the_function_stays_and_the_bias_leaves_everywhere():
    x, model = images(), Net()
    optimizer = trained(model, x)
    bias = model.conv.bias
    model.eval()
    before = model(x)
    receipt = DropBias(batch=x).plan(model, optimizer).apply()
    assert bias.abs().max() > 0.01
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=0)
    assert receipt.error_eval < 1e-5
    assert receipt.error_train < 1e-5
    assert model.conv.bias is None
    assert model.plain.bias is not None
    assert "conv.bias" not in model.state_dict()
    assert "state_dict key conv.bias → none" in receipt.changes
    assert "optimiser group 0: conv.bias → none" in receipt.changes
    assert bias not in optimizer.state
    assert "conv.bias" not in optimizer.param_groups[0]["param_names"]


def test_our_norms_take_the_bias_off_too():
    x, model = images(), adopt(Net())
    trained(model, x)
    before = model.eval()(x)
    DropBias(batch=x).plan(model, None).apply()
    assert model.conv.bias is None
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=0)


def test_undo_after_training_adds_the_bias_to_the_running_mean():
    x, model = images(), Net()
    optimizer = trained(model, x)
    bias = model.conv.bias.detach().clone()
    receipt = DropBias(batch=x).plan(model, optimizer).apply()
    model.train()
    model(x)
    model.eval()
    before = model(x)
    receipt.undo()
    assert torch.equal(model.conv.bias, bias)
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Net(between=torch.relu), "a function takes its output too"),
        (Net(beside=lambda y: y.mean()), "a function takes its output too"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Dropout(), nn.BatchNorm2d(4)), "something stands between it and 2"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), "does not go into one BatchNorm"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(1, 4)), "does not go into one BatchNorm"),
    ],
)
def test_what_uses_the_bias_otherwise_keeps_it(model, reason):
    with pytest.raises(SurgeryError, match=reason):
        DropBias(batch=images()).plan(model, None, [Site("conv" if isinstance(model, Net) else "0", "output")])


def test_an_output_that_leaves_the_model_too_is_found_by_the_error_and_put_back():
    class Two(Net):
        def forward(self, x):
            y = self.conv(x)
            return self.norm(y), y

    x, model = images(), Two()
    nn.init.constant_(model.conv.bias, 2.0)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match="a change of the output by 2 in eval mode"):
        DropBias(batch=x).plan(model, None).apply()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def shared_layer():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.BatchNorm1d(4), layer, nn.BatchNorm1d(4))


def shared_bias():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].bias = model[0].bias
    return model


def shared_norm():
    norm = nn.BatchNorm1d(4)
    return nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (shared_layer, "0: left as it is: it is shared"),
        (shared_bias, "0: left as it is: its bias is shared"),
        (shared_norm, "the normaliser behind it is shared"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.InstanceNorm1d(4)), "normalises over other axes"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(3)), "takes 3 features, not 4"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), "no BatchNorm or InstanceNorm stands behind"),
        (lambda: nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)), "none among those named"),
    ],
)
def test_without_a_batch_reasons_are_told(make, reason):
    with pytest.raises(SurgeryError, match=reason):
        DropBias().plan(make(), None)


@pytest.mark.parametrize("statistics", [False, True])
def test_instance_norm(statistics):
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.InstanceNorm1d(3, track_running_stats=statistics))
    x = torch.randn(4, 2, 9)
    model(x)
    plan = DropBias(batch=x).plan(model, None)
    receipt = plan.apply()
    assert receipt.error_eval < 1e-5
    assert ("running_mean" in receipt.changes[0]) is statistics
    receipt.undo()
    exec(plan.source, {"model": model})
    assert model[0].bias is None


def test_a_linear_layer_over_a_sequence_keeps_its_bias():
    model = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5))
    with pytest.raises(SurgeryError, match="does not take its output as samples × features"):
        DropBias(batch=torch.randn(8, 5, 2)).plan(model, None)


def test_undo_is_refused_where_a_bias_was_put_since():
    model = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5))
    receipt = DropBias().plan(model, None).apply()
    model[0].bias = nn.Parameter(torch.ones(5))
    with pytest.raises(SurgeryError, match="undo the later change first"):
        receipt.undo()
    assert torch.equal(model[0].bias, torch.ones(5))


def test_a_checkpoint_of_before_converts_to_the_same_function():
    x, model = images(), Net()
    optimizer = trained(model, x)
    untreated = copy.deepcopy(model)
    receipt = DropBias(batch=x).plan(model, optimizer).apply()
    trained(untreated, x)
    state = copy.deepcopy(untreated.state_dict())
    model.load_state_dict(receipt.convert(state))
    torch.testing.assert_close(model.eval()(x), untreated.eval()(x), atol=1e-5, rtol=0)
    assert torch.equal(state["norm.running_mean"], untreated.norm.running_mean)
    del state["conv.bias"]
    with pytest.raises(InputError, match=r"before the drop-bias; got one without the key 'conv\.bias'"):
        receipt.convert(state)


def test_rounding_in_half_precision_is_no_reason_to_refuse():
    x, model = images(), Net()
    trained(model, x)
    nn.init.normal_(model.conv.bias)
    model(x)
    x, model = x.bfloat16(), model.bfloat16()
    receipt = DropBias(batch=x).plan(model, None).apply()
    assert receipt.error_eval > 1e-3 * model.eval()(x).abs().max()
    assert model.conv.bias is None


def test_what_counts_is_refused_in_half_precision_too():
    class Two(Net):
        def forward(self, x):
            y = self.conv(x)
            return self.norm(y), y

    x, model = images().bfloat16(), Two().bfloat16()
    nn.init.constant_(model.conv.bias, 4.0)
    with pytest.raises(SurgeryError, match="a change of the output by"):
        DropBias(batch=x).plan(model, None).apply()
    assert model.conv.bias is not None


@pytest.mark.parametrize("with_batch", [False, True])
def test_a_parametrised_layer_is_left_with_the_reason(with_batch):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    nn.utils.parametrizations.weight_norm(model[0])
    treatment = DropBias(batch=torch.randn(8, 4) if with_batch else None)
    reason = "0: left as it is: its weight or bias is computed anew in each forward"
    assert f"  {reason}" in treatment.plan(model, None).diff.splitlines()
    with pytest.raises(SurgeryError, match=reason):
        treatment.plan(model, None, [Site("0", "output")])
