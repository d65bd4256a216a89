import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.clinic.preflight import ONE_BATCH, preflight
from holdfast.core.errors import InputError, SurgeryError
from holdfast.diagnosis import RULES
from holdfast.lab.networks import build


def healthy(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
    )
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return model


def batch(samples: int = 64, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return scale * torch.randn(samples, 6, generator=generator), torch.randint(0, 3, (samples,), generator=generator)


def test_a_healthy_network_may_start():
    found = preflight(healthy(), batch(), F.cross_entropy)
    assert not [each for each in found if each.severity != "info"]
    assert found.verdict == (
        "Nothing stands against starting that one batch of 64 samples can show "
        "(1 remark; coupled-decay, decayed-gain undecided)"
    )


def test_what_the_structure_alone_shows_is_asked_too():
    assert {rule.name for rule in RULES if rule.static} <= {rule.name for rule in ONE_BATCH}
    model = healthy()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.1)
    found = preflight(model, batch(), F.cross_entropy, optimizer)
    assert found.verdict.startswith("Mend before the first step: coupled-decay (warning)")
    assert {"redundant-bias", "decayed-gain"} <= {each.rule for each in found}


def test_the_demos_healthy_network_is_without_a_remark():
    model = build("healthy", features=6, classes=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = preflight(model, batch(), F.cross_entropy, optimizer)
    assert list(found) == []
    assert not {each.rule for each in found.inconclusive} & {rule.name for rule in RULES if rule.static}


def test_raw_pixels_are_found():
    inputs, labels = batch()
    found = preflight(healthy(), (inputs * 60 + 128, labels), F.cross_entropy)
    assert "unscaled-input" in [each.rule for each in found]


def test_a_dead_signal_is_found():
    torch.manual_seed(0)
    layers = [layer for _ in range(10) for layer in (nn.Linear(6, 6), nn.Sigmoid())]
    found = preflight(nn.Sequential(*layers, nn.Linear(6, 3)), batch(), F.cross_entropy)
    rules = [each.rule for each in found]
    assert "collapsed-signal" in rules or "vanishing-gradient" in rules
    assert found.verdict.startswith("Mend before the first step: ")


def test_a_batch_with_nan_is_found():
    inputs, labels = batch()
    inputs[0, 0] = torch.nan
    found = preflight(healthy(), (inputs, labels), F.cross_entropy)
    assert found.findings[0].rule == "nonfinite"


def test_nothing_is_left_behind():
    model = healthy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    preflight(model, batch(), F.cross_entropy, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_inputs_by_name_are_taken():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.norm = nn.Linear(3, 8), nn.Linear(3, 8), nn.BatchNorm1d(8)

        def forward(self, left, right):
            return self.first(left) + self.norm(self.second(right))

    x, _ = batch()
    found = preflight(Two(), ({"left": 300 * x[:, :3], "right": x[:, 3:]}, torch.zeros(64).long()), F.cross_entropy)
    sites = {finding.rule: [site.module for site in finding.sites] for finding in found}
    assert sites["unscaled-input"] == ["first"]
    assert sites["redundant-bias"] == ["second"]  # the flow was followed too


def test_what_is_not_a_batch_or_not_a_loss():
    with pytest.raises(InputError, match=r"expected a batch \(inputs, targets\)"):
        preflight(healthy(), (torch.zeros(2, 6),), F.cross_entropy)
    with pytest.raises(InputError, match="got a NoneType; type: batch=next"):
        preflight(healthy(), None, F.cross_entropy)
    with pytest.raises(InputError, match="pack what else it needs"):
        preflight(healthy(), batch(), lambda output, target, weights: output.mean())
    with pytest.raises(InputError, match="none that requires a gradient"):
        preflight(healthy().requires_grad_(False), batch(), F.cross_entropy)
    with pytest.raises(SurgeryError, match="holds none of its parameters"):
        preflight(healthy(), batch(), F.cross_entropy, torch.optim.SGD(healthy().parameters()))
    with pytest.raises(InputError, match="gives one number which the parameters move; got 64 numbers"):
        preflight(healthy(), batch(), lambda output, target: F.cross_entropy(output, target, reduction="none"))
