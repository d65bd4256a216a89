import copy
import pickle
import random
from functools import partial

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.norms.batch_norm import BatchNorm2d
from holdfast.norms.ghost_batch_norm import GhostBatchNorm
from holdfast.treatments.re_estimate import ReEstimate


def apply(model, sites=(), **options):
    return ReEstimate(**options).plan(model, None, sites).apply()


def uneven(channels=3, shape=(4, 4)):
    """Batches of several sizes whose means differ, as do real ones."""
    torch.manual_seed(0)
    return [torch.randn(n, channels, *shape) * (1 + n) + n for n in (7, 2, 12)]


def contents(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm, BatchNorm2d, partial(GhostBatchNorm, chunk_size=2)])
@pytest.mark.parametrize("training", [True, False])
def test_the_statistics_are_those_of_all_samples_together(kind, training):
    batches = uneven()
    model = nn.Sequential(kind(3)).train(training)
    apply(model, batches=batches)
    rows = torch.cat(batches).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[0].running_mean, rows.mean(1).float())
    torch.testing.assert_close(model[0].running_var, rows.var(1).float())
    assert model.training == model[0].training == training


def test_one_batch_gives_what_torch_gives_with_momentum_one():
    x = uneven()[0]
    model, other = nn.Sequential(nn.BatchNorm2d(3)), nn.BatchNorm2d(3, momentum=1.0)
    other(x)
    apply(model, batch=x)
    torch.testing.assert_close(model[0].running_mean, other.running_mean)
    torch.testing.assert_close(model[0].running_var, other.running_var)


