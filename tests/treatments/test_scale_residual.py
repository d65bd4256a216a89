import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.treatments.scale_residual import ScaleResidual

WIDTH = 16


class Block(nn.Module):
    """x + f(x), f of two layers, or what a test puts between and behind."""

    def __init__(self, behind=None, function=None):
        super().__init__()
        self.into, self.out = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.behind = behind if behind is not None else nn.Identity()
        self.function = function if function is not None else (lambda x: x)

    def forward(self, x):
        return x + self.function(self.behind(self.out(self.into(x).relu())))


def tower(count=3, **options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, WIDTH), *(Block(**options) for _ in range(count)), nn.Linear(WIDTH, 2))


class Basic(nn.Module):
    """A ResNet's block, with a projection where the width changes."""

    def __init__(self, into, out):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.down = (
            nn.Sequential() if into == out else nn.Sequential(nn.Conv2d(into, out, 1, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        y += self.down(x)
        return y.relu()


def resnet():
    torch.manual_seed(0)
    blocks = (Basic(4, 4), Basic(4, 8), Basic(8, 8))
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def values(model):
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


def changed(model, before):
    return {key for key, value in values(model).items() if value != before[key]}


X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_each_branch_adds_its_share():
    model, before = tower(4), values(tower(4))
    outputs = {}
    for index in range(1, 5):
        model[index].out.register_forward_hook(
            lambda m, args, out, index=index: outputs.setdefault(index, []).append(out)
        )
    model[1](torch.ones(3, WIDTH))
    receipt = ScaleResidual(batch=X).plan(model, None).apply()
    assert changed(model, before) == {f"{index}.out.{name}" for index in range(1, 5) for name in ("weight", "bias")}
    model[1](torch.ones(3, WIDTH))
    torch.testing.assert_close(outputs[1][-1], outputs[1][0] / 2)  # 1/√4
    assert receipt.error_eval > 0.01
    assert all("→" in line for line in receipt.changes)
    receipt.undo()
    assert values(model) == before


def test_the_stream_no_longer_grows_with_depth():
    """Independent branches of the stream's own variance: 2ⁿ without, (1 + 1/n)ⁿ < e with."""
    torch.manual_seed(0)
    count, width = 12, 256

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(width, width, bias=False)
            nn.init.normal_(self.fc.weight, 0.0, width**-0.5)

        def forward(self, x):
            return x + self.fc(x)

    model, x = nn.Sequential(*(Linear() for _ in range(count))), torch.randn(64, width)
    assert model(x).var().item() == pytest.approx(2**count, rel=0.3)
    ScaleResidual(batch=x).plan(model, None).apply()
    assert model(x).var().item() == pytest.approx((1 + 1 / count) ** count, rel=0.3)


def test_zero_makes_each_block_of_a_resnet_begin_as_its_shortcut():
    model, before = resnet(), values(resnet())
    plan = ScaleResidual("zero", batch=IMAGES).plan(model, None)
    plan.apply()
    # the projection's own normaliser stays
    assert changed(model, before) <= {f"{i}.bn2.{name}" for i in (1, 2, 3) for name in ("weight", "bias")}
    assert all((model[i].bn2.weight == 0).all() for i in (1, 2, 3))
    stream = model[0](IMAGES).relu()
    torch.testing.assert_close(model[1](stream), stream)
    loss = model(IMAGES).square().mean()
    loss.backward()
    assert all(model[i].bn2.weight.grad.abs().sum() > 0 for i in (1, 2, 3))


def test_behind_a_normaliser_its_gain_is_scaled_and_projections_count():
    model = resnet()
    ScaleResidual(batch=IMAGES).plan(model, None).apply()
    for index in (1, 2, 3):
        torch.testing.assert_close(model[index].bn2.weight, torch.full_like(model[index].bn2.weight, 3**-0.5))
        assert (model[index].bn1.weight == 1).all()


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_transformer_has_two_branches_a_block(norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    before, old = values(model), copy.deepcopy(model)
    ScaleResidual(batch=torch.randn(4, 5, 8)).plan(model, None).apply()
    ends = ("self_attn.out_proj.weight", "linear2.weight", "linear2.bias")  # torch begins out_proj.bias at zero
    assert changed(model, before) == {f"layers.{index}.{end}" for index in range(3) for end in ends}
    scaled, original = model.layers[1].self_attn.out_proj.weight, old.layers[1].self_attn.out_proj.weight
    torch.testing.assert_close(scaled, original / math.sqrt(6))


def test_a_layer_that_runs_in_every_branch_is_scaled_once():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.step = nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            x = self.stem(x)
            for _ in range(4):
                x = x + torch.tanh(self.step(x))
            return x

    torch.manual_seed(0)
    model = Recurrent()
    before = model.step.weight.detach().clone()
    plan = ScaleResidual(batch=X).plan(model, None)
    assert plan.diff.count("+ step") == 1
    plan.apply()
    assert torch.equal(model.step.weight, before * 0.5)


def test_sites_choose_branches_and_all_still_count():
    model, before = tower(4), values(tower(4))
    ScaleResidual(batch=X).plan(model, None, [Site("2.into", "input"), Site("4", "input")]).apply()
    assert changed(model, before) == {f"{i}.out.{name}" for i in (2, 4) for name in ("weight", "bias")}
    torch.testing.assert_close(model[2].out.weight, tower(4)[2].out.weight / 2)
    for on_the_stream in ("0", "5"):
        model = tower(4)
        ScaleResidual(batch=X).plan(model, None, [Site("2.into", "input"), Site(on_the_stream, "output")]).apply()
        assert changed(model, before) == {f"{i}.out.{name}" for i in (1, 2, 3, 4) for name in ("weight", "bias")}


def test_the_diff_tells_what_each_branch_brings():
    model = tower(2)
    stream = model[0](X)
    share = (model[1](stream) - stream).square().mean().sqrt() / stream.square().mean().sqrt()
    diff = ScaleResidual(batch=X).plan(model, None).diff.splitlines()
    assert diff[0] == (
        f"- 1.out: weight, bias: SD {model[1].out.weight.std(correction=0):.4g}; "
        f"the branch brings {share:.3g} of the stream's RMS"
    )
    assert diff[1] == "+ 1.out: weight, bias: × 0.7071"


def test_undo_after_training_puts_the_values_of_before_back_and_leaves_the_rest():
    model = tower()
    optimizer = torch.optim.Adam(model.parameters())
    before = values(model)
    receipt = ScaleResidual(batch=X).plan(model, optimizer).apply()
    model(X).square().mean().backward()
    optimizer.step()
    trained = values(model)
    receipt.undo()
    ends = {f"{i}.out.{name}" for i in (1, 2, 3) for name in ("weight", "bias")}
    assert values(model) == {**trained, **{key: before[key] for key in ends}}


def frozen(model):
    model[1].out.weight.requires_grad_(False)


def tied(model):
    model[1].out.weight = model[2].out.weight


def parametrised(model):
    weight_norm(model[1].out)


def silent(model):
    nn.init.zeros_(model[1].out.weight)
    nn.init.zeros_(model[1].out.bias)


def subclassed(model):
    model[1].out.__class__ = type("Own", (nn.Linear,), {})


def gated(model):
    model[1].function = lambda y: y * y.sigmoid()


def squashed(model):
    model[1].behind = nn.Sigmoid()


def unscaled(model):
    model[1].behind = nn.BatchNorm1d(WIDTH, affine=False)


def elsewhere(model):
    model[0] = nn.Sequential(nn.Linear(4, 2 * WIDTH), model[1].out)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (frozen, "1.out is frozen"),
        (tied, "the weight of 1.out is tied to another layer"),
        (parametrised, r"1.out \(ParametrizedLinear\) stands at its end"),
        (silent, "it adds nothing already"),
        (subclassed, r"1.out \(Own\) stands at its end"),
        (gated, "its output is a product of two"),
        (squashed, r"1.behind \(Sigmoid\) stands at its end"),
        (unscaled, r"1.behind \(BatchNorm1d\) fixes its scale"),
        (elsewhere, "also runs where it ends no branch that is scaled"),
    ],
)
def test_a_branch_that_cannot_be_scaled_is_left_and_told(spoil, reason):
    model = tower(3)
    spoil(model)
    before = values(model)
    plan = ScaleResidual(batch=X).plan(model, None)
    assert re.search(rf"^  the branch added in 1: left as it is: .*{reason}", plan.diff, re.MULTILINE), plan.diff
    plan.apply()
    assert not {key for key in changed(model, before) if key.startswith("1.")}
    with pytest.raises(SurgeryError, match=reason):
        ScaleResidual(batch=X).plan(model, None, [Site("1", "output")])


def test_zero_in_front_of_a_rectifier_is_refused_and_depth_is_not():
    model = tower(2, behind=nn.ReLU())
    with pytest.raises(SurgeryError, match="ReLU stands behind its last layer and would pass no gradient at zero"):
        ScaleResidual("zero", batch=X).plan(model, None)
    ScaleResidual(batch=X).plan(model, None).apply()


def test_networks_without_residual_branches_are_refused():
    with pytest.raises(SurgeryError, match=r"none on the batch \(0 additions of streams in all\)"):
        ScaleResidual(batch=X).plan(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), None)

    class Towers(nn.Module):
        """Two ways to one sum: neither is the other's shortcut."""

        def __init__(self, *ways):
            super().__init__()
            self.ways = nn.ModuleList(ways)

        def forward(self, x):
            return self.ways[0](x) + self.ways[1](x)

    deep = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    for model in (Towers(deep, copy.deepcopy(deep)), Towers(nn.Linear(4, 4), deep)):
        with pytest.raises(SurgeryError, match=r"none on the batch \(1 additions of streams in all\)"):
            ScaleResidual(batch=X).plan(model, None)


def test_one_branch_alone_keeps_its_scale_under_depth():
    with pytest.raises(SurgeryError, match="1/√1 changes nothing"):
        ScaleResidual(batch=X).plan(tower(1), None)
    ScaleResidual("zero", batch=X).plan(tower(1), None).apply()


def test_options_are_checked():
    with pytest.raises(SurgeryError, match="a batch, on which residual branches can be seen"):
        ScaleResidual().plan(tower(), None)
    treatment = ScaleResidual(batch=X)
    object.__setattr__(treatment, "how", "half")
    with pytest.raises(InputError, match="got 'half'"):
        treatment.plan(tower(), None)
    with pytest.raises(InputError, match="a batch that the model takes"):
        ScaleResidual(batch=torch.randn(3, 7)).plan(tower(), None)


def test_the_lines_to_paste_do_the_same():
    for how in ("depth", "zero"):
        model, pasted = resnet(), resnet()
        plan = ScaleResidual(how, batch=IMAGES).plan(model, None)
        exec(plan.source, {"torch": torch, "model": pasted})
        plan.apply()
        assert values(pasted) == values(model)
