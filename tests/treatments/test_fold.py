import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.norms.batch_norm import BatchNorm2d
from holdfast.norms.ghost_batch_norm import GhostBatchNorm
from holdfast.treatments.fold import Fold, folded
from holdfast.treatments.freeze_batchnorm import FreezeBatchNorm

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def settled(norm):
    """With statistics, γ and β as after a training."""
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 3)
        for parameter in norm.parameters():
            parameter.normal_()
    return norm


def apply(model, batch, sites=(), optimizer=None):
    return Fold(batch=batch).plan(model, optimizer, sites).apply()


def close(a, b):
    torch.testing.assert_close(a, b, atol=2e-5 * b.abs().max().item(), rtol=0)


@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("kinds", "options"),
    [
        (CONV, {"stride": 2, "padding": 1, "groups": 2, "padding_mode": "reflect"}),
        (CONV, {"padding": "same", "dilation": 2}),
        (TRANSPOSED, {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "dilation": 2}),
        (TRANSPOSED, {}),
    ],
)
def test_a_convolution_and_its_norm_are_one_convolution(space, bias, affine, kinds, options):
    torch.manual_seed(0)
    model = nn.Sequential(kinds[space](4, 6, 3, bias=bias, **options), settled(NORM[space](6, affine=affine))).eval()
    x = torch.randn(2, 4, *[8] * space)
    expected = model(x)
    receipt = apply(model, x)
    close(model(x), expected)
    assert type(model[1]) is nn.Identity
    assert receipt.error_eval <= 1e-5 * expected.abs().max()
    receipt.undo()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_in_float64_to_the_last_digits(bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=bias), settled(nn.BatchNorm1d(3))).double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = model(x)
    apply(model, x)
    torch.testing.assert_close(model(x), expected, atol=1e-13, rtol=0)


class Net(nn.Module):
    """Two pairs, and in between what a test puts there."""

    def __init__(self, between=lambda y: y, beside=lambda net, y: 0.0, norm=None):
        super().__init__()
        self.norm = settled(nn.BatchNorm2d(4)) if norm is None else norm
        self.conv = nn.Conv2d(2, 4, 3)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, bias=False), settled(nn.BatchNorm2d(4))
        self.between, self.beside = between, beside

    def forward(self, x):
        y = self.conv(x)
        y = self.between(y)
        z = self.norm(y).relu()
        return self.norm2(self.conv2(z)) + self.beside(self, y)


def images():
    torch.manual_seed(1)
    return torch.randn(6, 2, 7, 7) * 3 + 1


def test_keys_optimiser_and_lines_say_what_went_and_came():
    x, model = images(), Net().train()
    optimizer = torch.optim.Adam(model.named_parameters(), lr=0.01)
    model(x).sum().backward()
    optimizer.step()
    model.eval()
    expected, before = model(x), copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    receipt = apply(model, x, optimizer=optimizer)
    close(model(x), expected)
    assert list(model.state_dict()) == ["conv.weight", "conv.bias", "conv2.weight", "conv2.bias"]
    assert "state_dict key norm.running_var → none" in receipt.changes
    assert "state_dict key none → conv2.bias" in receipt.changes
    assert optimizer.param_groups[0]["param_names"] == list(model.state_dict())
    held = optimizer.param_groups[0]["params"]
    assert [id(each) for each in held] == [id(each) for each in model.parameters()]
    assert all(each.requires_grad for each in held)
    receipt.undo()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert repr(optimizer.state_dict()) == repr(state)
    assert torch.equal(model(x), expected)


def test_the_train_mode_error_is_stated_and_the_mode_explained():
    x, model = images(), Net().train()
    plan = Fold(batch=x).plan(model, None)
    assert "model.eval()" in plan.diff
    receipt = plan.apply()
    assert receipt.error_train > 0.1
    assert "in train mode: statistics of the batch → the running ones, folded in: norm2" in receipt.changes
    receipt.undo()
    assert "model.eval()" not in Fold(batch=x).plan(model.eval(), None).diff


