import copy

import pytest
import torch
from torch import nn

import holdfast.norms as norms
from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.norms import GhostBatchNorm
from holdfast.treatments.matching import OutputMoments
from holdfast.treatments.swap_norm import SwapNorm


class Residual(nn.Module):
    """Convolutions with normalisers in the forms that are hard: γ = 0 at a branch's end, negative γ, no affine."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16, eps=1e-3)
        self.plain = nn.BatchNorm2d(16, affine=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head((self.plain(x) + self.bn(self.conv(x))).mean((2, 3)))


def residual():
    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        model.bn.weight.normal_()
        model.bn.bias.normal_()
        model.bn.weight[3] = 0.0
        model.stem[1].weight[0] = -2.0
    model(torch.randn(8, 3, 8, 8))  # running statistics that are not 0 and 1
    return model


def perceptron(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 2))
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return model


def moments(model, batch, *paths):
    """Mean and SD of each channel of layers' outputs in train mode."""
    found = {}
    twin = copy.deepcopy(model).train()
    for path in paths:
        layer = twin.get_submodule(path)
        layer.register_forward_hook(lambda _, args, out, path=path: found.update({path: OutputMoments.of(out, 1)}))
    twin(batch)
    return [found[path] for path in paths]


def test_a_batch_norm_becomes_a_group_norm_with_its_own_parameters():
    model = residual()
    scale, shift = model.bn.weight, model.bn.bias
    values = scale.detach().clone(), shift.detach().clone()
    model.bn.weight.requires_grad_(False)
    model.bn.eval()
    seen = []
    model.bn.register_forward_hook(lambda *_: seen.append(1))
    receipt = SwapNorm().plan(model, None, [Site("bn", "output")]).apply()
    assert type(model.bn) is nn.GroupNorm
    assert (model.bn.num_groups, model.bn.eps, model.bn.training) == (1, 1e-3, False)
    assert model.bn.weight is scale
    assert model.bn.bias is shift
    assert not scale.requires_grad
    assert torch.equal(scale, values[0])
    assert torch.equal(shift, values[1])
    model(torch.randn(2, 3, 8, 8))
    assert seen == [1]
    assert receipt.removed == ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
    assert receipt.renamed == {}
    assert "state_dict key bn.running_mean → none" in receipt.changes
    assert type(model.stem[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("to", ["group", "layer", "instance"])
def test_moments_of_every_layer_are_kept_on_the_batch(to):
    model = residual()
    batch = torch.randn(8, 3, 8, 8) * 2 + 1
    before = moments(model, batch, "stem.1", "bn")
    receipt = SwapNorm(to, batch=batch).plan(model, None).apply()
    for was, now in zip(before, moments(model, batch, "stem.1", "bn"), strict=True):
        torch.testing.assert_close(now.mean, was.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(now.sd, was.sd, rtol=1e-4, atol=1e-5)
    assert model.bn.weight[3] == 0.0
    assert model.stem[1].weight[0] < 0.0
    assert "bn: γ, β → matched to the moments of before" in receipt.changes
    assert 0.0 < receipt.error_train < float("inf")
    assert receipt.error_eval > 0.0


def test_matching_comes_nearer_than_copying():
    batch = torch.randn(32, 3, 8, 8) * torch.logspace(-1, 1, 3).view(3, 1, 1)
    errors = []
    for given in (None, batch):
        model = residual()
        reference = copy.deepcopy(model).train()(batch)
        SwapNorm("group", batch=given).plan(model, None, [Site("stem.1", "output"), Site("bn", "output")]).apply()
        errors.append((model.train()(batch) - reference).square().mean().item())
    assert errors[1] < 0.5 * errors[0]


def test_what_comes_to_batch_norm_begins_with_the_statistics_of_the_batch():
    model = perceptron(nn.GroupNorm(2, 8))
    batch = torch.randn(64, 4) * 3 + 2
    inputs = model[0](batch).detach()
    (before,) = moments(model, batch, "1")
    receipt = SwapNorm("batch", batch=batch).plan(model, None).apply()
    assert type(model[1]) is nn.BatchNorm1d
    torch.testing.assert_close(model[1].running_mean, inputs.mean(0))
    torch.testing.assert_close(model[1].running_var, inputs.var(0))
    torch.testing.assert_close(moments(model, batch, "1")[0].sd, before.sd, rtol=1e-4, atol=1e-5)
    evaluated, trained = model.eval()(batch), model.train()(batch)
    torch.testing.assert_close(evaluated, trained, rtol=0.05, atol=0.05)
    assert receipt.error_eval == pytest.approx(receipt.error_train, rel=0.1)


def test_batch_and_ghost_keep_the_same_function_in_eval_mode():
    model = residual()
    batch = torch.randn(16, 3, 8, 8)
    mean = model.bn.running_mean
    receipt = SwapNorm("ghost", batch=batch, chunk_size=4).plan(model, None).apply()
    assert type(model.bn) is GhostBatchNorm
    assert model.bn.running_mean is mean
    assert receipt.error_eval < 1e-6 < receipt.error_train
    assert receipt.removed == ()
    back = SwapNorm("batch", batch=batch).plan(model, None).apply()
    assert type(model.bn) is norms.BatchNorm2d  # what was made of ours is ours
    assert back.error_eval < 1e-6


def test_ours_become_ours_by_lines_that_run():
    model = norms.adopt(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8)))
    x = torch.randn(4, 3, 5, 5)
    plan = SwapNorm("instance", batch=x).plan(model, None)
    twin = copy.deepcopy(model)
    exec(plan.source, {"model": twin, "nn": nn, "torch": torch, "batch": x})
    plan.apply()
    for each in (model, twin):
        assert type(each[1]) is type(each[3]) is norms.InstanceNorm2d
    torch.testing.assert_close(model(x), twin(x))


def test_halves_survive_the_way_to_ghost():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).bfloat16()
    batch = torch.randn(8, 3, 2, 2).bfloat16()
    SwapNorm("ghost", batch=batch).plan(model, None).apply()
    assert model(batch).dtype == torch.bfloat16
    assert model.eval()(batch).dtype == torch.bfloat16


