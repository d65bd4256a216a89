"""What every treatment must keep; found by iteration, so that a new one is held to it without a new test."""

import copy
import inspect
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from holdfast.core.errors import HoldfastError, SurgeryError
from holdfast.core.treatment import Treatment
from holdfast.treatments import TREATMENTS

RECIPES = ("clip", "scale-input", "warm-up", "z-loss")
CARD = ("What it does:", "When it helps:", "When it is wrong:", "Example:", "References:")


def perceptron():
    torch.manual_seed(0)
    layers = OrderedDict()
    for number in range(3):
        layers[f"fc{number}"] = nn.Linear(6, 6)
        layers[f"act{number}"] = nn.Sigmoid()
    layers["out"] = nn.Linear(6, 2)
    return nn.Sequential(layers)


class Convolutional(nn.Module):
    """With a normaliser, dropout, an operation in place, a shared layer and a plain function between."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.body = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)])
        self.act = nn.Tanh()
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.body:
            x = x + self.act(layer(x))
        return self.head(self.drop(x.mean((2, 3))))


def convolutional():
    torch.manual_seed(1)
    return Convolutional()


MODELS = {"perceptron": (perceptron, (16, 6)), "convolutional": (convolutional, (16, 2, 5, 5))}
OPTIMISERS = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01),
}


def normalised():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4), nn.BatchNorm1d(4))


def rectified():
    torch.manual_seed(2)
    layers = [nn.Linear(6, 6, bias=False), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 4, bias=False), nn.Tanh()]
    return nn.Sequential(*layers, nn.BatchNorm1d(4))


class Fused(nn.Module):
    """Two streams that meet, one some twenty times the other."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU())
        self.deep = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.LeakyReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(torch.cat([self.wide(20 * x), self.deep(x)], dim=1))


def fused():
    torch.manual_seed(3)
    return Fused()


# What a treatment is for, where the patients that serve the others lack it: another model or another optimiser.
TAILORED = {
    "drop-bias": {"model": (normalised, (16, 6))},
    "decouple-decay": {"optimiser": OPTIMISERS["adam"]},
    "fold": {"model": MODELS["convolutional"]},
    "freeze-batchnorm": {"model": MODELS["convolutional"]},
    "normalise-streams": {"model": (fused, (16, 6))},
    "re-estimate": {"model": MODELS["convolutional"]},
    "reorder-norm": {"model": (rectified, (16, 6))},
    "scale-residual": {"model": MODELS["convolutional"]},
    "split-decay": {
        "optimiser": lambda groups: torch.optim.SGD(
            [each for group in groups for each in group["params"]], lr=0.05, momentum=0.9, weight_decay=0.01
        ),
        "settings": lambda patient: {"scheduler": patient.scheduler},
    },
    "swap-norm": {"model": (normalised, (16, 6))},
}


# Those that measure on a batch and work out nothing without one.
NEED_A_BATCH = ("fold", "normalise-streams", "re-estimate", "scale-residual")


def made(name, patient, with_batch=False):
    """A treatment with its own settings, and with the batch where it is wanted or needed."""
    settings = TAILORED.get(name, {}).get("settings", lambda _: {})(patient)
    return TREATMENTS[name](batch=patient.batch if with_batch or name in NEED_A_BATCH else None, **settings)


class Patient:
    """A model in training: hooks, an optimiser with state, a scheduler."""

    def __init__(self, model, optimiser, treatment=None):
        tailored = TAILORED.get(treatment, {})
        build, shape = tailored.get("model", MODELS[model])
        self.model = build()
        self.shape = shape
        self.seen = []
        last = list(self.model.modules())[-1]
        last.register_forward_hook(lambda *_: self.seen.append(1))
        decayed = [each for each in self.model.parameters() if each.ndim > 1]
        others = [each for each in self.model.parameters() if each.ndim == 1]
        self.optimizer = tailored.get("optimiser", OPTIMISERS[optimiser])(
            [{"params": decayed, "weight_decay": 0.01}, {"params": others}]
        )
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.99)
        self.batch = torch.randn(shape)
        for _ in range(2):
            self.step()

    def step(self):
        self.optimizer.zero_grad()
        self.model(torch.randn(self.shape)).square().mean().backward()
        self.optimizer.step()
        self.scheduler.step()

    def state(self):
        """Every value that training depends on, tensors as their bytes: equal means equal bit for bit."""
        values = {
            "model": self.model.state_dict(),
            "optimiser": self.optimizer.state_dict(),
            "gradients": [each.grad for each in self.model.parameters()],
            "modes": [module.training for module in self.model.modules()],
            "random": torch.get_rng_state(),
            "base rates": self.scheduler.base_lrs,
        }
        return copy.deepcopy(tree_map(lambda each: contents(each) if isinstance(each, torch.Tensor) else each, values))

    def identity(self):
        """Which objects hold these values."""
        return {
            "modules": [(name, id(each)) for name, each in self.model.named_modules(remove_duplicate=False)],
            "parameters": [(name, id(each)) for name, each in self.model.named_parameters(remove_duplicate=False)],
            "buffers": [(name, id(each)) for name, each in self.model.named_buffers(remove_duplicate=False)],
            "hooks": [
                (name, id(getattr(module, name)), list(getattr(module, name).items()))
                for module in self.model.modules()
                for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
            ],
            "groups": [
                (id(group), id(group["params"]), [id(each) for each in group["params"]])
                for group in self.optimizer.param_groups
            ],
            "optimiser": [id(each) for each in self.optimizer.state],
        }


