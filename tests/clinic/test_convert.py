import copy

import pytest
import torch
from torch import nn

import holdfast as hf
from holdfast.core.errors import HoldfastError, InputError, SurgeryError


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU()),
        nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 2),
    )


def kinds(net):
    return [type(net[0][1]).__name__, type(net[1][1]).__name__]


def test_all_normalisers_in_one_line():
    net = model()
    optimizer = torch.optim.Adam(net.parameters())
    held = [id(each) for each in optimizer.param_groups[0]["params"]]
    receipt = hf.convert(net, "group", optimizer=optimizer, batch=torch.randn(2, 3, 9, 9))
    assert kinds(net) == ["GroupNorm", "GroupNorm"]
    assert [net[0][1].num_groups, net[1][1].num_groups] == [16, 32]  # 49 and 25 positions
    assert [id(each) for each in optimizer.param_groups[0]["params"]] == held
    assert receipt.error_eval > 0.0
    assert receipt.error_train > 0.0
    assert len(receipt.removed) == 6
    net(torch.randn(2, 3, 9, 9)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("sites", ["0.*", ["0.1"], ("0.[0-9]", "nothing.*")])
def test_patterns_choose(sites):
    net = model()
    hf.convert(net, sites=sites)
    assert kinds(net) == ["GroupNorm", "BatchNorm2d"]


def test_undo():
    net = model()
    before = copy.deepcopy(net.state_dict())
    hf.convert(net, "ghost", batch=torch.randn(4, 3, 9, 9)).undo()
    assert kinds(net) == ["BatchNorm2d", "BatchNorm2d"]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_refusals():
    net = model()
    hf.convert(net)
    with pytest.raises(SurgeryError, match="nothing is left to swap"):
        hf.convert(net)
    with pytest.raises(InputError, match=r"match none of 9 layers"):
        hf.convert(net, sites="body.*")
    with pytest.raises(InputError, match="a kind of normaliser"):
        hf.convert(net, "weight")
    with pytest.raises(SurgeryError, match="holds none of its parameters"):
        hf.convert(net, "batch", optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
    with pytest.raises(HoldfastError, match="a batch that the model takes"):
        hf.convert(net, "batch", batch=torch.randn(2, 1, 9, 9))
    assert kinds(net) == ["GroupNorm", "GroupNorm"]
