import math

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.treatments.reinitialise import Reinitialise


def network(activation=nn.ReLU):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 200), activation(), nn.Linear(200, 100), activation(), nn.Linear(100, 10))
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 3.0)
            nn.init.normal_(module.bias)
    return model


def sd(model, place):
    return model[place].weight.std().item()


@pytest.mark.parametrize(
    ("scheme", "activation", "expected"),
    [
        ("he", nn.ReLU, math.sqrt(2 / 300)),
        ("he", nn.Tanh, math.sqrt(1 / 300)),
        ("glorot", nn.ReLU, math.sqrt(2 / 500)),
        ("auto", nn.ReLU, math.sqrt(2 / 300)),
        ("auto", nn.Sigmoid, math.sqrt(2 / 500)),
        ("orthogonal", nn.Tanh, math.sqrt(1 / 300)),
    ],
)
def test_scales_are_the_papers(scheme, activation, expected):
    model = network(activation)
    receipt = Reinitialise(scheme).plan(model, None).apply()
    assert sd(model, 0) == pytest.approx(expected, rel=0.02)
    assert torch.equal(model[0].bias, torch.zeros(200))
    assert len(receipt.changes) == 3


def test_orthogonal_rows_are_orthonormal():
    model = network(nn.Tanh)
    Reinitialise("orthogonal").plan(model, None).apply()
    weight = model[0].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(200), atol=1e-4, rtol=0)


def test_lsuv_gives_each_layer_unit_variance():
    model = network()
    batch = torch.randn(64, 300) * 7
    Reinitialise("lsuv", batch=batch).plan(model, None).apply()
    x = batch
    for module in model:
        x = module(x)
        if isinstance(module, nn.Linear):
            assert x.var(correction=0).item() == pytest.approx(1.0, abs=0.02)


def test_lsuv_needs_a_batch_on_which_layers_vary():
    with pytest.raises(SurgeryError, match='type: Reinitialise\\("lsuv", batch=inputs\\)'):
        Reinitialise("lsuv").plan(network(), None)
    model = network()
    before = model[0].weight.detach().clone()
    plan = Reinitialise("lsuv", batch=torch.zeros(4, 300)).plan(model, None)
    with pytest.raises(SurgeryError, match="output has variance 0"):
        plan.apply()
    assert torch.equal(model[0].weight, before)


def test_an_activation_names_the_layer_that_feeds_it():
    model = network()
    before = [module.weight.detach().clone() for module in model if isinstance(module, nn.Linear)]
    Reinitialise().plan(model, None, [Site("3", "input"), Site("2", "output")]).apply()
    assert [torch.equal(old, new.weight) for old, new in zip(before, (model[0], model[2], model[4]), strict=True)] == [
        True,
        False,
        True,
    ]


def test_the_same_seed_draws_the_same_and_the_global_generator_stays():
    one, other = network(), network()
    state = torch.get_rng_state()
    Reinitialise(seed=5).plan(one, None).apply()
    assert torch.equal(torch.get_rng_state(), state)
    Reinitialise(seed=5).plan(other, None).apply()
    assert torch.equal(one[0].weight, other[0].weight)
    Reinitialise(seed=6).plan(other, None).apply()
    assert not torch.equal(one[0].weight, other[0].weight)


def test_types_are_kept():
    model = network().bfloat16()
    Reinitialise("orthogonal").plan(model, None).apply()
    assert model[0].weight.dtype == torch.bfloat16
    assert model[0].weight.isfinite().all()


def test_the_optimiser_forgets_only_these():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(8, 300)).square().mean().backward()
    optimizer.step()
    Reinitialise().plan(model, optimizer, [Site("0", "input")]).apply()
    assert [each in optimizer.state for each in model.parameters()] == [False, False, True, True, True, True]
    optimizer.step()
    assert optimizer.state[model[0].weight]["step"].item() == 1
    assert optimizer.state[model[2].weight]["step"].item() == 2


class Scaled(nn.Linear):
    """A subclass that uses its weight in its own way."""


def frozen():
    layer = nn.Linear(4, 4)
    layer.weight.requires_grad_(False)
    return layer


def tied():
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(Scaled(4, 4)), "a subclass"),
        (nn.Sequential(frozen()), "frozen"),
        (nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))), "ParametrizedLinear is a subclass"),
        (tied(), "tied to a layer of another kind"),
        (nn.Sequential(nn.ReLU()), "none among those named"),
    ],
    ids=["subclass", "frozen", "parametrised", "tied", "none"],
)
def test_what_must_not_be_drawn_anew_is_told(model, reason):
    with pytest.raises(SurgeryError, match=reason):
        Reinitialise().plan(model, None)


def test_layers_left_are_in_the_diff():
    model = nn.Sequential(nn.Linear(4, 4), frozen())
    assert "  1: left as it is: its weight is frozen" in Reinitialise().plan(model, None).diff


def test_an_unknown_scheme_is_refused():
    with pytest.raises(InputError, match="'orthogonal', 'lsuv'; got 'foo'"):
        Reinitialise("foo")


def test_two_draws_are_undone_last_first():
    model = network()
    before = model[0].weight.detach().clone()
    first, second = (Reinitialise(seed=seed).plan(model, None).apply() for seed in range(2))
    with pytest.raises(SurgeryError, match="undo the later change first: reinitialise"):
        first.undo()
    second.undo()
    first.undo()
    assert torch.equal(model[0].weight, before)
