"""Layers that are unfrozen, added or replaced while training are followed."""

import copy

import pytest
import torch
from torch import nn

from holdfast.core.site import Site


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(24, 6, generator=generator), torch.randint(0, 3, (24,), generator=generator)) for _ in range(count)
    ]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("every", [1, 4])
def test_a_replaced_and_an_added_layer_are_observed_and_the_old_one_is_let_go(record, train, every):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer, every=every, probe=torch.randn(16, 6))
    train(model, optimizer, batches(5))
    old, model[2] = model[2], nn.Linear(8, 8)
    model.append(nn.Sigmoid()).append(nn.Linear(8, 3))
    optimizer.param_groups[0]["params"] = list(model.parameters())
    train(model, optimizer, batches(8))
    assert not old._forward_hooks
    history = recording.close()
    assert not history.events("monitor-error")
    (event,) = history.events("model-changed")
    assert event.data == {"new": ["2", "3", "4"], "gone": []}
    assert event.message == f"the model changed before step {6 if every == 1 else 8}: new: '2', '3', '4'"

    structure = history.structure()
    assert structure.order == ("0", "1", "2", "3", "4")
    assert ("3", "4") in structure.edges
    assert "4.weight" in structure.groups[0].parameters
    steps = [step for step, _ in history.summaries(Site("4", "input"))]
    assert steps == ([7, 8, 9, 10, 11, 12, 13] if every == 1 else [8, 12])
    assert [step for step, _ in history.summaries(Site("2", "input"))][-1] == (13 if every == 1 else 12)
    # The first look at the new layers is no drift of theirs, nor of what lies behind them.
    first = min(each.step for each in history.readings("parameter-drift", Site("4", "input", phase="probe")))
    assert first > event.step
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("every", [1, 3])
def test_a_replacement_is_no_drift_of_parameters(record, train, every):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    recording = record(model, optimizer, every=every, probe=torch.randn(16, 6))
    train(model, optimizer, batches(4))
    model[0] = nn.Linear(6, 8)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    train(model, optimizer, batches(12))
    drifts = recording.close().readings("parameter-drift")
    assert {each.site.phase for each in drifts} == {"train", "probe"}
    assert max(each.step for each in drifts if each.site.phase == "probe") > 8
    assert all(each.value == 0 for each in drifts)


def test_a_layer_that_is_taken_out_leaves_no_hook(record, train):
    model = net()
    model.insert(2, nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    train(model, optimizer, batches(2))
    removed = model[2]
    model[2] = nn.Identity()
    train(model, optimizer, batches(3))
    history = recording.close()
    assert not removed._forward_hooks
    assert not removed._forward_pre_hooks
    assert history.events("model-changed")[0].data == {"new": [], "gone": ["2"]}
    assert history.structure().order == ("0", "1", "2", "3")
    assert not history.events("monitor-error")


def test_late_unfreezing_is_followed(record, train):
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    train(model, optimizer, batches(3))
    assert not [each.requires_grad for each in recording.run.structure().module("0").parameters if each.requires_grad]
    model[0].requires_grad_(True)
    train(model, optimizer, batches(3))
    history = recording.close()
    site = Site("0", "weight_grad", leaf="weight")
    assert [each.step for each in history.readings("gradient-norm", site)] == [4, 5, 6]
    assert [each.step for each in history.readings("gradient-norm", Site("0", "grad_output"))] == [4, 5, 6]
    assert all(each.requires_grad for each in history.structure().module("0").parameters)
    (event,) = history.events("model-changed")
    assert event.message.endswith("other parameters are trained")


def test_changing_models_train_as_if_unwatched(record, train):
    def run(watched):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        recording = record(model, optimizer, probe=torch.ones(4, 6)) if watched else None
        train(model, optimizer, batches(3))
        torch.manual_seed(1)
        model[2] = nn.Linear(8, 3)
        optimizer.add_param_group({"params": list(model[2].parameters())})
        train(model, optimizer, batches(3))
        if recording is not None:
            recording.close()
        return copy.deepcopy(model.state_dict())

    watched, bare = run(True), run(False)
    assert all(torch.equal(watched[name], value) for name, value in bare.items())
