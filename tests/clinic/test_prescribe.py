"""What is prescribed: for BatchNorm layers that see two samples a batch, for residual branches, for streams."""

import pytest
import torch
from torch import nn

from holdfast.clinic.preflight import preflight
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


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return x + 12 * self.out(self.into(x).relu())


def test_a_signal_that_grows_from_branch_to_branch_may_have_its_branches_scaled():
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(6, 32), *(Block() for _ in range(12)), nn.Linear(32, 3)), torch.randn(64, 6)
    found = preflight(model, (batch, torch.randint(3, (64,))), nn.functional.cross_entropy)
    assert "poor-init" in [each.rule for each in found]
    prescribed = prescribe(found, model, None, batch=batch)
    (choice,) = (each for each in prescribed.choices if each.treatment == "scale-residual")
    assert choice.decision == "alternative"
    before = model(batch).std().item()
    receipt = choice.plan.apply()
    assert model(batch).std().item() < before / 10
    receipt.undo()
    assert model(batch).std().item() == before


def test_a_plain_chain_has_no_branches_to_scale():
    found = prescribe(diagnosis("scale-residual", "z-loss"), network(), None, batch=torch.randn(8, 1, 8, 8))
    assert found.treatment == "nothing"
    assert {each.treatment: each.decision for each in found.choices} == {
        "scale-residual": "rejected",
        "z-loss": "recipe",
    }
    assert "it needs residual branches x + f(x) that can be scaled; here: none on the batch" in str(found)


def test_without_a_batch_the_streams_are_not_known():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.deep, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(10, 1)

        def forward(self, x):
            return self.head(torch.cat([self.wide(50 * x), self.deep(x)], dim=1))

    model, batch = Fused(), torch.randn(32, 4)
    blind = prescribe(diagnosis("normalise-streams", sites=("head",)), model, None)
    assert "it needs a batch, on which streams can be seen to meet" in blind.choices[0].reason
    seen = prescribe(diagnosis("normalise-streams", sites=("head",)), model, None, batch=batch)
    assert seen.treatment == "normalise-streams"
    seen.apply(model)
    assert type(model.wide.norm) is type(model.deep.norm) is nn.BatchNorm1d
