import copy
import io
import pickle

import pytest
import torch
from torch import nn

import holdfast.norms as norms
from holdfast.core.errors import SurgeryError
from holdfast.core.site import Site
from holdfast.norms.ghost_batch_norm import GhostBatchNorm
from holdfast.treatments.freeze_batchnorm import FreezeBatchNorm
from holdfast.treatments.frozen import FROZEN, freeze

KINDS = {
    nn.BatchNorm1d: (8, 3),
    nn.BatchNorm2d: (8, 3, 2, 2),
    nn.BatchNorm3d: (8, 3, 2, 2, 2),
    nn.SyncBatchNorm: (8, 3, 2),
    GhostBatchNorm: (8, 3),
    norms.BatchNorm1d: (8, 3),
    norms.BatchNorm2d: (8, 3, 2, 2),
    norms.BatchNorm3d: (8, 3, 2, 2, 2),
    norms.SyncBatchNorm: (8, 3, 2),
}


def trained(kind=nn.BatchNorm1d, **options):
    torch.manual_seed(0)
    model = nn.Sequential(kind(3, **options), nn.Flatten(), nn.LazyLinear(2))
    for _ in range(3):
        model(torch.randn(KINDS[kind]) * 2 + 1).sum().backward()
    return model


def apply(model, sites=(), optimizer=None, **options):
    return FreezeBatchNorm(**options).plan(model, optimizer, sites).apply()


def contents(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_every_kind_is_covered():
    assert set(KINDS) == set(FROZEN)


@pytest.mark.parametrize("kind", KINDS)
def test_train_mode_computes_what_eval_mode_did_bit_for_bit(kind):
    model = trained(kind)
    x = torch.randn(KINDS[kind])
    expected = model.eval()(x)
    model.train()
    assert not torch.equal(copy.deepcopy(model)(x), expected)
    keys = list(model.state_dict())
    receipt = apply(model, batch=x)
    before = contents(model)
    for mode in (True, False, True):
        assert torch.equal(model.train(mode)(x), expected)
    assert all(torch.equal(value, before[key]) for key, value in contents(model).items())
    assert list(before) == keys
    assert receipt.error_eval == 0
    assert receipt.error_train > 0
    assert isinstance(model[0], kind)


def test_it_survives_copies_pickles_and_the_file_of_a_model():
    model, x = trained(), torch.randn(8, 3)
    apply(model)
    expected = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(twin.train()(x), expected)
    plain = trained()
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(plain.eval()(x), expected)


def test_it_survives_assignment_of_the_flag_and_compilation():
    model, x = trained(), torch.randn(8, 3)
    apply(model)
    model[0].training = True
    assert model[0].training is False
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), model(x))
    assert model[0].num_batches_tracked == 3


def test_undo_restores_class_mode_statistics_and_identity():
    model = trained()
    identity = [id(each) for each in (*model.modules(), *model.parameters(), *model.buffers())]
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    before, text = contents(model), repr(model)
    receipt = apply(model)
    model(torch.randn(8, 3))
    receipt.undo()
    assert seen
    assert repr(model) == text
    assert all(module.training for module in model.modules())
    assert [id(each) for each in (*model.modules(), *model.parameters(), *model.buffers())] == identity
    assert all(torch.equal(value, before[key]) for key, value in contents(model).items())
    model(torch.randn(8, 3))
    assert model[0].num_batches_tracked == 4


def test_a_mode_asked_for_while_frozen_holds_after_undo():
    model = trained()
    receipt = apply(model)
    model.eval()
    receipt.undo()
    assert not model[0].training


def test_gain_and_shift_learn_on_unless_fixed():
    for affine in (False, True):
        model = trained()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
        optimizer.step()  # so that momenta exist
        gradient = model[0].weight.grad
        receipt = apply(model, optimizer=optimizer, affine=affine)
        before = contents(model)
        for _ in range(2):
            optimizer.zero_grad(set_to_none=False)  # zeros would let momenta and decay go on
            model(torch.randn(8, 3)).square().sum().backward()
            optimizer.step()
        after = contents(model)
        assert torch.equal(after["0.weight"], before["0.weight"]) is affine
        assert torch.equal(after["0.bias"], before["0.bias"]) is affine
        assert not torch.equal(after["2.weight"], before["2.weight"])
        assert ("0.weight: trained → fixed" in receipt.changes) is affine
        receipt.undo()
        assert model[0].weight.requires_grad
        assert model[0].weight.grad is gradient


def test_only_the_layers_named_are_frozen():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model(torch.randn(8, 2) + 1)
    apply(model, [Site("1", "input")])
    assert [type(each).__name__ for each in model] == ["BatchNorm1d", "FrozenBatchNorm1d"]


class Own(nn.BatchNorm1d):
    pass


@pytest.mark.parametrize(
    ("norm", "text"),
    [
        (nn.BatchNorm1d(3), "re-estimate first"),
        (nn.BatchNorm1d(3, track_running_stats=False), "keeps no running statistics"),
        (Own(3), "Own may use"),
        (nn.Linear(3, 3), "got none"),
    ],
)
def test_what_does_not_qualify_is_refused_with_the_reason(norm, text):
    with pytest.raises(SurgeryError, match=text):
        FreezeBatchNorm().plan(nn.Sequential(norm), None)


def test_a_frozen_layer_is_refused_and_later_changes_are_undone_first():
    model = trained()
    receipt = apply(model)
    with pytest.raises(SurgeryError, match="frozen already"):
        apply(model)
    model[0].__class__ = nn.BatchNorm1d
    with pytest.raises(SurgeryError, match="undo the later change first"):
        receipt.undo()


def test_a_layer_changed_between_plan_and_apply_is_refused_and_none_is_frozen():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model(torch.randn(8, 2) + 1)
    plan = FreezeBatchNorm().plan(model, None)
    freeze(model[1])
    with pytest.raises(SurgeryError, match="plan again"):
        plan.apply()
    assert type(model[0]) is nn.BatchNorm1d


def test_an_optimiser_of_another_model_is_refused():
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(SurgeryError, match="holds none of its parameters"):
        FreezeBatchNorm().plan(trained(), other)


def test_the_lines_to_paste_do_the_same():
    model = trained()
    pasted, x = copy.deepcopy(model), torch.randn(8, 3)
    plan = FreezeBatchNorm(affine=True).plan(model, None)
    plan.apply()
    exec(plan.source, {"model": pasted})
    assert torch.equal(pasted(x), model(x))
    assert not pasted[0].weight.requires_grad
    with pytest.raises(SurgeryError, match="a Linear"):
        freeze(nn.Linear(1, 1))