def contents(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.detach().numpy().tobytes()


# Each model and each optimiser once: what a treatment does to the one does not depend on the other.
@pytest.fixture(params=[("perceptron", "adam"), ("convolutional", "momentum"), ("perceptron", "adagrad")], ids="-".join)
def patient(request):
    torch.manual_seed(3)
    fixtures = [each for each in ("name", "change") if each in request.fixturenames]
    return Patient(*request.param, *map(request.getfixturevalue, fixtures))


@pytest.fixture(params=sorted(TREATMENTS))
def name(request):
    return request.param


@pytest.fixture(params=sorted(set(TREATMENTS) - set(RECIPES)))
def change(request):
    """The name of a treatment that acts itself."""
    return request.param


def test_names_and_protocol(name):
    treatment = TREATMENTS[name]()
    assert isinstance(treatment, Treatment)
    assert treatment.name == name
    assert name == name.lower()


def test_every_card_has_its_sections_in_order(name):
    card = inspect.getdoc(TREATMENTS[name])
    places = [card.find(section) for section in CARD]
    assert -1 not in places, [section for section, place in zip(CARD, places, strict=True) if place < 0]
    assert places == sorted(places)
    assert ">>> " in card


def test_every_treatment_that_a_rule_names_exists():
    from holdfast.diagnosis import RULES

    named = {treatment for rule in RULES for treatment in rule.treatments}
    assert named
    assert named <= set(TREATMENTS)


@pytest.mark.parametrize("with_batch", [False, True])
def test_a_plan_changes_nothing(name, patient, with_batch):
    before, identity, calls = patient.state(), patient.identity(), len(patient.seen)
    plan = made(name, patient, with_batch).plan(patient.model, patient.optimizer)
    assert patient.state() == before
    assert patient.identity() == identity
    assert with_batch or name in NEED_A_BATCH or len(patient.seen) == calls
    assert plan.treatment == name
    lines = plan.diff.splitlines()
    assert {line[:2] for line in lines} <= {"- ", "+ ", "  "}
    assert any(line.startswith("- ") for line in lines)
    assert any(line.startswith("+ ") for line in lines)
    compile(plan.source, name, "exec")


@pytest.mark.parametrize("with_batch", [False, True])
def test_apply_then_undo_is_bit_for_bit(change, patient, with_batch):
    before, identity = patient.state(), patient.identity()
    plan = made(change, patient, with_batch).plan(patient.model, patient.optimizer)
    receipt = plan.apply()
    assert receipt.treatment == change
    assert receipt.changes
    assert all("→" in line for line in receipt.changes)
    changed = patient.state()
    assert changed["random"] == before["random"]
    assert changed != before or patient.identity() != identity
    if with_batch or change in NEED_A_BATCH:
        assert receipt.error_eval >= 0.0
        assert receipt.error_train >= 0.0
    else:
        assert receipt.error_eval is receipt.error_train is None
    receipt.undo()
    assert patient.state() == before
    assert patient.identity() == identity
    with pytest.raises(SurgeryError, match="undone already"):
        receipt.undo()
    assert patient.state() == before


@pytest.mark.parametrize("needy", NEED_A_BATCH)
def test_one_that_needs_a_batch_says_so(needy, patient):
    with pytest.raises(HoldfastError, match="batch="):
        TREATMENTS[needy]().plan(patient.model, patient.optimizer)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_cannot_be_applied(recipe, patient):
    before = patient.state()
    plan = TREATMENTS[recipe](batch=patient.batch).plan(patient.model, patient.optimizer)
    with pytest.raises(SurgeryError, match="only your script can follow"):
        plan.apply()
    assert patient.state() == before


def test_a_training_step_runs_after_apply_and_after_undo(change, patient):
    plan = made(change, patient, with_batch=True).plan(patient.model, patient.optimizer)
    identity = [id(each) for each in patient.model.parameters()]
    receipt = plan.apply()
    before = copy.deepcopy(patient.model.state_dict())
    patient.step()
    trained = {key for key, value in patient.model.state_dict().items() if not torch.equal(value, before[key])}
    assert {name for name, _ in patient.model.named_parameters()} <= trained
    receipt.undo()
    patient.step()
    held = [id(each) for group in patient.optimizer.param_groups for each in group["params"]]
    assert sorted(held) == sorted(id(each) for each in patient.model.parameters())
    assert set(held) == set(identity)
    assert {id(each) for each in patient.optimizer.state} == set(held)
    plan.apply().undo()


def test_a_plan_in_force_is_refused_and_may_be_applied_again_after_undo(change, patient):
    plan = made(change, patient).plan(patient.model, patient.optimizer)
    receipt = plan.apply()
    after = patient.state()
    with pytest.raises(SurgeryError, match="that was applied already"):
        plan.apply()
    assert patient.state() == after
    receipt.undo()
    plan.apply()
    assert patient.state() == after


def test_the_lines_to_paste_do_the_same(change, patient):
    pasted_model, pasted_optimizer, scheduler = copy.deepcopy((patient.model, patient.optimizer, patient.scheduler))
    plan = made(change, patient).plan(patient.model, patient.optimizer)
    names = {"model": pasted_model, "optimizer": pasted_optimizer, "scheduler": scheduler}
    names |= {"nn": nn, "torch": torch, "OrderedDict": OrderedDict, "batch": patient.batch}
    exec(plan.source, names)
    plan.apply()
    assert repr(pasted_model) == repr(patient.model)
    assert list(pasted_model.state_dict()) == list(patient.model.state_dict())
    pasted = [group["lr"] for group in pasted_optimizer.param_groups]
    assert pasted == pytest.approx([group["lr"] for group in patient.optimizer.param_groups])


def test_an_optimiser_of_another_model_is_refused(change, patient):
    stranger = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    before = patient.state()
    with pytest.raises(SurgeryError, match="holds none of its parameters"):
        made(change, patient).plan(patient.model, stranger).apply()
    assert patient.state() == before


# Those that leave the optimiser alone, and so serve any.
WITHOUT_AN_OPTIMISER = ("freeze-batchnorm", "re-estimate")


def test_another_optimiser_than_the_plans_is_refused(change, patient):
    other = torch.optim.SGD(patient.model.parameters(), lr=0.1)
    plan = made(change, patient).plan(patient.model, patient.optimizer)
    before = patient.state()
    if change in WITHOUT_AN_OPTIMISER:
        plan.apply(patient.model, other).undo()
    else:
        for owner in (patient.model, None):
            with pytest.raises(SurgeryError, match="worked out for another"):
                plan.apply(owner, other)
            with pytest.raises(SurgeryError, match="worked out for another"):
                plan.trial(owner, other)
    assert patient.state() == before


def test_a_plan_without_an_optimiser_is_refused_where_there_is_one(change, patient):
    try:
        plan = made(change, patient).plan(patient.model, None)
    except SurgeryError:  # nothing to do without one
        return
    before = patient.state()
    if change not in WITHOUT_AN_OPTIMISER:
        with pytest.raises(SurgeryError, match="worked out without one"):
            plan.apply(patient.model, patient.optimizer)
    assert patient.state() == before
    plan.apply(patient.model).undo()


@pytest.mark.parametrize("recipe", ["clip", "warm-up"])
def test_another_optimiser_than_a_rehearsals_is_refused(recipe, patient):
    other = torch.optim.SGD(patient.model.parameters(), lr=0.1)
    for given in (patient.optimizer, None):
        with pytest.raises(SurgeryError, match="plan again for this one"):
            TREATMENTS[recipe]().plan(patient.model, given).trial(patient.model, other)


def test_a_change_is_not_undone_before_a_later_one(change, patient):
    first = made(change, patient).plan(patient.model, patient.optimizer).apply()
    second = TREATMENTS["reinitialise"]().plan(patient.model, patient.optimizer).apply()
    before = patient.state()
    with pytest.raises(SurgeryError, match="undo the later change first: reinitialise"):
        first.undo()
    assert patient.state() == before
    second.undo()
    first.undo()
