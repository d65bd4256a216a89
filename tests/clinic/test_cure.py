"""From findings to a plan, and from a plan to what is kept."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.clinic.cure import cure
from holdfast.clinic.prescribe import prescribe
from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.finding import Diagnosis, Finding
from holdfast.core.site import Site


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def finding(rule, module, *treatments, severity="critical", rank=1):
    return Finding(rule, severity, (Site(module, "input"),), "it moves", (), treatments, rank=rank)


def diagnosis(*findings):
    return Diagnosis("a run", 10, "verdict", findings)


def sick():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 16)]
    for _ in range(7):
        layers += [nn.Sigmoid(), nn.Linear(16, 16)]
    model = nn.Sequential(*layers, nn.Sigmoid(), nn.Linear(16, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.5)


def batches():
    generator = torch.Generator().manual_seed(1)
    return [(x, (x[:, 0] > 0).long()) for x in torch.randn(10, 64, 4, generator=generator)]


def test_the_first_applicable_is_chosen_and_the_rest_explained():
    model, optimizer = sick()
    found = prescribe(
        diagnosis(
            finding("shifting-input", "4", "warm-up", "insert-norm", "scale-rate"),
            finding("update-ratio", "4", "scale-rate", rank=2),
            finding("remark", "4", "clip", severity="info", rank=3),
        ),
        model,
        optimizer,
    )
    assert [(each.decision, each.treatment) for each in found.choices] == [
        ("chosen", "insert-norm"),
        ("alternative", "scale-rate"),
        ("recipe", "warm-up"),
    ]
    assert found.treatment == "insert-norm"
    assert "+ 4: Sequential" in found.diff
    assert found.plans[1].treatment == "scale-rate"
    assert "chosen: insert-norm, for shifting-input (finding 1): its first treatment that" in str(found)
    receipt = found.apply(model, optimizer)
    assert isinstance(model[4], nn.Sequential)
    receipt.undo()


def test_what_cannot_be_applied_is_rejected_with_its_reason():
    model, _ = sick()
    found = prescribe(diagnosis(finding("update-ratio", "4", "scale-rate")), model, None)
    assert [each.decision for each in found.choices] == ["rejected"]
    assert found.choices[0].reason == "it needs an optimiser; here: None"
    assert found.treatment == "nothing"
    assert found.apply(model).changes == ()


def test_the_diagnosis_of_another_model_is_refused():
    model, optimizer = sick()
    with pytest.raises(SurgeryError, match="one without 'encoder'"):
        prescribe(diagnosis(finding("shifting-input", "encoder", "insert-norm")), model, optimizer)


def test_a_batch_that_the_model_does_not_take_is_no_verdict_on_treatments():
    model, optimizer = sick()
    found = diagnosis(finding("shifting-input", "4", "insert-norm"))
    with pytest.raises(InputError, match="a batch that the model takes; got one on which it raises TypeError"):
        prescribe(found, model, optimizer, batch=batches()[0])


def test_a_training_that_breaks_is_diagnosed_and_a_smaller_rate_proved():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    before = copy.deepcopy(model.state_dict())
    data = [(x, 10 * x[:, :1]) for x, _ in batches()]
    found = cure(model, optimizer, data, F.mse_loss, eval_batches=data[:2], steps=40, seeds=3)
    assert found.diagnosis.findings[0].rule == "nonfinite"
    assert found.prescription.treatment == "scale-rate"
    if found.receipt is not None:
        found.receipt.undo()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"attempts": 0}, "attempts of 1 or more"),
        ({"steps": 0}, "steps of 1 or more"),
        ({"eval_batches": 3}, "eval_batches: a loader"),
        ({"metric": lambda output: 0.0}, "a metric"),
    ],
)
def test_a_mistake_is_told_before_any_training(changed, reason):
    model, optimizer = sick()
    with pytest.raises(InputError, match=reason):
        cure(model, optimizer, lambda seed: pytest.fail("trained"), F.cross_entropy, **{"eval_batches": [], **changed})


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, 6))])
def test_an_unshuffled_loader_of_a_healthy_network_changes_nothing(seed):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(640, 6, generator=generator)
    pairs = list(zip(x, (x[:, 0] > 0).long(), strict=True))
    loader = torch.utils.data.DataLoader(pairs, batch_size=32)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.01)
    found = cure(model, optimizer, loader, F.cross_entropy, eval_batches=loader, steps=60, seeds=3)
    assert found.receipt is None, found


def test_a_sick_network_is_cured_and_the_cure_can_be_undone():
    model, optimizer = sick()
    before = copy.deepcopy(model.state_dict())
    told = []
    options = {"eval_batches": batches()[:2], "steps": 60, "seeds": 4, "attempts": 2, "on_proof": told.append}
    done = cure(model, optimizer, batches(), F.cross_entropy, **options)
    assert done.receipt is not None, done
    assert [each.verdict for each in done.proofs][-1] == "helps"
    assert all(each.verdict != "helps" for each in done.proofs[:-1])
    assert tuple(told) == done.proofs
    assert str(done).startswith(f"kept {done.receipt.treatment}: helps")
    assert list(model.state_dict()) != list(before) or any(
        not torch.equal(value, before[key]) for key, value in model.state_dict().items()
    )
    done.receipt.undo()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_given_diagnosis_is_what_is_treated():
    model, optimizer = sick()
    given, ticks = diagnosis(finding("poor-init", "4", "reinitialise")), []
    options = {"eval_batches": batches()[:2], "steps": 3, "seeds": 2}
    done = cure(
        model,
        optimizer,
        batches(),
        F.cross_entropy,
        diagnosis=given,
        on_step=lambda *pair: ticks.append(pair),
        **options,
    )
    assert done.diagnosis is given
    assert [each.treatment for each in done.proofs] == ["reinitialise"]
    total = 3 * 2 * 4 + 2 * 3  # steps, seeds, arms; the shift of two arms
    assert ticks == [(step, total) for step in range(1, total + 1)]


def test_a_healthy_network_is_left_bit_for_bit():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    generator = torch.get_rng_state()
    done = cure(model, optimizer, batches(), F.cross_entropy, eval_batches=batches()[:2], steps=40, seeds=3)
    assert done.receipt is None
    assert str(done).startswith("nothing was changed: ")
    assert all(torch.equal(value, before[0][key]) for key, value in model.state_dict().items())
    assert optimizer.state_dict() == before[1]
    assert torch.equal(torch.get_rng_state(), generator)