def test_a_frozen_norm_folds_without_an_error_in_train_mode():
    x, model = images(), Net().train()
    FreezeBatchNorm().plan(model, None).apply()
    receipt = apply(model, x)
    assert receipt.error_train <= 1e-5 * model(x).abs().max()
    assert not any("train mode" in line for line in receipt.changes)


@pytest.mark.parametrize("kind", [GhostBatchNorm, BatchNorm2d])
def test_our_norms_fold_too(kind):
    x, model = images(), Net(norm=settled(kind(4))).eval()
    expected = model(x)
    apply(model, x)
    close(model(x), expected)
    assert type(model.norm) is nn.Identity


class Own(nn.BatchNorm2d):
    pass


def own(model):
    model.norm = settled(Own(4))


def untracked(model):
    model.norm = nn.BatchNorm2d(4, track_running_stats=False)


def hooked(model):
    model.norm.register_forward_hook(lambda *_: None)


def hooked_layer(model):
    model.conv.register_full_backward_hook(lambda *_: None)


def shared_norm(model):
    model.again = model.norm


def shared_layer(model):
    model.again = model.conv


def tied(model):
    model.other = nn.Conv2d(2, 4, 3)
    model.other.weight = model.conv.weight


def aliased(model):
    model.kept = [model.norm]


def subclassed(model):
    class Conv(nn.Conv2d):
        pass

    model.conv = Conv(2, 4, 3)


def weight_normed(model):
    nn.utils.parametrizations.weight_norm(model.conv)


REFUSED = {
    own: "conv: left as it is: Own may use its statistics",
    untracked: "keeps no running statistics",
    hooked: "the BatchNorm behind it has hooks",
    hooked_layer: "it has hooks",
    shared_norm: "the BatchNorm behind it is shared",
    shared_layer: "it is shared",
    tied: "a parameter of the layer is used elsewhere",
    aliased: "plain attribute 'kept'",
    subclassed: "none among those named",
    weight_normed: "conv: left as it is: its weight or bias is computed anew in each forward",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda each: each.__name__)
def test_what_cannot_be_merged_safely_is_left_with_the_reason(spoil):
    x, model = images(), Net().eval()
    spoil(model)
    with pytest.raises(SurgeryError, match=REFUSED[spoil]):
        Fold(batch=x).plan(model, None, [Site("conv", "input")])
    expected = model(x)
    apply(model, x)  # the other pair
    close(model(x), expected)
    assert type(model.norm2) is nn.Identity
    assert type(model.norm) is not nn.Identity


FLOWS = {
    "relu": ({"between": torch.relu}, "a function takes its output too"),
    "in place": ({"between": lambda y: y.copy_(y.flip(-1))}, "something stands between it and norm"),
    "view": ({"between": lambda y: y.flip(-1)}, "something stands between it and norm"),
    "another layer": ({"beside": lambda net, y: net.conv2(y[..., 2:, 2:]).mean()}, "its output does not go into one"),
    "a function": ({"beside": lambda net, y: y.mean()}, "a function takes its output too"),
    "twice": ({"beside": lambda net, y: net.norm(y).mean()}, "runs several times"),
    "its weight": ({"beside": lambda net, y: net.conv.weight.sum()}, "a parameter of the layer is used elsewhere"),
    "its gain": ({"beside": lambda net, y: net.norm.weight.sum()}, "a parameter of the BatchNorm behind it is used"),
    "by hand": (
        {"beside": lambda net, y: F.conv2d(y, net.conv.weight.mT.flip(0)[:, :1], groups=4).sum()},
        "used|takes",
    ),
}


@pytest.mark.parametrize("flow", FLOWS)
def test_where_something_else_takes_part_nothing_is_merged(flow):
    options, reason = FLOWS[flow]
    with pytest.raises(SurgeryError, match=reason):
        Fold(batch=images()).plan(Net(**options).eval(), None, [Site("conv", "input")])


