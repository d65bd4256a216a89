"""Who moved it, where the answer is known on paper."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from holdfast.core.site import Site
from holdfast.measures.attribution import attribution
from holdfast.measures.parameter_drift import parameter_drift
from holdfast.stats.observation import observe


def linear(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)))


def scaled(model: nn.Module, **factors: float) -> dict[str, torch.Tensor]:
    """ΔW = factor · W."""
    named = dict(model.named_parameters())
    return {f"{layer[1:]}.weight": factor * named[f"{layer[1:]}.weight"].detach() for layer, factor in factors.items()}


def row(table, module, port="output", call=0, phase="train"):
    return table.values[table.rows.index(str(Site(module, port, call=call, phase=phase)))]


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.25), (0.3, -0.1), (-0.4, 0.05), (1e-3, 2e-3), (0.2, 0.0)])
@pytest.mark.parametrize("widths", [(1, 1, 1), (6, 9, 4)])
def test_on_a_linear_chain_the_effects_are_a_and_b_and_the_interaction_is_ab(a: float, b: float, widths) -> None:
    """h = W₂(1+b) W₁(1+a) x: of the final mean a by the first, b by the second, ab by both. Tolerance 1e-4 of the sum,
    or what float32 leaves of a difference of its size (1e-6 of the mean)."""
    torch.manual_seed(0)
    chain = linear(*widths).double()
    x = torch.randn(40, widths[0], dtype=torch.float64) + 2
    found = attribution(chain, x, scaled(chain, _0=a, _1=b))
    assert found.effect.columns == ("0", "1", "all", "interaction")
    # Of one sample and feature m_ij, in SD: shifts are multiples of it, so every effect is one of their common length.
    h = chain(x).detach()
    m = h / h.std(0, correction=0)
    length = math.sqrt(float((m.mean(0) ** 2 - m.var(0) / 40).mean()))
    direction = math.copysign(1.0, a + b + a * b)
    want = [direction * each * length for each in (a, b, a + b + a * b, a * b)]
    got = row(found.effect, "1")
    assert got == pytest.approx(want, rel=1e-4, abs=1e-6 * length)
    assert row(found.drift, "1") == pytest.approx([abs(each) for each in want], rel=1e-4, abs=1e-6 * length)


@pytest.mark.parametrize("layer", range(4))
def test_one_changed_layer_gives_one_column_that_is_not_zero(layer: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)))
    update = {name: torch.zeros_like(each) for name, each in net.named_parameters()}
    update[f"{layer}.0.bias"] = torch.full((8,), 0.1)
    found = attribution(net, torch.randn(32, 8), update)
    *alone, together, interaction = zip(*found.drift.values, strict=True)
    assert len(alone) == 4
    for index, column in enumerate(alone):
        assert any(column) == (index == layer)
    assert alone[layer] == together  # bit for bit
    assert not any(interaction)
    for text, drift in zip(found.drift.rows, together, strict=True):
        site = Site.parse(text)
        upstream = int(site.module[0]) < layer or (site.module == f"{layer}.0" and site.port == "input")
        assert (drift == 0) == upstream


class Residual(nn.Module):
    """h = x₀ + f(x₀) + g(x₀), two branches side by side, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + self.left(x).relu() + self.right(x).relu())


def test_in_a_residual_network_what_is_not_upstream_has_exactly_zero() -> None:
    torch.manual_seed(0)
    net = Residual()
    update = {name: 0.05 * torch.randn_like(each) for name, each in net.named_parameters()}
    found = attribution(net, torch.randn(32, 6), update)
    assert found.drift.columns == ("stem", "left", "right", "head", "all", "interaction")
    feeds = {
        ("stem", "input"): [],
        ("stem", "output"): [0],
        ("left", "input"): [0],
        ("left", "output"): [0, 1],
        ("right", "input"): [0],
        ("right", "output"): [0, 2],
        ("head", "input"): [0, 1, 2],
        ("head", "output"): [0, 1, 2, 3],
    }
    for (module, port), causes in feeds.items():
        for table in (found.effect, found.drift):
            cells = row(table, module, port)[:4]
            assert [index for index, cell in enumerate(cells) if cell != 0] == causes, (module, port)
    # The branches meet in a sum: without the stem's update they do not interact, beyond rounding (1e-6 SD).
    parallel = {name: each for name, each in update.items() if name.startswith(("left", "right"))}
    assert row(attribution(net, torch.randn(32, 6), parallel).drift, "head", "input")[-1] < 1e-6


