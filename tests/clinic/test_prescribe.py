"""What is prescribed for a convolutional network whose BatchNorm layers see two samples a batch."""

import pytest
import torch
from torch import nn

from holdfast.clinic.prescribe import prescribe
from holdfast.core.finding import Diagnosis, Finding
from holdfast.core.site import Site


def network(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        norm(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        norm(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 4),
    )


def diagnosis(*treatments, sites=("1", "4")):
    finding = Finding(
        "batch-noise",
        "warning",
        tuple(Site(path, "input") for path in sites),
        "the batch's own mean moves by 0.7 SD",
        (),
        treatments,
        rank=1,
    )
    return Diagnosis("a run", 100, "verdict", (finding,))


@pytest.mark.parametrize("batch", [None, torch.randn(2, 1, 8, 8)])
def test_group_norm_for_two_samples(batch):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    found = prescribe(diagnosis("swap-norm", "insert-norm"), model, optimizer, batch=batch)
    assert found.treatment == "swap-norm"
    assert found.choices[1].decision == "rejected"
    assert "+ 1: nn.GroupNorm(" in found.diff
    receipt = found.apply(model, optimizer)
    assert type(model[1]) is type(model[4]) is nn.GroupNorm
    loss = model(torch.randn(2, 1, 8, 8)).square().mean()
    loss.backward()
    optimizer.step()
    assert (receipt.error_eval is None) is (batch is None)
    receipt.undo()
    assert type(model[1]) is type(model[4]) is nn.BatchNorm2d


def test_a_site_alone_is_treated_alone():
    model = network()
    prescribe(diagnosis("swap-norm", sites=("4",)), model, None).apply(model)
    assert type(model[1]) is nn.BatchNorm2d
    assert type(model[4]) is nn.GroupNorm


def test_a_model_already_treated_gets_the_reason():
    model = network(lambda channels: nn.GroupNorm(2, channels))
    found = prescribe(diagnosis("swap-norm"), model, None)
    assert found.treatment == "nothing"
    assert "it is a GroupNorm already" in found.choices[0].reason


def test_reorder_norm_says_why_it_has_nothing_to_do():
    found = prescribe(diagnosis("reorder-norm", "swap-norm"), network(), None)
    assert found.treatment == "swap-norm"
    assert "it stands before its activation already" in found.choices[1].reason
