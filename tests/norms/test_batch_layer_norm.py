import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.norms import BatchLayerNorm


def hats(x):
    wide = x.double()
    batch = (wide - wide.mean((0, 2), keepdim=True)) / (wide.var((0, 2), correction=0, keepdim=True) + 1e-5).sqrt()
    layer = (wide - wide.mean((1, 2), keepdim=True)) / (wide.var((1, 2), correction=0, keepdim=True) + 1e-5).sqrt()
    return batch, layer


@pytest.mark.parametrize("samples", [2, 5, 9])
@pytest.mark.parametrize("kernels", ["auto", "compiled"])
def test_the_share_follows_the_batch_size(monkeypatch, samples, kernels):
    monkeypatch.setenv("HOLDFAST_KERNELS", kernels)
    norm = BatchLayerNorm(3, kappa=4.0)
    x = torch.randn(samples, 3, 5) * 2 + 1
    batch, layer = hats(x)
    share = (samples - 1) / (samples - 1 + 4)
    assert norm.share(samples) == share
    torch.testing.assert_close(norm(x).double(), share * batch + (1 - share) * layer, rtol=1e-5, atol=1e-5)


def test_evaluation_takes_the_running_share():
    norm = BatchLayerNorm(3, momentum=0.5, kappa=4.0)
    for samples in (5, 13):  # shares 1/2 and 3/4
        norm(torch.randn(samples, 3, 4))
    assert norm.eval().share(1) == pytest.approx(0.625)
    x = torch.randn(2, 3, 4)
    rate = (norm.running_var + 1e-5).rsqrt().view(1, 3, 1)
    batch = (x - norm.running_mean.view(1, 3, 1)) * rate
    expected = 0.625 * batch + 0.375 * hats(x)[1].float()
    torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-5)


def test_a_learnt_share_has_a_gradient():
    norm = BatchLayerNorm(3, gate="learned", affine=False).double()
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    assert norm.share(4) == 0.5
    y = norm(x)
    batch, layer = hats(x)
    torch.testing.assert_close(y, 0.5 * (batch + layer))
    y.square().sum().backward()
    # dy/dω = w (1 − w) (x̂_batch − x̂_layer)
    torch.testing.assert_close(norm.gate_logit.grad, (2 * y.detach() * 0.25 * (batch - layer)).sum())
    assert "running_share" not in norm.state_dict()


@pytest.mark.parametrize(
    ("settings", "text"), [({"kappa": 0.0}, "kappa above 0"), ({"track_running_stats": False}, "running")]
)
def test_settings_that_are_none_are_refused(settings, text):
    with pytest.raises(InputError, match=text):
        BatchLayerNorm(2, **settings)


def test_samples_of_one_value_are_refused():
    with pytest.raises(InputError, match="samples of 2 values or more"):
        BatchLayerNorm(1)(torch.randn(4, 1))