def test_a_second_layer_is_measured_behind_the_first_on_batch_statistics():
    batches = uneven(shape=())
    torch.manual_seed(1)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    apply(model, batches=batches)
    with torch.no_grad():
        behind = [model[1](nn.functional.batch_norm(x, None, None, training=True)) for x in batches]
    rows = torch.cat(behind).double()
    torch.testing.assert_close(model[2].running_mean, rows.mean(0).float(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model[2].running_var, rows.var(0).float())


def test_far_from_zero_nothing_cancels():
    x = torch.randn(64, 1, dtype=torch.float64) + 1e6
    model = nn.Sequential(nn.BatchNorm1d(1).double())
    apply(model, batches=list(x.split(8)))
    torch.testing.assert_close(model[0].running_var, x.var(0), rtol=1e-9, atol=0)


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.norm, self.seen = nn.Dropout(0.5), nn.BatchNorm1d(4), []

    def forward(self, x):
        self.seen.append((self.drop.training, self.norm.training))
        return self.norm(self.drop(x))


SEEN = []


@pytest.mark.parametrize("training", [True, False])
def test_other_modules_keep_their_mode(training):
    SEEN.clear()
    model = Recorder().train(training)
    model.norm.eval()
    model.drop.register_forward_hook(lambda module, args, out: SEEN.append((module.training, model.norm.training)))
    receipt = apply(model, batches=[torch.ones(8, 4)] * 2, batch=torch.ones(8, 4))
    # two replays before and two after for the errors, two between to measure
    assert SEEN[2:4] == [(training, True)] * 2
    assert model.drop.training is training
    assert model.norm.training is False
    receipt.undo()


def test_dropout_at_work_draws_another_mask_for_each_batch():
    masks = []
    model = Recorder()
    model.drop.register_forward_hook(lambda module, args, out: masks.append(out.clone()))
    batch = torch.ones(64, 4)
    apply(model, batch=batch, batches=[batch] * 2)
    assert not torch.equal(masks[2], masks[3])


def test_nothing_else_changes_and_undo_is_bit_for_bit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
    x = torch.randn(8, 3)
    model(x).sum().backward()
    buffers = [id(each) for each in model.buffers()]
    gradients = [each.grad.clone() for each in model.parameters()]
    before, state = contents(model), torch.get_rng_state()
    receipt = apply(model, batches=[x, x + 1])
    after = contents(model)
    assert [key for key in before if not torch.equal(before[key], after[key])] == ["1.running_mean", "1.running_var"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert receipt.error_eval > 0
    assert receipt.error_train == 0
    receipt.undo()
    assert all(torch.equal(value, before[key]) for key, value in contents(model).items())
    assert [id(each) for each in model.buffers()] == buffers


def test_undo_after_training_puts_back_the_statistics_of_before():
    model = nn.Sequential(nn.BatchNorm1d(2))
    receipt = apply(model, batch=torch.randn(8, 2) + 5)
    model(torch.randn(8, 2))
    receipt.undo()
    assert torch.equal(model[0].running_mean, torch.zeros(2))
    assert model[0].num_batches_tracked == 0


@pytest.mark.parametrize("failing", ["shape", "nan", "interrupt"])
def test_a_batch_that_fails_leaves_everything_as_it_was(failing):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    good = torch.randn(8, 2)

    def interrupted():
        yield good
        raise KeyboardInterrupt

    bad = {"shape": [good, torch.randn(8, 3)], "nan": [good, good * float("nan")], "interrupt": interrupted}[failing]
    expected = {"shape": InputError, "nan": InputError, "interrupt": KeyboardInterrupt}[failing]
    before, state = contents(model), torch.get_rng_state()
    plan = ReEstimate(batches=bad).plan(model, None)
    with pytest.raises(expected):
        plan.apply()
    assert all(torch.equal(value, before[key]) for key, value in contents(model).items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())
    assert not model[0]._forward_pre_hooks
    with pytest.raises(expected):
        plan.apply()  # still not in force


def test_statistics_too_large_for_their_type_are_refused():
    model = nn.Sequential(nn.BatchNorm1d(1).half())
    with pytest.raises(InputError, match=r"float16.*input of 0"):
        apply(model, batch=torch.tensor([[-6e4], [6e4]]).half())
    assert model[0].running_var == 1


def test_momentum_none_goes_on_from_the_batches_pooled():
    batches = [torch.randn(8, 1) for _ in range(3)]
    model = nn.Sequential(nn.BatchNorm1d(1, momentum=None))
    for _ in range(20):
        model(torch.randn(8, 1))
    receipt = apply(model, batches=batches)
    assert model[0].num_batches_tracked == 3
    assert "0: num_batches_tracked 20 → 3" in receipt.changes
    pooled, x = model[0].running_mean.clone(), torch.randn(8, 1)
    model(x)
    torch.testing.assert_close(model[0].running_mean, (3 * pooled + x.mean(0)) / 4)


def test_a_shared_layer_pools_its_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x):
            return self.norm(x) + self.norm(3 * x + 1)

    x, model = torch.randn(8, 2), Twice()
    receipt = apply(model, batch=x)
    both = torch.cat([x, 3 * x + 1])
    torch.testing.assert_close(model.norm.running_mean, both.mean(0))
    torch.testing.assert_close(model.norm.running_var, both.var(0))
    assert "16 values a channel from 2 calls" in receipt.changes[0]


class Own(nn.BatchNorm1d):
    pass


def test_what_keeps_no_statistics_or_its_own_is_left_with_the_reason():
    model = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.BatchNorm1d(2), Own(2))
    diff = ReEstimate(batch=torch.randn(4, 2)).plan(model, None).diff
    assert "0: left as it is: it keeps no running statistics" in diff
    assert "2: left as it is: Own may use its statistics in its own way" in diff
    with pytest.raises(SurgeryError, match="keeps no running statistics"):
        apply(nn.Sequential(model[0]), batch=torch.randn(4, 2))
    with pytest.raises(SurgeryError, match="a BatchNorm with running statistics"):
        apply(nn.Sequential(nn.Linear(2, 2)), batch=torch.randn(4, 2))


def test_only_the_layers_named_are_measured():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    apply(model, [Site("1", "input")], batch=torch.randn(8, 2) + 3)
    assert torch.equal(model[0].running_mean, torch.zeros(2))
    assert model[0].num_batches_tracked == 0
    assert not torch.equal(model[1].running_mean, torch.zeros(2))


def test_a_layer_that_no_batch_reaches_is_refused():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.used(x)

    model = Unused()
    with pytest.raises(SurgeryError, match="two values a channel at unused"):
        apply(model, batch=torch.randn(8, 2))
    assert torch.equal(model.used.running_mean, torch.zeros(2))


