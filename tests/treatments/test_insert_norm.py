import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.treatments.insert_norm import InsertNorm


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 2))


def norms(model):
    return {
        path: repr(module.norm).split("(")[0]
        for path, module in model.named_modules()
        if isinstance(module, nn.Sequential) and "norm" in module._modules
    }


def test_without_sites_every_layer_but_the_first():
    model = perceptron()
    InsertNorm().plan(model, None).apply()
    assert norms(model) == {"2": "BatchNorm1d", "4": "BatchNorm1d"}


def test_in_front_of_named_activations():
    model = perceptron()
    plan = InsertNorm().plan(model, None, [Site("1", "input"), Site("3", "input")])
    plan.apply()
    assert norms(model) == {"1": "BatchNorm1d", "3": "BatchNorm1d"}
    assert model[1].norm.num_features == 6
    assert "- 1: Sigmoid()" in plan.diff


def test_the_normalised_input_has_mean_zero_and_variance_one_in_training():
    model = perceptron()
    InsertNorm().plan(model, None, [Site("3", "input")]).apply()
    seen = []
    model[3].layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(torch.randn(256, 4) * 30)
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].var(0, correction=0), torch.ones(6), atol=0.01, rtol=0)


def test_the_receipt_tells_eval_from_train():
    model = perceptron()
    batch = torch.randn(64, 4)
    receipt = InsertNorm(batch=batch).plan(model, None, [Site("2", "input")]).apply()
    assert receipt.error_eval < 1e-4 < 0.01 < receipt.error_train
    assert "state_dict key 2.weight → 2.layer.weight" in receipt.changes
    assert "state_dict key none → 2.norm.running_mean" in receipt.changes


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("auto", "BatchNorm2d"), ("batch", "BatchNorm2d"), ("layer", "GroupNorm")],
)
def test_convolutions(kind, expected):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 5, 3))
    InsertNorm(kind).plan(model, None).apply()
    assert norms(model) == {"2": expected}
    model(torch.randn(4, 1, 9, 9))


@pytest.mark.parametrize(("conv", "expected"), [(nn.Conv1d, "BatchNorm1d"), (nn.Conv3d, "BatchNorm3d")])
def test_other_dimensions_and_activations_behind_convolutions(conv, expected):
    model = nn.Sequential(conv(1, 3, 3), nn.ReLU(), conv(3, 5, 3))
    plan = InsertNorm().plan(model, None, [Site("2", "input"), Site("1", "input")])
    assert "  2: left as it is: a normaliser in front of 1 serves it" in plan.diff
    plan.apply()
    assert norms(model) == {"1": expected}


def test_sequences_take_layer_norm():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    batch = torch.randn(16, 9, 4)
    InsertNorm(batch=batch).plan(model, None).apply()
    assert norms(model) == {"2": "LayerNorm"}
    with pytest.raises(SurgeryError, match="BatchNorm1d would take the sequence for the features"):
        InsertNorm("batch", batch=batch).plan(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), None)