def test_rms_norm_has_no_shift_and_the_optimiser_forgets_it():
    model = perceptron(nn.LayerNorm(8))
    optimizer = torch.optim.Adam(model.parameters())
    batch = torch.randn(32, 4)
    model(batch).square().sum().backward()
    optimizer.step()
    state = optimizer.state[model[1].weight]
    (before,) = moments(model, batch, "1")
    receipt = SwapNorm("rms", batch=batch).plan(model, optimizer).apply()
    assert type(model[1]) is nn.RMSNorm
    assert model[1].eps == 1e-5
    torch.testing.assert_close(moments(model, batch, "1")[0].sd, before.sd, rtol=1e-4, atol=1e-5)
    assert len(optimizer.param_groups[0]["params"]) == 5
    assert optimizer.state[model[1].weight] is state
    assert receipt.removed == ("1.bias",)
    receipt.undo()
    assert len(optimizer.param_groups[0]["params"]) == 6


def test_an_old_checkpoint_is_carried_over():
    model = residual()
    checkpoint = copy.deepcopy(model.state_dict())
    receipt = SwapNorm("group").plan(model, None).apply()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(checkpoint)
    model.load_state_dict(receipt.convert(checkpoint), strict=True)
    assert all(torch.equal(value, checkpoint[key]) for key, value in model.state_dict().items())


