import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError, SurgeryError
from holdfast.treatments.change import Change, difference, planned


def scaled(model, factor, batch):
    """A change with a known effect: the weight times a factor."""

    def make():
        old = model.weight.detach().clone()

        def undo():
            with torch.no_grad():
                model.weight.copy_(old)

        with torch.no_grad():
            model.weight.mul_(factor)
        return Change(("weight → scaled",), undo)

    return planned("scale", model, make, diff="- a\n+ b", source="pass", batch=batch)


def layer():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    return model


def test_the_error_is_the_largest_change_of_the_output():
    receipt = scaled(layer(), 3.0, torch.tensor([[1.0], [-5.0]])).apply()
    assert receipt.error_eval == receipt.error_train == 20.0  # |−5·2 − (−5·6)|


@pytest.mark.parametrize("batch", [(torch.ones(1, 1),), {"input": torch.ones(1, 1)}], ids=["tuple", "dict"])
def test_a_batch_may_be_arguments(batch):
    assert scaled(layer(), 2.0, batch).apply().error_eval == 2.0


def test_both_modes_are_told_apart_and_random_numbers_are_the_same():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3))
    model.weight = nn.Parameter(torch.ones(1))  # of no effect on the output
    receipt = scaled(model, 2.0, torch.randn(64, 3)).apply()
    assert receipt.error_train == 0.0
    assert receipt.error_eval == 0.0


def test_a_batch_that_the_model_does_not_take_is_refused_before_anything_changes():
    model = layer()
    with pytest.raises(InputError, match="a batch that the model takes in eval mode") as raised:
        scaled(model, 2.0, torch.ones(1, 7)).apply()
    assert "give what you call the model with" in str(raised.value)
    assert model.weight.item() == 2.0


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_model_that_no_longer_runs_is_put_back(error):
    model = layer()
    forward = model.forward

    def forward_unless_changed(x):
        if model.weight.item() != 2.0:
            raise error
        return forward(x)

    model.forward = forward_unless_changed
    expected = SurgeryError if isinstance(error, RuntimeError) else KeyboardInterrupt
    with pytest.raises(expected):
        scaled(model, 3.0, torch.ones(1, 1)).apply()
    assert model.weight.item() == 2.0


def test_difference():
    nan, infinity = float("nan"), float("inf")
    assert difference(torch.tensor([1.0, infinity]), torch.tensor([1.5, infinity])) == 0.5
    assert difference(torch.zeros(2), torch.zeros(3)) == infinity
    assert difference(torch.tensor([nan]), torch.tensor([0.0])) != difference(0, 0)
    assert difference((torch.zeros(2), "text"), (torch.ones(2), "text")) == 1.0
    assert difference(torch.zeros(0), torch.zeros(0)) == 0.0
    assert difference(torch.tensor([1]), torch.tensor([4])) == 3.0


def test_changes_of_one_model_are_undone_last_first():
    model, other = layer(), layer()
    first, second = scaled(model, 3.0, None).apply(), scaled(model, 5.0, None).apply()
    elsewhere = scaled(other, 7.0, None).apply()
    with pytest.raises(SurgeryError, match=r"undo the later change first: scale \(weight → scaled\)"):
        first.undo()
    assert model.weight.item() == 30.0
    second.undo()
    first.undo()
    elsewhere.undo()
    assert (model.weight.item(), other.weight.item()) == (2.0, 2.0)


def test_what_came_between_and_was_undone_or_refused_does_not_count():
    model = layer()
    first = scaled(model, 3.0, torch.ones(1, 1)).apply()
    with pytest.raises(InputError):
        scaled(model, 5.0, torch.ones(1, 7)).apply()
    again = scaled(model, 5.0, None)
    again.apply().undo()
    again.apply().undo()
    first.undo()
    assert model.weight.item() == 2.0


def test_a_copy_has_no_changes_of_its_own_and_none_keeps_a_model_alive():
    model = layer()
    receipt = scaled(model, 3.0, None).apply()
    copied = copy.deepcopy(model)
    scaled(copied, 5.0, None).apply()
    receipt.undo()
    gone = weakref.ref(copied)
    del copied
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_change_whose_effect_cannot_be_told_is_taken_back(error, monkeypatch):
    def raising(*_):
        raise error

    model = layer()
    plan = scaled(model, 3.0, torch.ones(1, 1))
    with monkeypatch.context() as patched:
        patched.setattr("holdfast.treatments.change.difference", raising)
        with pytest.raises(type(error)):
            plan.apply()
    assert model.weight.item() == 2.0
    plan.apply().undo()
