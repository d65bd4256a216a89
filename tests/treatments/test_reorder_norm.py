import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.norms import GhostBatchNorm
from holdfast.treatments.reorder_norm import ReorderNorm


def behind(norm=None, activation=None):
    """conv → activation → norm, inside a larger model."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(2, 4, 3), activation or nn.ReLU(), norm or nn.BatchNorm2d(4), nn.Dropout(0.2))
    model = nn.Sequential(
        OrderedDict(body=block, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(4, 2))
    )
    model(torch.randn(8, 2, 7, 7) + 1)
    return model


def order(block):
    return [type(each).__name__ for each in block][:3]


def test_the_norm_comes_before_its_activation_and_back():
    model = behind()
    norm, activation = model.body[2], model.body[1]
    receipt = ReorderNorm().plan(model, None).apply()
    assert order(model.body) == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert model.body[1] is norm
    assert model.body[2] is activation
    assert receipt.renamed["body.2.running_mean"] == "body.1.running_mean"
    assert any("re-estimate them" in line for line in receipt.changes)
    receipt = ReorderNorm("after").plan(model, None).apply()
    assert order(model.body) == ["Conv2d", "ReLU", "BatchNorm2d"]


def test_the_function_is_that_of_the_other_order():
    model = behind().eval()
    x = torch.randn(3, 2, 7, 7)
    conv, activation, norm = model.body[0], model.body[1], model.body[2]
    expected = model.head(activation(norm(conv(x))).mean((2, 3)))
    before = model(x)
    receipt = ReorderNorm().plan(model, None).apply()
    torch.testing.assert_close(model(x), expected)
    assert not torch.allclose(model(x), before)
    assert receipt.error_eval is receipt.error_train is None


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=None), nn.InstanceNorm2d(4, track_running_stats=True)]
)
def test_running_statistics_are_those_of_the_batch_at_the_new_place(norm):
    model = behind(norm)
    batch = torch.randn(16, 2, 7, 7) * 2
    momentum, before = norm.momentum, copy.deepcopy(norm.state_dict())
    receipt = ReorderNorm(batch=batch).plan(model, None).apply()
    there = model.body[0](batch)
    variance = there.var((0, 2, 3)) if isinstance(norm, nn.BatchNorm2d) else there.var((2, 3)).mean(0)
    torch.testing.assert_close(norm.running_mean, there.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.momentum == momentum
    assert receipt.error_eval > 0.0
    assert receipt.error_train > 0.0
    receipt.undo()
    assert order(model.body) == ["Conv2d", "ReLU", type(norm).__name__]
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


def test_several_are_estimated_each_on_what_the_earlier_ones_give():
    torch.manual_seed(0)
    layers = [nn.Linear(3, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Tanh(), nn.BatchNorm1d(6)]
    model, batch = nn.Sequential(*layers), torch.randn(64, 3)
    ReorderNorm(batch=batch).plan(model, None).apply()
    first = torch.relu(model[1](model[0](batch)))
    torch.testing.assert_close(model[4].running_mean, model[3](first).mean(0), rtol=1e-4, atol=1e-5)
    assert [type(each).__name__ for each in model[3:]] == ["Linear", "BatchNorm1d", "Tanh"]


def test_names_move_with_their_modules():
    layers = OrderedDict(conv=nn.Conv1d(2, 3, 1), act=nn.PReLU(3), norm=nn.BatchNorm1d(3))
    model = nn.Sequential(layers)
    keys = set(model.state_dict())
    receipt = ReorderNorm().plan(model, None).apply()
    assert list(model._modules) == ["conv", "norm", "act"]
    assert receipt.renamed == {}
    assert set(model.state_dict()) == keys
    receipt.undo()
    assert list(model._modules) == ["conv", "act", "norm"]


def test_a_converted_checkpoint_loads():
    model = behind(activation=nn.PReLU(4))
    checkpoint = copy.deepcopy(model.state_dict())
    receipt = ReorderNorm().plan(model, None).apply()
    assert receipt.renamed["body.1.weight"] == "body.2.weight"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(receipt.convert(checkpoint), strict=True)
    assert torch.equal(model.body[2].weight, checkpoint["body.1.weight"])
    assert torch.equal(model.body[1].running_mean, checkpoint["body.2.running_mean"])


def test_the_optimiser_keeps_its_lists_and_knows_the_new_names():
    model = behind()
    optimizer = torch.optim.Adam(model.named_parameters())
    held = [id(each) for each in optimizer.param_groups[0]["params"]]
    model(torch.randn(4, 2, 7, 7)).sum().backward()
    optimizer.step()
    receipt = ReorderNorm().plan(model, optimizer).apply()
    assert [id(each) for each in optimizer.param_groups[0]["params"]] == held
    assert optimizer.param_groups[0]["param_names"][2] == "body.1.weight"
    receipt.undo()
    assert optimizer.param_groups[0]["param_names"][2] == "body.2.weight"


def test_undo_after_training_keeps_weights_and_brings_statistics_back():
    model = behind()
    running = model.body[2].running_mean.clone()
    receipt = ReorderNorm().plan(model, None).apply()
    model(torch.randn(8, 2, 7, 7) + 5)
    with torch.no_grad():
        model.body[1].weight += 1.0
    receipt.undo()
    assert torch.equal(model.body[2].running_mean, running)
    assert torch.equal(model.body[2].weight, torch.full((4,), 2.0))
    with pytest.raises(SurgeryError, match="undone already"):
        receipt.undo()


@pytest.mark.parametrize("batch", [None, torch.randn(8, 2, 7, 7)])
def test_lines_to_paste(batch):
    model = behind(GhostBatchNorm(4, chunk_size=4))
    pasted = copy.deepcopy(model)
    plan = ReorderNorm(batch=batch).plan(model, None)
    exec(plan.source, {"model": pasted, "torch": torch, "batch": batch})
    plan.apply()
    assert repr(pasted) == repr(model)
    torch.testing.assert_close(dict(pasted.state_dict()), dict(model.state_dict()))


def test_sites_name_the_norm_or_its_activation():
    for path in ("body.1", "body.2"):
        model = behind()
        ReorderNorm().plan(model, None, [Site(path, "input")]).apply()
        assert order(model.body) == ["Conv2d", "BatchNorm2d", "ReLU"]
    with pytest.raises(SurgeryError, match="Linear is not a normaliser"):
        ReorderNorm().plan(behind(), None, [Site("head", "input")])
    with pytest.raises(InputError, match="which it does not have"):
        ReorderNorm().plan(behind(), None, [Site("tail", "input")])


class PreNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.branch = nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x):
        return x + self.branch(self.norm(x))


class Own(nn.BatchNorm1d):
    pass


def shared():
    norm = nn.BatchNorm1d(4)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), norm, nn.Linear(4, 4), nn.ReLU(), norm)


@pytest.mark.parametrize(
    ("model", "to", "reason"),
    [
        (PreNorm(), "before", r"ordered by code, which this treatment does not rewrite"),
        (PreNorm(), "after", r"pre-norm, post-norm"),
        (nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4)), "after", "no linear or convolutional layer"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Own(4)), "before", "Own is not a normaliser"),
        (shared(), "before", "it is shared"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.LayerNorm(4)), "after", "another normaliser"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()), "before", "nothing is left to move"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4)),
            "after",
            "it stands after its activation already",
        ),
        (nn.Linear(4, 4), "before", "a model without a normaliser"),
        (nn.BatchNorm1d(4), "before", "no activation stands in front of it"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.BatchNorm1d(4)), "before", "no activation stands"),
    ],
)
def test_reasons(model, to, reason):
    with pytest.raises(SurgeryError, match=reason):
        ReorderNorm(to).plan(model, None)


def test_a_model_that_reads_its_sequence_otherwise_is_left_with_a_batch():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4))

        def forward(self, x):
            x = self.layers[2](self.layers[0](x))
            return self.layers[1](x)

    ReorderNorm().plan(Odd(), None)
    with pytest.raises(SurgeryError, match="do not run once, one on the other"):
        ReorderNorm(batch=torch.randn(8, 4)).plan(Odd(), None)


def test_other_refusals():
    model = behind()
    with pytest.raises(InputError, match="before, after"):
        ReorderNorm("behind")
    with pytest.raises(SurgeryError, match="holds none of its parameters"):
        ReorderNorm().plan(model, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
    plan = ReorderNorm().plan(model, None)
    with pytest.raises(SurgeryError, match="the plan was worked out for"):
        plan.apply(copy.deepcopy(model))
    model.body[1] = nn.Tanh()
    with pytest.raises(SurgeryError, match="changed there since"):
        plan.apply()
    assert order(model.body) == ["Conv2d", "Tanh", "BatchNorm2d"]
    receipt = ReorderNorm().plan(model, None).apply()
    model.body[2] = nn.ReLU()
    with pytest.raises(SurgeryError, match="undo the later change first"):
        receipt.undo()
    assert order(model.body) == ["Conv2d", "BatchNorm2d", "ReLU"]


def test_a_failing_batch_leaves_everything():
    model = behind()
    before = copy.deepcopy(model.state_dict())
    plan = ReorderNorm(batch=torch.randn(4, 2, 7, 7)).plan(model, None)

    def stop(*_):
        if type(model.body[1]) is nn.BatchNorm2d:
            raise KeyboardInterrupt

    model.head.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        plan.apply()
    assert order(model.body) == ["Conv2d", "ReLU", "BatchNorm2d"]
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