def test_shared_layers_stay_shared_and_keep_their_parameters():
    norm = nn.BatchNorm1d(4)
    tied = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm, nn.Linear(4, 4), tied, nn.BatchNorm1d(4))
    tied.weight = model[6].weight
    plan = SwapNorm("layer", batch=torch.randn(8, 4)).plan(model, None)
    assert "  1: γ and β stay as they are: it runs 2 times" in plan.diff
    assert "  5: γ and β stay as they are: another layer shares them" in plan.diff
    plan.apply()
    assert model[1] is model[3]
    assert model[5].weight is model[6].weight
    assert torch.equal(model[1].weight, torch.ones(4))


def test_parameters_in_several_groups_stay_in_them():
    model = residual()
    gains = [model.bn.weight, model.stem[1].weight]
    others = [each for each in model.parameters() if all(each is not gain for gain in gains)]
    optimizer = torch.optim.SGD([{"params": gains, "lr": 0.1}, {"params": others}], lr=0.01, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    batch = torch.randn(8, 3, 8, 8)
    model(batch).square().sum().backward()
    optimizer.step()
    momentum = {each: optimizer.state[each]["momentum_buffer"] for each in model.parameters()}
    SwapNorm("group", batch=batch).plan(model, optimizer).apply()
    assert [id(each) for each in optimizer.param_groups[0]["params"]] == [id(each) for each in gains]
    assert all(optimizer.state[each]["momentum_buffer"] is kept for each, kept in momentum.items())
    model(batch).square().sum().backward()
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_undo_after_further_training_keeps_what_was_learned():
    model = residual()
    batch = torch.randn(8, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    old, running = model.bn, model.bn.running_mean.clone()
    before = model.stem[1].weight.detach().clone(), model.bn.bias.detach().clone()
    receipt = SwapNorm("group", batch=batch).plan(model, optimizer).apply()
    written = model.stem[1].weight.detach().clone()
    with torch.no_grad():
        model.stem[1].weight[:8] *= 1.5  # trained on, all but those of the second half
    conv = model.conv.weight
    with torch.no_grad():
        conv += 1.0
    trained = conv.detach().clone()
    receipt.undo()
    assert model.bn is old
    assert torch.equal(model.bn.running_mean, running)
    assert torch.equal(model.bn.bias, before[1])
    assert torch.equal(model.stem[1].weight[8:], before[0][8:])
    torch.testing.assert_close(model.stem[1].weight[:8], before[0][:8] * 1.5, rtol=1e-5, atol=1e-6)
    assert not torch.equal(written, before[0])
    assert torch.equal(model.conv.weight, trained)
    with pytest.raises(SurgeryError, match="undone already"):
        receipt.undo()


class Backwards(nn.Module):
    """Layers that run in another order than that in which they were registered."""

    def __init__(self):
        super().__init__()
        self.head, self.last = nn.Linear(8, 2), nn.BatchNorm1d(8)
        self.middle, self.norm, self.first = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(4, 8)

    def forward(self, x):
        return self.head(self.last(self.middle(self.norm(self.first(x)).relu())))


def overwritten():
    """What each normaliser gives is overwritten by the layer behind it."""
    torch.manual_seed(0)
    blocks = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
    return nn.Sequential(*blocks, nn.ReLU(inplace=True))


@pytest.mark.parametrize(
    ("model", "to", "batch"),
    [
        (Backwards(), "layer", torch.randn(32, 4)),
        (overwritten(), "group", torch.randn(8, 3, 8, 8)),
        (residual(), "group", torch.randn(8, 3, 8, 8)),
        (residual(), "ghost", None),
        (perceptron(nn.LayerNorm(8)), "batch", torch.randn(32, 4)),
        (perceptron(nn.LayerNorm(8)), "rms", torch.randn(32, 4)),
        (perceptron(nn.RMSNorm(8)), "layer", torch.randn(32, 5, 4)),
    ],
)
def test_the_lines_to_paste_match_too(model, to, batch):
    pasted = copy.deepcopy(model)
    plan = SwapNorm(to, batch=batch).plan(model, None)
    exec(plan.source, {"model": pasted, "nn": nn, "torch": torch, "batch": batch})
    plan.apply()
    assert repr(pasted) == repr(model)
    for key, value in model.state_dict().items():
        if "num_batches" not in key:
            torch.testing.assert_close(pasted.state_dict()[key], value, rtol=1e-4, atol=1e-5)


def test_a_model_already_treated_says_that_nothing_is_left():
    model = residual()
    SwapNorm("group").plan(model, None).apply()
    with pytest.raises(SurgeryError, match=r"it is a GroupNorm already.*nothing is left to swap"):
        SwapNorm("group").plan(model, None)
    with pytest.raises(SurgeryError, match="a model without a normaliser"):
        SwapNorm().plan(nn.Linear(2, 2), None)


def test_other_refusals():
    model = residual()
    with pytest.raises(InputError, match="a kind of normaliser: batch, ghost"):
        SwapNorm("weight")
    with pytest.raises(InputError, match="chunks of 2 samples"):
        SwapNorm("ghost", chunk_size=1).plan(model, None)
    with pytest.raises(SurgeryError, match="Conv2d is not a normaliser"):
        SwapNorm().plan(model, None, [Site("conv", "input")])
    with pytest.raises(InputError, match="which it does not have"):
        SwapNorm().plan(model, None, [Site("bn9", "input")])
    with pytest.raises(SurgeryError, match=r"wrap it in nn\.Sequential"):
        SwapNorm().plan(nn.BatchNorm2d(4), None)
    with pytest.raises(SurgeryError, match="has no shape yet"):
        SwapNorm().plan(nn.Sequential(nn.Conv2d(1, 2, 1), nn.LazyBatchNorm2d()), None)
    with pytest.raises(SurgeryError, match="in its own way"):
        SwapNorm("rms").plan(nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8)), None)
    plan = SwapNorm().plan(model, None)
    with pytest.raises(SurgeryError, match="the plan was worked out for"):
        plan.apply(copy.deepcopy(model))
    with pytest.raises(SurgeryError, match="holds none of its parameters"):
        SwapNorm().plan(model, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))