def test_a_loader_of_pairs_a_function_and_a_generator():
    x = torch.randn(12, 2) * 3 + 1
    data = torch.utils.data.TensorDataset(x, torch.zeros(12))
    loader = torch.utils.data.DataLoader(data, batch_size=5, shuffle=True)
    model = nn.Sequential(nn.BatchNorm1d(2))
    state = torch.get_rng_state()
    plan = ReEstimate(batches=loader, inputs=lambda pair: pair[0]).plan(model, None)
    for _ in range(2):
        receipt = plan.apply()
        torch.testing.assert_close(model[0].running_var, x.var(0))
        assert receipt.error_eval > 0
        receipt.undo()
    assert torch.equal(torch.get_rng_state(), state)

    plan = ReEstimate(batches=lambda: iter(x.split(4))).plan(model, None)
    plan.apply().undo()
    plan.apply().undo()

    plan = ReEstimate(batches=iter(x.split(4))).plan(model, None)
    plan.apply()
    torch.testing.assert_close(model[0].running_mean, x.mean(0))


def test_a_generator_cannot_be_read_twice_and_the_error_says_how():
    model = nn.Sequential(nn.BatchNorm1d(2))
    plan = ReEstimate(batches=(torch.randn(4, 2) for _ in range(3))).plan(model, None)
    plan.apply().undo()
    with pytest.raises(InputError, match="batches=lambda: my_generator"):
        plan.apply()
    assert torch.equal(model[0].running_mean, torch.zeros(2))


@pytest.mark.parametrize("draw", [lambda: torch.randn(()).item(), random.random])
def test_batches_made_up_by_a_global_generator_differ(draw):
    made = []

    def batches():
        for _ in range(3):
            made.append(draw())
            yield torch.randn(4, 2) + made[-1]

    before = random.getstate()
    apply(nn.Sequential(nn.BatchNorm1d(2)), batches=batches)
    assert len(set(made)) == 3
    assert random.getstate() == before


@pytest.mark.parametrize(("options", "text"), [({}, "none"), ({"batches": 3}, "int"), ({"batches": []}, "none")])
def test_without_batches_it_says_what_to_type(options, text):
    with pytest.raises(InputError, match=f"got .*{text}"):
        apply(nn.Sequential(nn.BatchNorm1d(2)), **options)


def test_a_batch_may_be_a_tuple_or_a_dictionary():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, a, b):
            return self.norm(a + b)

    a, b = torch.randn(8, 2), torch.randn(8, 2)
    for batch in ((a, b), {"a": a, "b": b}):
        model, pasted = Two(), Two()
        plan = ReEstimate(batch=batch).plan(model, None)
        plan.apply()
        torch.testing.assert_close(model.norm.running_mean, (a + b).mean(0))
        exec(plan.source, {"model": pasted, "batch": batch, "torch": torch})
        torch.testing.assert_close(pasted.norm.running_var, model.norm.running_var)


def test_the_lines_to_paste_give_the_same_statistics():
    batches = uneven()
    torch.manual_seed(2)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, momentum=None)).eval()
    pasted = copy.deepcopy(model)
    plan = ReEstimate(batches=batches).plan(model, None)
    plan.apply()
    exec(plan.source, {"model": pasted, "batches": batches, "torch": torch})
    for key, value in pasted.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key])
    assert pasted[2].track_running_stats
    assert not pasted[2].training
    assert not pasted[0]._forward_pre_hooks
    pickle.dumps(model)


def test_an_optimiser_of_another_model_is_refused():
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(SurgeryError, match="holds none of its parameters"):
        ReEstimate(batch=torch.randn(4, 2)).plan(nn.Sequential(nn.BatchNorm1d(2)), other)


def test_under_autocast_the_step_goes_on():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    x = torch.randn(8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        apply(model, batches=[x, x])
        loss = model(x).sum()  # casts made without a graph must not be handed out here
    loss.backward()
    assert all(each.grad is not None for each in model.parameters())