def test_an_output_that_is_returned_beside_the_logits_is_measured_and_everything_taken_back():
    class Features(Net):
        def forward(self, x):
            y = self.conv(x)
            return {"logits": self.norm2(self.conv2(self.norm(y).relu())), "features": y}

    x, model = images(), Features().eval()
    before, modules = model.state_dict(), [id(each) for each in model.modules()]
    with pytest.raises(SurgeryError, match="the change was taken back"):
        apply(model, x)
    assert list(model.state_dict()) == list(before)
    assert [id(each) for each in model.modules()] == modules
    apply(model, x, [Site("conv2", "input")])
    assert type(model.norm) is nn.BatchNorm2d


def test_what_half_precision_cannot_keep_is_refused():
    x, model = images().bfloat16(), Net().bfloat16().eval()
    with pytest.raises(SurgeryError, match="fold in float32"):
        apply(model, x)
    assert type(model.norm) is nn.BatchNorm2d


def test_the_branch_of_eval_mode_is_the_one_followed():
    class Branched(Net):
        def forward(self, x):
            return super().forward(x) if self.training else self.norm2(self.conv2(self.norm(self.conv(x).relu())))

    with pytest.raises(SurgeryError, match="conv: left as it is: a function takes"):
        Fold(batch=images()).plan(Branched().train(), None, [Site("norm", "output")])


def test_sites_may_name_the_layer_or_the_norm():
    for name in ("conv", "norm"):
        x, model = images(), Net().eval()
        apply(model, x, [Site(name, "input")])
        assert type(model.norm) is nn.Identity
        assert type(model.norm2) is nn.BatchNorm2d


def test_positions_of_a_linear_layer_are_not_samples():
    model = nn.Sequential(nn.Linear(4, 3), settled(nn.BatchNorm1d(3))).eval()
    with pytest.raises(SurgeryError, match="samples × features"):
        Fold(batch=torch.randn(2, 3, 4)).plan(model, None)


def test_without_a_batch_it_says_what_to_type():
    with pytest.raises(InputError, match=r"Fold\(batch=inputs\)"):
        Fold().plan(Net(), None)


def test_a_model_changed_between_plan_and_apply_is_refused():
    x, model = images(), Net().eval()
    plan = Fold(batch=x).plan(model, None)
    model.norm2 = settled(nn.BatchNorm2d(4))
    with pytest.raises(SurgeryError, match="plan again"):
        plan.apply()
    assert type(model.norm) is nn.BatchNorm2d


def test_the_lines_to_paste_do_the_same():
    x, model = images(), Net().eval()
    pasted = copy.deepcopy(model)
    plan = Fold(batch=x).plan(model, None)
    plan.apply()
    exec(plan.source, {"model": pasted, "nn": nn})
    assert all(torch.equal(value, pasted.state_dict()[key]) for key, value in model.state_dict().items())
    assert torch.equal(pasted(x), model(x))


def test_a_layer_folded_by_hand_draws_no_random_numbers_and_keeps_the_old_one():
    layer, norm = nn.ConvTranspose2d(4, 6, 3, groups=2), settled(nn.BatchNorm2d(6)).eval()
    weight, random, x = layer.weight.clone(), torch.get_rng_state(), torch.ones(1, 4, 3, 3)
    new = folded(layer, norm)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(layer.weight, weight)
    close(new(x), norm(layer(x)))


@pytest.mark.parametrize("affine", [True, False])
def test_a_checkpoint_of_before_converts_to_the_same_function(affine):
    x, model = images(), Net(norm=settled(nn.BatchNorm2d(4, affine=affine)))
    receipt = apply(model, x)
    other = Net(norm=settled(nn.BatchNorm2d(4, affine=affine))).eval()
    model.load_state_dict(receipt.convert(other.state_dict()))
    close(model(x), other(x))
    apply(other, x)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(InputError, match=r"without the key 'norm\.running_var'"):
        receipt.convert(other.state_dict())