def test_a_plan_for_a_model_that_changed_since_is_refused():
    model = residual()
    plan = SwapNorm().plan(model, None)
    model.bn = nn.BatchNorm2d(16)
    with pytest.raises(SurgeryError, match="plan again"):
        plan.apply()
    assert type(model.stem[1]) is nn.BatchNorm2d


def test_a_batch_that_fails_leaves_everything_bit_for_bit():
    model = residual()
    before = copy.deepcopy(model.state_dict())
    plan = SwapNorm("group", batch=torch.randn(4, 3, 8, 8)).plan(model, None)
    model.head.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt) if fails() else None)

    def fails():
        return type(model.bn) is nn.GroupNorm

    with pytest.raises(KeyboardInterrupt):
        plan.apply()
    assert type(model.bn) is nn.BatchNorm2d
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_new_running_statistics_are_the_batchs_also_without_gains():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.InstanceNorm2d(4))
    batch = torch.randn(8, 2, 5, 5) * 3
    receipt = SwapNorm("batch", batch=batch).plan(model, None).apply()
    given = model[0](batch)
    torch.testing.assert_close(model[1].running_mean, given.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, given.var((0, 2, 3)))
    assert model[1].momentum == 0.1
    assert receipt.error_eval == pytest.approx(receipt.error_train, rel=0.05)


@pytest.mark.parametrize("form", [lambda x: (x,), lambda x: {"input": x}])
def test_batches_of_several_arguments(form):
    model = perceptron(nn.LayerNorm(8))
    batch = form(torch.randn(16, 4))
    pasted = copy.deepcopy(model)
    plan = SwapNorm("batch", batch=batch).plan(model, None)
    exec(plan.source, {"model": pasted, "nn": nn, "torch": torch, "batch": batch})
    plan.apply()
    torch.testing.assert_close(pasted[1].weight, model[1].weight, rtol=1e-4, atol=1e-5)