def test_few_samples_and_repeated_layers_take_layer_norm():
    model = perceptron()
    InsertNorm(batch=torch.randn(4, 4)).plan(model, None).apply()
    assert norms(model) == {"2": "LayerNorm", "4": "LayerNorm"}

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.step = nn.Linear(4, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.step(self.step(self.into(x)))

    model = Recurrent()
    InsertNorm(batch=torch.randn(64, 4)).plan(model, None).apply()
    assert norms(model) == {"step": "LayerNorm"}


def test_models_that_normalise_each_sample_go_on_so():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    InsertNorm().plan(model, None).apply()
    assert norms(model) == {"3": "LayerNorm"}


def test_a_layer_that_has_a_norm_in_front_is_left():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    plan = InsertNorm().plan(model, None)
    assert "  3: left as it is: a normaliser at 1 serves it" in plan.diff
    plan.apply()
    assert norms(model) == {"5": "BatchNorm1d"}
    with pytest.raises(SurgeryError, match=r"3: left as it is: a normaliser at 1 serves it; 5.layer: left as it is"):
        InsertNorm().plan(model, None)


@pytest.mark.parametrize(
    ("model", "site", "reason"),
    [
        (perceptron(), "", "not a layer that this treatment knows"),
        (nn.Linear(2, 2), "", "wrap it in nn.Sequential"),
        (nn.Sequential(nn.Flatten(), nn.Linear(2, 2)), "0", "Flatten is not a layer"),
        (nn.Sequential(nn.Sigmoid(), nn.Linear(2, 2)), "0", "not known without a batch"),
        (nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2)), "1", "one input feature only"),
        (nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)), "0.linear1", "in its own way"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), "0.out_proj", "NonDynamicallyQuantizableLinear"),
    ],
)
def test_what_cannot_take_a_norm_is_told_with_the_reason(model, site, reason):
    with pytest.raises(SurgeryError, match=reason):
        InsertNorm().plan(model, None, [Site(site, "input")])


def test_an_unknown_site_is_refused():
    with pytest.raises(InputError, match="which it does not have"):
        InsertNorm().plan(perceptron(), None, [Site("fc9", "input")])


def test_shared_layers_are_wrapped_once():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), shared, nn.ReLU(), shared)
    plan = InsertNorm().plan(model, None)
    assert "model[1] = model[3] = nn.Sequential(" in plan.source
    plan.apply()
    assert model[1] is model[3]
    assert model[1].layer is shared


def test_a_plan_for_a_model_that_changed_since_is_refused():
    model = perceptron()
    plan = InsertNorm().plan(model, None)
    model[2] = nn.Linear(6, 6)
    with pytest.raises(SurgeryError, match="plan again"):
        plan.apply()
    assert norms(model) == {}


def test_training_with_the_norm_saturates_less():
    """The case that the treatment is for: deep sigmoids with large weights."""
    torch.manual_seed(0)
    model = nn.Sequential(*(each for _ in range(4) for each in (nn.Linear(16, 16), nn.Sigmoid())))
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 4.0)
    x = torch.randn(128, 16)
    inputs = []
    model[7].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    model(x)
    InsertNorm().plan(model, None, [Site(str(i), "input") for i in (1, 3, 5, 7)]).apply()
    model(x)
    saturated = [(each.abs() > 4.357).double().mean().item() for each in inputs]
    assert saturated[1] < 0.05 < 0.4 < saturated[0]


def test_the_lines_to_paste_do_the_same_and_say_when():
    model, pasted = perceptron(), perceptron()
    plan = InsertNorm().plan(model, None)
    exec(plan.source, {"model": pasted, "nn": nn})
    plan.apply()
    assert repr(pasted) == repr(model)
    assert "# before the optimiser is made" in plan.source


def test_a_kind_or_a_start_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"expected kind= one of 'auto', 'batch', 'layer'; got 'foo'"):
        InsertNorm(kind="foo")
    with pytest.raises(InputError, match=r"expected start=.*; got 'warm'"):
        InsertNorm(start="warm")


@pytest.mark.parametrize("computed", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_layer_whose_weight_is_computed_is_left_alone_with_the_reason(computed):
    why = "left as it is: its weight is computed from others"
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), computed(nn.Linear(6, 6)))
    with pytest.raises(SurgeryError, match=f"got 2: {why}"):
        InsertNorm().plan(model, None)
    model.extend([nn.Sigmoid(), nn.Linear(6, 2)])
    plan = InsertNorm().plan(model, None)
    assert f"  2: {why}" in plan.diff
    plan.apply()
    assert norms(model) == {"4": "BatchNorm1d"}
    begins = nn.Sequential(computed(nn.Linear(4, 6)), nn.Sigmoid(), nn.Linear(6, 2))
    InsertNorm().plan(begins, None).apply()
    assert norms(begins) == {"2": "BatchNorm1d"}