def test_effects_and_interaction_add_up_to_the_joint_drift() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
    update = {name: 0.3 * torch.randn_like(each) for name, each in net.named_parameters()}
    found = attribution(net, torch.randn(64, 8), update)
    compared = 0
    for effects, drifts in zip(found.effect.values, found.drift.values, strict=True):
        *alone, together, interaction = effects
        if together:
            assert sum(alone) + interaction == pytest.approx(together, rel=1e-9)
            assert together == pytest.approx(drifts[-2], rel=1e-5)
            compared += abs(interaction) > 0.01 * together
    assert compared > 3


def test_the_joint_drift_is_the_parameter_drift_of_two_plain_passes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3))
    x = torch.randn(16, 3, 8, 8)
    update = {name: 0.1 * torch.randn_like(each) for name, each in net.named_parameters()}
    found = attribution(net, x, update)
    with torch.no_grad():
        before = net(x).flatten(2)
        for name, each in net.named_parameters():
            each += update[name]
        after = net(x).flatten(2)
    want = parameter_drift(observe(before).features, observe(after).features, site=Site("2", "output"), step=1, lag=1)
    assert row(found.drift, "2")[-2] == pytest.approx(want.value, rel=1e-4)
    assert row(found.floor, "2")[-2] == pytest.approx(want.noise_floor, rel=1e-4)
    assert found.effect.n == want.n == 16


def test_a_shared_parameter_is_one_layer_wherever_it_is_used() -> None:
    """W used twice, h = W W x: its update alone is all there is, (1+a)² − 1 of the mean."""
    torch.manual_seed(0)
    net = linear(5, 5, 5)
    net[1].weight = net[0].weight
    found = attribution(net, torch.randn(32, 5) + 3, {"1.weight": 0.1 * net[0].weight.detach()})
    assert found.effect.columns == ("0", "all", "interaction")
    first, second = row(found.effect, "0"), row(found.effect, "1")
    assert first[0] == first[1] > 0
    assert second[0] == second[1] > 0
    assert first[2] == second[2] == 0

    module = nn.Linear(5, 5, bias=False)
    twice = nn.Sequential(module, module)
    found = attribution(twice, torch.randn(32, 5) + 3, {"0.weight": 0.1 * module.weight.detach()})
    assert found.effect.rows[-1] == str(Site("0", "output", call=1))
    assert row(found.effect, "0", call=1)[0] > row(found.effect, "0", "input", call=1)[0] > 0


def test_a_batch_normaliser_takes_away_what_moved_mean_and_scale_alone() -> None:
    """In training mode BN(c·z + d) = BN(z) (up to ε): bias and scale of the layer before reach its input only."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, eps=1e-12), nn.Linear(6, 2)).double()
    own = dict(net.named_parameters())
    update = {"0.weight": own["0.weight"].detach() * 0.5, "0.bias": own["0.bias"].detach() * 0.5 + 1}
    x = torch.randn(32, 6, dtype=torch.float64)
    found = attribution(net, x, update)
    assert row(found.drift, "1", "input")[0] > 1
    assert row(found.drift, "1", "output")[0] < 1e-6
    # On running statistics it is one fixed affine map, and a shift in SD passes it unchanged.
    cells = attribution(net.eval(), x, update)
    into, out = (row(cells.drift, "1", port, phase="eval")[0] for port in ("input", "output"))
    assert out == pytest.approx(into, rel=1e-5)
