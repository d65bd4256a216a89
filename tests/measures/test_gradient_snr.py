from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError, StatisticError
from holdfast.core.site import Site
from holdfast.live.moment import Moment
from holdfast.measures import WATCHABLE
from holdfast.measures.gradient_snr import PARTS, gradient_snr, gradient_snrs


def inner(output, target):
    """A loss whose gradient by the weight is the mean of the inputs."""
    return output.mean()


def test_a_planted_mean_is_recovered(shapes_unchecked):
    """Gradients N(m, I) of 512 samples in 200 dimensions: SNR² = 512 ‖m‖² / 200; the median of 6 within 5 %."""
    generator = torch.Generator().manual_seed(0)
    for wanted in (1.0, 5.0, 30.0):
        model = nn.Linear(200, 1, bias=False)
        mean = torch.full((200,), wanted / math.sqrt(512))
        found = []
        for _ in range(6):
            batch = (mean + torch.randn(512, 200, generator=generator), torch.zeros(512, 1))
            whole, weight = gradient_snrs(model, inner, batch)
            assert whole.value == pytest.approx(weight.value)
            found.append(whole.value)
        assert np.median(found) == pytest.approx(wanted, rel=0.05 if wanted > 1 else 0.25)


@pytest.mark.parametrize("dimensions", [1, 500])
def test_about_5_percent_above_the_floor_without_signal(shapes_unchecked, site, dimensions):
    generator = torch.Generator().manual_seed(3)
    above = [
        gradient_snr(list(torch.randn(PARTS, dimensions, generator=generator)), site=site, step=1).above_noise
        for _ in range(500)
    ]
    assert 0.02 <= np.mean(above) <= 0.075


def test_what_is_given(site):
    g = [torch.randn(3, 4, generator=torch.Generator().manual_seed(k)) + 2 for k in range(6)]
    reading = gradient_snr(g, site=site, step=3)
    stacked = torch.stack(g).double().reshape(6, -1)
    centred = stacked - stacked.mean(0)
    noise = float(centred.square().sum()) / 5 / 6
    signal = float(stacked.mean(0).square().sum()) - noise
    assert reading.value == pytest.approx(math.sqrt(signal / noise))
    assert (reading.n, reading.step, reading.unit, reading.above_noise) == (6, 3, "ratio", True)
    assert gradient_snr([1e20 * each for each in g], site=site, step=3).value == pytest.approx(reading.value)
    assert gradient_snr([each * 0 for each in g], site=site, step=3) is None
    assert gradient_snr([g[0], g[1] / 0], site=site, step=3) is None
    assert gradient_snr([g[0]] * 6, site=site, step=3).value == math.inf
    assert not gradient_snr(g[:5], site=site, step=3).above_noise


def test_bad_input(site):
    with pytest.raises(StatisticError, match="expected two gradients or more; got 1"):
        gradient_snr([torch.ones(2)], site=site, step=1)
    with pytest.raises(InputError, match=re.escape("shapes (2,), (3,)")):
        gradient_snr([torch.ones(2), torch.ones(3)], site=site, step=1)
    model = nn.Linear(3, 1)
    small = (torch.ones(15, 3), torch.ones(15, 1))
    with pytest.raises(InputError, match=r"a batch of 16 samples or more, to be cut into 8 parts.*; got 15"):
        gradient_snrs(model, nn.functional.mse_loss, small)
    with pytest.raises(InputError, match=re.escape("a batch (inputs, targets); got a Tensor")):
        gradient_snrs(model, nn.functional.mse_loss, small[0])
    with pytest.raises(InputError, match="loss_fn"):
        gradient_snrs(model, None, (torch.ones(16, 3), torch.ones(16, 1)))


def test_in_a_watch_nothing_is_changed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    batch = (torch.randn(70, 6), torch.randint(3, (70,)))
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    held = [*model.parameters(), *model.buffers(), *(each.grad for each in model.parameters())]
    copies, versions = [each.detach().clone() for each in held], [each._version for each in held]
    state = torch.get_rng_state()
    moment = Moment(model, 4, "gen", batch=batch, loss_fn=nn.functional.cross_entropy)
    found = WATCHABLE["gradient-snr"].start()(moment)
    assert [each.site for each in found[:2]] == [
        Site("", "weight_grad", "gen"),
        Site("0", "weight_grad", "gen", "weight"),
    ]
    assert len(found) == 1 + 6
    assert {each.step for each in found} == {4}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, held, copies))
    assert [each._version for each in held] == versions


def test_tensors_beside_the_batch_are_handed_on_whole():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 1)

        def forward(self, x, scale, name):
            assert (len(x), len(scale), name) == (4, 3, "a")
            return self.fc(x * scale)

    batch = ({"x": torch.randn(32, 3), "scale": torch.ones(3), "name": "a"}, torch.randn(32, 1))
    assert len(gradient_snrs(Masked(), nn.functional.mse_loss, batch)) == 3
