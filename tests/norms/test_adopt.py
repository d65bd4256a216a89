from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import holdfast.norms as norms
from holdfast.core.errors import InputError
from holdfast.live.structure import extract
from holdfast.norms.adopt import OURS, TORCHS, adopt, release


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8),
        nn.BatchNorm1d(8), nn.Linear(8, 4),
    )  # fmt: skip


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    return nn.Sequential(
        nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False), nn.RMSNorm(8)
    )


BATCHES = {cnn: (6, 3, 12, 12), transformer: (6, 5, 8)}


def trained(make):
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(BATCHES[make])).square().mean().backward()
        optimizer.step()
    return model, optimizer


def equal(one, other):
    assert list(one) == list(other)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("make", BATCHES, ids=lambda each: each.__name__)
def test_a_trained_model_computes_what_it_did_and_trains_on_as_it_would_have(make):
    model, optimizer = trained(make)
    rival = copy.deepcopy(model)
    other = torch.optim.SGD(rival.parameters(), lr=0.1, momentum=0.9)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = copy.deepcopy(model.state_dict())
    parameters = [id(each) for each in model.parameters()]
    assert adopt(model) is model
    equal(model.state_dict(), before)
    assert [id(each) for each in model.parameters()] == parameters
    assert not any(type(each) in OURS for each in model.modules())
    x = torch.randn(BATCHES[make])
    for mode in (model.train, rival.train, model.eval, rival.eval):
        mode()
    torch.testing.assert_close(model(x), rival(x), rtol=1e-5, atol=1e-5)
    for net, step in ((model.train(), optimizer), (rival.train(), other)):
        step.zero_grad()
        net(x).square().mean().backward()
        step.step()
    for one, two in zip(model.state_dict().values(), rival.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert release(model) is model
    assert [type(each) for each in model.modules()] == [type(each) for each in rival.modules()]
    assert [set(each.__dict__) for each in model.modules()] == [set(each.__dict__) for each in rival.modules()]
    rival.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(model.eval()(x), rival.eval()(x), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("kind", OURS, ids=lambda each: each.__name__)
def test_every_kind_has_its_counterpart_by_name_and_by_constructor(kind):
    arguments = (2, 4) if kind is nn.GroupNorm else (4,)
    module = adopt(kind(*arguments))
    fresh = getattr(norms, kind.__name__)(*arguments)
    assert type(module) is type(fresh)
    assert set(module.__dict__) == set(fresh.__dict__)
    assert type(release(module)) is kind
    assert set(module.__dict__) == set(kind(*arguments).__dict__)
    assert TORCHS[OURS[kind]] is kind


def test_hooks_modes_gradients_and_shared_modules_stay():
    norm = nn.BatchNorm1d(4).eval()
    norm.weight.requires_grad_(False)
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm)
    seen = []
    norm.register_forward_hook(lambda module, args, output: seen.append(type(module)))
    adopt(model)
    assert model[1] is model[3] is norm
    model(torch.randn(3, 4))
    assert seen == [norms.BatchNorm1d] * 2
    assert not norm.training
    assert not norm.weight.requires_grad
    assert list(model._modules) == ["0", "1", "2", "3"]
    norm._forward_hooks.clear()
    assert type(pickle.loads(pickle.dumps(model))[1]) is norms.BatchNorm1d


def test_what_is_not_exactly_torchs_is_left_alone():
    class Mine(nn.BatchNorm1d):
        pass

    wrapped = weight_norm(nn.LayerNorm(4))
    model = nn.Sequential(Mine(4), norms.GhostBatchNorm(4), wrapped, nn.Linear(4, 4))
    kinds = [type(each) for each in model]
    assert [type(each) for each in adopt(model)] == kinds
    assert [type(each) for each in release(model)] == kinds


def test_running_statistics_in_half_become_float32_and_come_back():
    model = nn.BatchNorm1d(4).bfloat16()
    assert adopt(model).running_var.dtype is torch.float32
    assert model.weight.dtype is torch.bfloat16
    assert release(model).running_var.dtype is torch.bfloat16


def test_settings_that_ours_refuse_change_nothing():
    model = nn.Sequential(nn.LayerNorm(4), nn.BatchNorm1d(4, momentum=1.5))
    with pytest.raises(InputError, match=r"momentum=1\.5"):
        adopt(model)
    assert type(model[0]) is nn.LayerNorm


def test_no_release_while_statistics_are_pooled():
    model = adopt(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with norms.accumulate(model, optimizer):
        with pytest.raises(InputError, match=r"pooled\.close"):
            release(model)
        assert type(model[1]) is norms.BatchNorm1d
    assert type(release(model)[1]) is nn.BatchNorm1d


def test_rules_find_the_same_structure():
    """Rules read kinds, bases and settings: what they know of torch's they know of ours."""
    model = nn.Sequential(*(kind(2, 4) if kind is nn.GroupNorm else kind(4) for kind in OURS))
    theirs = extract(model).modules
    ours = extract(adopt(model)).modules
    for one, two in zip(theirs, ours, strict=True):
        assert (one.kind, one.bases, one.parameters) == (two.kind, two.bases, two.parameters)
        assert dict(two.settings) in (dict(one.settings), {**one.settings, "strict": False})
