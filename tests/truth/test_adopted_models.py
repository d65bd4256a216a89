"""A trained ResNet-20's and a small GPT's weights in our layers: the same function in evaluation, both ways."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from holdfast import norms

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "norms.py"


@pytest.fixture(scope="module")
def models():
    spec = importlib.util.spec_from_file_location("benchmark_of_norms", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {
        "resnet": (module.resnet20, lambda: (torch.randn(32, 3, 16, 16), torch.randint(0, 10, (32,)))),
        "gpt": (module.gpt, lambda: (torch.randint(0, 65, (8, 32)), torch.randint(0, 65, (256,)))),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "gpt"])
@pytest.mark.parametrize("kernels", ["auto", "compiled"])
def test_checkpoints_of_trained_models_load_both_ways(models, monkeypatch, name, kernels):
    monkeypatch.setenv("HOLDFAST_KERNELS", kernels)
    build, batch = models[name]
    theirs = build()
    optimizer = torch.optim.AdamW(theirs.parameters(), 3e-3)
    for _ in range(30):
        inputs, targets = batch()
        optimizer.zero_grad()
        F.cross_entropy(theirs(inputs).flatten(0, -2), targets).backward()
        optimizer.step()
    ours, again = norms.adopt(build()), build()
    assert any(type(each).__module__.startswith("holdfast") for each in ours.modules())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    again.load_state_dict(ours.state_dict(), strict=True)
    x = batch()[0]
    with torch.no_grad():
        expected = theirs.eval()(x)
        for model in (ours, again):
            torch.testing.assert_close(model.eval()(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    # and they train alike: the gradient of a step in training
    losses = []
    for model in (theirs.train(), ours.train()):
        torch.manual_seed(0)
        inputs, targets = batch()
        model.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, -2), targets).backward()
        losses.append(torch.cat([each.grad.flatten() for each in model.parameters()]))
    assert float((losses[0] - losses[1]).norm() / losses[0].norm()) < 1e-4
