"""Proofs: exactly zero where nothing changes, honest where something does, and no trace afterwards."""

import copy
import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from holdfast.clinic.arms import Trial
from holdfast.clinic.batches import draw
from holdfast.clinic.proof import Arm, compare, interval_of
from holdfast.clinic.prove import _spend, prove
from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.treatment import Plan, Receipt
from holdfast.monitor.watch import Watch
from holdfast.store.memory import MemoryRun
from holdfast.treatments import TREATMENTS
from holdfast.treatments.warm_up import WarmUp


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(count=6, samples=16):
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(count, samples, 4, generator=generator)
    return [(x, (x[:, :1] * x[:, 1:2] > 0).long().squeeze(1)) for x in inputs]


def patient(dropout=0.3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def state(model, optimizer):
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"], optimizer.state_dict()["param_groups"]))


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def quick(plan, model, optimizer, **changed):
    options = {"eval_batches": data(2), "steps": 6, "seeds": 3, "rivals": False, "shift": False, **changed}
    batches = options.pop("batches", data())
    return prove(plan, model, optimizer, batches, options.pop("loss_fn", F.cross_entropy), **options)


def accuracy(output, targets):
    return (output.argmax(1) == targets).double().mean()


def test_a_plan_that_changes_nothing_gives_exactly_zero():
    model, optimizer = patient()
    proof = quick(Plan.nothing(model), model, optimizer, metric=accuracy, rivals=True, seeds=2)
    assert proof.verdict == "no measurable benefit"
    for each in proof.comparisons[:2]:
        assert each.differences == (0.0, 0.0)
        assert each.interval == (0.0, 0.0)
    assert [arm.name for arm in proof.arms] == ["untreated", "treated", "learning rate ÷ 3", "learning rate × 3"]
    assert proof.arm("untreated").trials[0].losses == proof.arm("treated").trials[0].losses
    assert proof.arm("untreated").trials[0].losses != proof.arm("untreated").trials[1].losses  # seeds differ


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    model, optimizer = patient()
    F.cross_entropy(model(data()[0][0]), data()[0][1]).backward()
    optimizer.step()
    gradient = model[0].weight.grad.clone()
    before, keys = state(model, optimizer), list(model.state_dict())
    generators = torch.get_rng_state(), random.getstate()
    plan = TREATMENTS["reinitialise"]().plan(model, optimizer)
    calls = 0

    def metric(output, targets):
        nonlocal calls
        calls += 1
        if fails and calls == 5:
            raise KeyboardInterrupt
        return accuracy(output, targets)

    if fails:
        with pytest.raises(KeyboardInterrupt):
            quick(plan, model, optimizer, metric=metric)
    else:
        quick(plan, model, optimizer, metric=metric, shift=True, rivals=True)
    assert list(model.state_dict()) == keys
    assert same(state(model, optimizer), before)
    assert torch.equal(model[0].weight.grad, gradient)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    plan.apply(model, optimizer).undo()  # it can still be applied


def test_fresh_normalisers_wake_a_dead_network():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 16)]
    for _ in range(7):
        layers += [nn.Sigmoid(), nn.Linear(16, 16)]
    model = nn.Sequential(*layers, nn.Sigmoid(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    generator = torch.Generator().manual_seed(1)
    batches = [(x, (x[:, 0] > 0).long()) for x in torch.randn(10, 64, 4, generator=generator)]
    plan = TREATMENTS["insert-norm"]().plan(model, optimizer)
    proof = prove(plan, model, optimizer, batches, F.cross_entropy, eval_batches=batches[:2], steps=60, seeds=3)
    assert proof.verdict == "helps", proof
    assert proof.comparisons[0].interval[1] < 0
    assert {each.arm for each in proof.shift} <= {"untreated", "treated"}
    assert "n = 3 seeds" in proof.sentence


def test_a_rival_that_does_as_much_takes_the_praise_away():
    """A plan that is a learning rate in disguise helps, and so does the rival."""
    model, optimizer = patient(dropout=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4

    def apply():
        optimizer.param_groups[0]["lr"] *= 3

        def undo():
            optimizer.param_groups[0]["lr"] /= 3

        return Receipt("disguise", ("lr",), undo)

    plan = Plan("disguise", "", "", apply, model)
    proof = quick(plan, model, optimizer, rivals=True, steps=30, seeds=4, worthwhile=0.0)
    assert proof.comparisons[0].better is True
    assert proof.verdict == "no measurable benefit"
    assert "but a learning rate × 3 helps too, and is not measurably worse" in proof.sentence
    alone = quick(plan, model, optimizer, rivals=False, steps=30, seeds=4, worthwhile=0.0)
    assert alone.verdict == "helps"
    least = quick(plan, model, optimizer, rivals=False, steps=30, seeds=4, worthwhile=0.1)
    assert least.verdict == "no measurable benefit"  # surely better, and by less than what matters
    assert "would have been worthwhile" in least.sentence


def test_a_harmful_plan_hurts():
    model, optimizer = patient(dropout=0.0)
    plan = TREATMENTS["scale-rate"](factor=1e-6).plan(model, optimizer)
    proof = quick(plan, model, optimizer, rivals=True, steps=60, seeds=3)
    assert proof.verdict == "hurts"
    assert len(proof.arms) == 2  # a rate against rates would be its own rival


def test_a_loss_that_contradicts_the_metric_is_told():
    """A metric that praises doubt: the plan that learns nothing is best by it, and worst by the loss."""
    model, optimizer = patient(dropout=0.0)
    plan = TREATMENTS["scale-rate"](factor=1e-6).plan(model, optimizer)

    def doubt(output, targets):
        return F.cross_entropy(output, targets)

    proof = quick(plan, model, optimizer, steps=60, seeds=3, metric=doubt)
    assert proof.verdict == "helps"
    assert "; the loss says the opposite: +" in proof.sentence
    agreeing = quick(plan, model, optimizer, steps=60, seeds=3, metric=doubt, higher_is_better=False)
    assert agreeing.verdict == "hurts"
    assert "opposite" not in agreeing.sentence


def test_divergence_is_told_and_decides_only_when_it_is_one_sided():
    def arm(name, *losses):
        return Arm(name, tuple(Trial((1.0,), loss, None, 0.1) for loss in losses))

    good, bad, mixed = arm("a", 1.0, 1.0), arm("b", math.nan, math.nan), arm("c", 1.0, math.nan)
    options = {"higher_is_better": False, "alpha": 0.05}
    assert compare("loss", good, bad, **options).better is True
    assert compare("loss", bad, good, **options).better is False
    assert compare("loss", mixed, good, **options).better is None
    assert compare("loss", bad, bad, **options).better is None
    model, optimizer = patient()
    plan = TREATMENTS["scale-rate"](factor=1e12).plan(model, optimizer)
    proof = quick(plan, model, optimizer)
    assert proof.verdict == "hurts"
    assert "non-finite in 3 of 3 treated and 0 of 3 untreated" in proof.sentence


def test_the_interval_is_students():
    mean, low, high = interval_of([1.0, 2.0, 3.0, 4.0, 5.0], 0.05)
    assert (mean, round(low, 4), round(high, 4)) == (3.0, 1.0368, 4.9632)  # 3 ± 2.7764·1.5811/√5
    assert interval_of([2.0], 0.05)[1:] == (-math.inf, math.inf)
    assert interval_of([0.0], 0.05) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_all_looks_together_spend_alpha(seeds):
    assert sum(_spend(0.05, look, seeds) for look in range(3, seeds + 1)) == pytest.approx(0.05)


def test_sequential_stopping_stops():
    model, optimizer = patient(dropout=0.0)
    plan = TREATMENTS["scale-rate"](factor=1e-6).plan(model, optimizer)
    proof = quick(plan, model, optimizer, steps=60, seeds=8, stop_early=True)
    assert proof.verdict == "hurts"
    assert proof.seeds < 8


class Burn(nn.Module):
    """Changes nothing and takes a random number: dropout masks differ from the other arm's."""

    def forward(self, x):
        torch.rand(1)
        return x


@pytest.mark.slow
def test_two_hundred_a_a_proofs_with_differing_random_numbers():
    from holdfast.live.surgery import operate

    claims = 0
    for trial in range(200):
        torch.manual_seed(trial)
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def apply(model=model, optimizer=optimizer):
            surgery = operate(model, optimizer, lambda m, _: nn.Sequential(Burn(), m) if type(m) is nn.ReLU else None)
            return Receipt("a/a", surgery.changes, surgery.undo)

        plan = Plan("a/a", "", "", apply, model)
        proof = quick(plan, model, optimizer, steps=12, seeds=5, batches=lambda seed, t=trial: shifted(seed + 99 * t))
        assert any(each != 0 for each in proof.comparisons[0].differences)
        claims += proof.verdict in ("helps", "hurts") or proof.comparisons[0].better is not None
    assert claims <= 17, claims


def shifted(seed):
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(16, 4, generator=generator)
        yield x, (x[:, 0] > 0).long()


def test_a_loader_is_read_anew_for_each_seed():
    inputs = torch.arange(40.0).reshape(20, 2)
    dataset = torch.utils.data.TensorDataset(inputs, torch.zeros(20, dtype=torch.long))
    loader = torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True)
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    proof = quick(Plan.nothing(model), model, optimizer, batches=loader, eval_batches=loader, steps=4, seeds=2)
    first, second = (each.losses for each in proof.arm("untreated").trials)
    assert len(first) == 4
    assert first != second
    assert first == proof.arm("treated").trials[0].losses


class Once:
    """Looks as if it could be read again."""

    def __init__(self):
        self.left = iter(data(3))

    def __iter__(self):
        return iter(list(self.left))


class Weighted(nn.Module):
    def forward(self, output, targets, weights):
        return output.mean()


MISTAKES = {
    "a generator": ({"batches": iter(data())}, r"batches=lambda seed: my_generator\(seed\)"),
    "no loader": ({"batches": 3}, "batches=loader"),
    "they run out": ({"batches": lambda seed: data(3)}, "type: steps=3"),
    "no batch at all": ({"batches": []}, "batches with at least one batch; got none"),
    "a generator function": ({"batches": lambda: data()}, "batches=lambda seed: mine"),
    "a generator function to judge": ({"eval_batches": lambda: data()}, "eval_batches=lambda seed: mine"),
    "read once": ({"batches": Once()}, "got 3, and none when they are read again; let it go on, or type: steps=3"),
    "eval batches of three": ({"eval_batches": [(1, 2, 3)]}, "a tuple of 3; give pairs: eval_batches"),
    "a single eval batch": ({"eval_batches": data()[0]}, "got a Tensor; give pairs: eval_batches"),
    "a metric of nothing": ({"metric": lambda output, targets: None}, "gives one number; got a NoneType"),
    "a metric of one": ({"metric": lambda output: 1.0}, r"a metric\(output, targets\); got one that cannot"),
    "no metric": ({"metric": 3}, "it is a int"),
    "a loss module of three": ({"loss_fn": Weighted()}, "pack what else it needs"),
    "half a step": ({"steps": 2.5}, "steps of 1 or more; got 2.5"),
    "no pair": ({"batches": [torch.zeros(2, 4)]}, r"batches=\[\(inputs, targets\), …\]"),
    "no eval batch": ({"eval_batches": []}, "eval_batches with at least one batch"),
    "a metric that is NaN": ({"metric": lambda output, targets: math.nan}, "a metric that is a finite number"),
    "a metric of many": ({"metric": lambda output, targets: output}, "32 numbers"),
    "a loss of three": ({"loss_fn": lambda output, targets, weights: output.mean()}, "pack what else it needs"),
    "a loss of many": ({"loss_fn": lambda output, targets: output}, "one number which the parameters move"),
    "no seeds": ({"seeds": 0}, "seeds of 1 or more"),
    "no steps": ({"steps": 0}, "steps of 1 or more"),
    "alpha": ({"alpha": 1.5}, "alpha between 0 and 1"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_sentence(case, shapes_unchecked):
    changed, text = MISTAKES[case]
    model, optimizer = patient()
    before = state(model, optimizer)
    with pytest.raises(InputError, match=text):
        quick(Plan.nothing(model), model, optimizer, **changed)
    assert same(state(model, optimizer), before)


def test_what_is_no_plan_and_what_needs_a_closure(shapes_unchecked):
    model, optimizer = patient()
    for plan in (TREATMENTS["swap-norm"]("group"), "swap-norm", None):
        with pytest.raises(InputError, match="expected a plan or a prescription"):
            quick(plan, model, optimizer)
    for strange in (torch.optim.LBFGS(model.parameters()), object()):
        with pytest.raises(InputError, match="needs no closure; got a"):
            quick(Plan.nothing(model), model, strange)


@pytest.mark.parametrize("source", ["a loader", "a function"])
def test_batches_that_ignore_the_seed_are_dealt_out_in_an_order_of_its_own(source):
    model, optimizer = patient(dropout=0.0)
    batches = DataLoader(data(), batch_size=None) if source == "a loader" else lambda seed: data()
    proof = quick(Plan.nothing(model), model, optimizer, batches=batches)
    first, second, third = (each.losses for each in proof.arm("untreated").trials)
    assert first != second != third != first


def test_one_training_repeated_proves_nothing():
    model, optimizer = patient(dropout=0.0)
    plan = TREATMENTS["scale-rate"](factor=3.0).plan(model, optimizer)
    proof = quick(plan, model, optimizer, batches=data(1), steps=30)
    assert proof.verdict == "inconclusive"
    assert "all 3 seeds gave the very same training, so that n is 1" in proof.sentence
    assert quick(Plan.nothing(model), model, optimizer, batches=data(1)).verdict == "no measurable benefit"


def test_a_generator_of_the_loaders_own_is_seeded_and_put_back():
    model, optimizer = patient()
    pairs = [pair for x, y in data() for pair in zip(x, y, strict=True)]
    loader = DataLoader(pairs, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3))
    before = loader.generator.get_state()
    plan = TREATMENTS["scale-rate"]().plan(model, optimizer)
    one, other = (quick(plan, model, optimizer, batches=loader) for _ in range(2))
    assert one.comparisons[0].differences == other.comparisons[0].differences
    assert torch.equal(loader.generator.get_state(), before)


def test_a_plan_of_another_model_and_a_recipe_are_refused():
    model, optimizer = patient()
    other, others = patient()
    with pytest.raises(SurgeryError, match="the model that the plan was worked out for"):
        quick(TREATMENTS["scale-rate"]().plan(other, others), model, optimizer)
    with pytest.raises(SurgeryError, match="recipe"):
        quick(TREATMENTS["z-loss"]().plan(model, optimizer), model, optimizer)
    with pytest.raises(SurgeryError, match="holds none of its parameters"):
        quick(Plan.nothing(model), model, others)


def test_a_watched_model_is_refused():
    model, optimizer = patient()
    watch = Watch(model, optimizer, lambda: MemoryRun("x"), name="x")
    with pytest.raises(SurgeryError, match="nobody watches"):
        quick(Plan.nothing(model), model, optimizer)
    watch.close()
    quick(Plan.nothing(model), model, optimizer, seeds=1, steps=1)


def test_the_proof_as_plain_values():
    import json

    model, optimizer = patient()
    proof = quick(Plan.nothing(model), model, optimizer, metric=accuracy, seeds=2)
    told = json.loads(json.dumps(proof.as_dict(), allow_nan=False))
    assert told["verdict"] == "no measurable benefit"
    assert len(told["arms"][0]["metric"]) == 2
    assert "metric" in told["arms"][0]
    assert [each["outcome"] for each in told["comparisons"]] == ["accuracy", "loss"]


@pytest.mark.parametrize(
    ("metric", "name"),
    [(None, "loss"), (accuracy, "accuracy"), (lambda *pair: accuracy(*pair), "metric")],
    ids=["loss", "accuracy", "lambda"],
)
def test_the_deciding_outcome_has_the_metric_s_name(metric, name):
    model, optimizer = patient()
    proof = quick(Plan.nothing(model), model, optimizer, metric=metric, seeds=2, steps=1)
    assert proof.primary == name
    assert proof.sentence.startswith(f"{name}, treated − untreated: +0 (")


def test_the_shift_leaves_out_inputs_where_samples_cannot_be_told_apart():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 16)]
    for _ in range(9):
        layers += [nn.Sigmoid(), nn.Linear(16, 16)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    proof = quick(Plan.nothing(model), model, optimizer, steps=31, seeds=1, shift=True)
    untreated, treated = proof.shift
    assert untreated.collapsed == treated.collapsed > 5
    assert untreated.where.removeprefix("net/") in ("1", "2", "3", "4", "5", "6", "7", "8")
    assert untreated.largest < 3  # at the last layers it would be thousands, in units of nothing


def test_a_recipe_that_acts_on_the_optimiser_is_rehearsed_and_leaves_no_trace():
    model, optimizer = patient(dropout=0.0)
    before = state(model, optimizer)
    proof = quick(WarmUp(steps=4).plan(model, optimizer), model, optimizer, seeds=2)
    assert same(state(model, optimizer), before)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    first = data()
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=4)
    losses = []
    for inputs, targets in draw(first, 6, 0):  # as the lines to paste would train
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert proof.arm("treated").trials[0].losses == pytest.approx(losses, rel=1e-6)
    assert proof.arm("untreated").trials[0].losses[2:] != pytest.approx(losses[2:], rel=1e-3)
    with pytest.raises(SurgeryError, match="only your script can follow"):
        WarmUp(steps=4).plan(model, optimizer).apply()
