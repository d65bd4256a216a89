import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from holdfast.core.errors import InputError
from holdfast.norms import accumulate, make
from holdfast.norms.recurrent_batch_norm import RecurrentBatchNorm

LENGTHS = torch.tensor([5, 2, 4, 5, 3, 1])


def padded(features=3):
    """A ragged batch with NaN in its padding, and where it counts."""
    mask = torch.arange(int(LENGTHS.max())) < LENGTHS.unsqueeze(1)
    return (torch.randn(*mask.shape, features) * 2 + 5).masked_fill(~mask.unsqueeze(-1), torch.nan), mask


def formula(h, norm, mask=None):
    """Equation 3 of the paper at every step in float64, over the rows that count; and the statistics."""
    out, means, variances = torch.zeros_like(h, dtype=torch.float64), [], []
    for t in range(h.shape[1]):
        rows = torch.arange(len(h)) if mask is None else mask[:, t].nonzero().squeeze(1)
        values = h[rows, t].double()
        mean, biased = values.mean(0), values.var(0, correction=0)
        out[rows, t] = norm.weight.double() * (values - mean) / (biased + norm.eps).sqrt() + norm.bias.double()
        means.append(mean)
        variances.append(values.var(0, correction=1))
    return out, torch.stack(means), torch.stack(variances)


def shaken(**settings):
    norm = RecurrentBatchNorm(3, **{"max_steps": 5} | settings)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def stepwise(norm, h, mask=None):
    return torch.stack([norm(h[:, t], t, None if mask is None else mask[:, t]) for t in range(h.shape[1])], 1)


def test_each_step_by_its_own_statistics():
    norm, h = shaken(momentum=0.25), torch.randn(8, 5, 3) * 3 + torch.arange(5.0).view(1, 5, 1)
    expected, mean, variance = formula(h, norm)
    torch.testing.assert_close(norm(h).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_mean.double(), 0.25 * mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), 0.75 + 0.25 * variance, rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked.tolist() == [1] * 5
    level = (norm.running_var.double() + norm.eps).sqrt()
    expected = norm.weight.double() * (h.double() - norm.running_mean.double()) / level + norm.bias.double()
    torch.testing.assert_close(norm.eval()(h).double(), expected, rtol=1e-4, atol=1e-5)


def test_the_paper_starts_gamma_at_a_tenth():
    norm = RecurrentBatchNorm(3)
    assert norm.weight.tolist() == pytest.approx([0.1] * 3)
    assert norm(torch.randn(64, 3)).detach().std(0).tolist() == pytest.approx([0.1] * 3, rel=0.05)
    assert RecurrentBatchNorm(3, bias=False).bias is None
    assert list(RecurrentBatchNorm(3, affine=False).parameters()) == []


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("max_steps", [1, 3, 5, 9])
def test_a_sequence_is_its_steps_one_by_one(masked, max_steps):
    norm = shaken(max_steps=max_steps)
    other = copy.deepcopy(norm)
    h, mask = padded() if masked else (torch.randn(6, 5, 3), None)
    for training in (True, True, False):
        whole, steps = norm.train(training)(h, mask=mask), stepwise(other.train(training), h, mask)
        torch.testing.assert_close(whole, steps, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(dict(norm.state_dict()), dict(other.state_dict()))
    half = copy.deepcopy(other)
    parts = torch.cat([half(h[:, :2], 0, None if mask is None else mask[:, :2]), stepwise(half, h, mask)[:, 2:]], 1)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_later_steps_share_the_last_row():
    norm, h = RecurrentBatchNorm(2, max_steps=2, momentum=0.5), torch.randn(8, 4, 2)
    norm(h)
    means = h.mean(0)
    torch.testing.assert_close(norm.running_mean[0], 0.5 * means[0])
    torch.testing.assert_close(norm.running_mean[1], 0.125 * means[1] + 0.25 * means[2] + 0.5 * means[3])
    assert norm.num_batches_tracked.tolist() == [1, 3]
    norm.eval()
    assert torch.equal(norm(h[:, 0], 1), norm(h[:, 0], 50))


def test_steps_that_no_training_reached_share_the_last_that_one_did():
    norm = RecurrentBatchNorm(2, max_steps=10)
    norm(torch.randn(8, 3, 2) + 4)
    norm.eval()
    h = torch.randn(8, 2)
    assert torch.equal(norm(h, 2), norm(h, 7))
    assert not torch.equal(norm(h, 1), norm(h, 7))


def test_padding_is_left_out_and_comes_out_as_zero():
    norm = shaken(momentum=1.0)
    h, mask = padded()
    y = norm(h, mask=mask)
    expected, mean, variance = formula(h, norm, mask)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(y[~mask], torch.zeros(int((~mask).sum()), 3))
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-4, atol=1e-5)
    for training in (True, False):
        x = h.clone().requires_grad_()
        out = norm.train(training)(x, mask=mask)
        found = torch.autograd.grad(out.square().sum(), [x, norm.weight, norm.bias])
        assert all(bool(each.isfinite().all()) for each in found)
        assert torch.equal(found[0][~mask], torch.zeros(int((~mask).sum()), 3))
        assert torch.equal(out[~mask], torch.zeros_like(out[~mask]))
    torch.testing.assert_close(shaken()(h[:4].nan_to_num(), mask=torch.ones(4, 5, dtype=torch.bool)).shape, (4, 5, 3))


def test_a_full_mask_is_no_mask():
    norm, h = shaken(), torch.randn(6, 5, 3)
    other = copy.deepcopy(norm)
    torch.testing.assert_close(norm(h), other(h, mask=torch.ones(6, 5, dtype=torch.bool)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dict(norm.state_dict()), dict(other.state_dict()))


def test_a_step_with_one_row_takes_the_running_statistics_and_leaves_them():
    norm = shaken(max_steps=3)
    norm(torch.randn(16, 3, 3) * 2 + 3)
    before, h = copy.deepcopy(norm.state_dict()), torch.randn(4, 3, 3)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]], dtype=torch.bool)
    y = norm(h, mask=mask)
    assert norm.num_batches_tracked.tolist() == [2, 2, 1]
    assert torch.equal(norm.running_mean[2], before["running_mean"][2])
    torch.testing.assert_close(y[0, 2], norm.eval()(h[:, 2], 2)[0], rtol=1e-5, atol=1e-6)
    norm.train()
    assert torch.equal(norm(h[:, 0], 0, torch.zeros(4, dtype=torch.bool)), torch.zeros(4, 3))
    assert norm.num_batches_tracked.tolist() == [2, 2, 1]


class Cell(nn.Module):
    """The LSTM of the paper, equations 6 to 8."""

    def __init__(self, inputs, width, steps):
        super().__init__()
        self.by_x, self.by_h = nn.Linear(inputs, 4 * width, bias=False), nn.Linear(width, 4 * width)
        self.norm_x = RecurrentBatchNorm(4 * width, steps, bias=False)
        self.norm_h = RecurrentBatchNorm(4 * width, steps, bias=False)
        self.norm_c = RecurrentBatchNorm(width, steps)
        self.width = width

    def forward(self, x, mask=None):
        h = c = x.new_zeros(len(x), self.width)
        inputs = self.norm_x(self.by_x(x), mask=mask)
        for t in range(x.shape[1]):
            valid = None if mask is None else mask[:, t]
            recurrent = self.norm_h(F.linear(h, self.by_h.weight), t, valid)
            f, i, o, g = (recurrent + inputs[:, t] + self.by_h.bias).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            new = o.sigmoid() * self.norm_c(c, t, valid).tanh()
            h = new if valid is None else torch.where(valid.unsqueeze(1), new, h)  # a sequence that has ended rests
        return h


@pytest.mark.parametrize("ragged", [False, True])
def test_an_lstm_cell_learns_with_it(ragged):
    torch.manual_seed(0)
    model, head = Cell(1, 8, 4), nn.Linear(8, 1)
    adam = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=0.1)
    x = torch.randn(64, 6, 1)
    mask = torch.arange(6) < torch.randint(2, 7, (64, 1)) if ragged else None
    target = (x if mask is None else x * mask.unsqueeze(-1))[:, :2].sum(1)
    losses = []
    for _ in range(30):
        loss = (head(model(x, mask)) - target).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert model.norm_h.num_batches_tracked.tolist() == [30, 30, 30, 90]
    evaluated = (head(model.eval()(x, mask)) - target).square().mean().item()
    assert evaluated < 0.8 * losses[0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training, masked):
    norm = shaken(max_steps=2).double().train(training)
    h = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.bool) if masked else None
    norm.momentum = 0.0
    parameters = (norm.weight, norm.bias)
    assert torch.autograd.gradcheck(lambda h, *_: norm(h, mask=mask), (h, *parameters))
    assert torch.autograd.gradgradcheck(lambda h, *_: norm(h, mask=mask), (h, *parameters))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_halves_are_computed_in_float32(dtype, masked, training):
    norm = shaken().to(dtype)
    wide = copy.deepcopy(norm).float().train(training)
    assert norm.running_mean.dtype == RecurrentBatchNorm(3, dtype=dtype).running_var.dtype == torch.float32
    h, mask = padded()
    h, mask = (h, mask) if masked else (torch.randn(6, 5, 3), None)
    h = h.to(dtype)
    y = norm.train(training)(h, mask=mask)
    assert y.dtype == dtype
    torch.testing.assert_close(y, wide(h.float(), mask=mask).to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(norm.running_mean, wide.running_mean, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(0, 3), (0, 5, 3), (4, 0, 3)])
def test_an_empty_batch_leaves_everything_alone(shape):
    norm = shaken()
    before = copy.deepcopy(norm.state_dict())
    h = torch.empty(shape, requires_grad=True)
    y = norm(h, mask=torch.ones(shape[:-1], dtype=torch.bool))
    y.sum().backward()
    assert y.shape == shape
    assert torch.equal(norm.weight.grad, torch.zeros(3))
    assert torch.equal(norm.bias.grad, torch.zeros(3))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda norm: norm(torch.randn(4, 2)), r"3 features.*RecurrentBatchNorm\(2\)"),
        (lambda norm: norm(torch.randn(3)), "1D input"),
        (lambda norm: norm(torch.randn(2, 3, 4, 3)), "4D input"),
        (lambda norm: norm(torch.ones(4, 3, dtype=torch.long)), "a floating input"),
        (lambda norm: norm(torch.randn(4, 3), -1), "step=-1"),
        (lambda norm: norm(torch.randn(4, 3), 1.0), "step=1.0"),
        (lambda norm: norm(torch.randn(4, 3), True), "step=True"),
        (lambda norm: norm(torch.randn(4, 3), 0, torch.ones(4)), "a bool mask of shape"),
        (lambda norm: norm(torch.randn(4, 3), 0, torch.ones(3, dtype=torch.bool)), r"of shape \(4,\)"),
        (lambda norm: norm(torch.randn(4, 2, 3), 0, [True] * 4), "got list"),
        (lambda norm: norm(torch.randn(1, 3)), "more than 1 row"),
        (lambda norm: RecurrentBatchNorm(0), "1 feature"),
        (lambda norm: RecurrentBatchNorm(3, 0), "1 step"),
        (lambda norm: RecurrentBatchNorm(3, momentum=1.5), "momentum"),
        (lambda norm: RecurrentBatchNorm(3, eps=-1.0), "eps"),
        (lambda norm: make("recurrent-batch", 3, dims=2), "position"),
    ],
)
def test_bad_inputs(call, match):
    norm = shaken()
    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(InputError, match=match):
        call(norm)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_one_row_is_fine_in_evaluation():
    assert shaken().eval()(torch.randn(1, 3)).shape == (1, 3)


def test_without_running_statistics_evaluation_takes_the_batchs():
    norm, (h, mask) = shaken(track_running_stats=False), padded()
    assert list(norm.state_dict()) == ["weight", "bias"]
    for given, valid in ((h, mask), (torch.randn(6, 5, 3), None)):
        assert torch.equal(norm.train()(given, mask=valid), norm.eval()(given, mask=valid))
    assert torch.equal(norm(h[:, 0], 0, torch.arange(6) < 1)[0], norm.bias)  # one row is its own mean


def test_a_checkpoint_without_the_counters_loads_every_row_as_reached():
    norm, h = shaken(), torch.randn(6, 5, 3)
    norm(h)
    state = {name: each for name, each in norm.state_dict().items() if name != "num_batches_tracked"}
    fresh = shaken()
    fresh.load_state_dict(state, strict=True)
    assert torch.equal(fresh.eval()(h), norm.eval()(h))


def test_copies_and_checkpoints():
    norm, h = shaken(), torch.randn(6, 5, 3)
    norm(h)
    fresh = shaken()
    fresh.load_state_dict(norm.state_dict(), strict=True)
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), fresh):
        assert other.telemetry() == {}
        assert torch.equal(other.eval()(h), copy.deepcopy(norm).eval()(h))
    assert set(norm.state_dict()) == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("masked", [False, True])
def test_activation_checkpointing_moves_statistics_once(masked):
    norm = shaken(max_steps=3)
    plain = copy.deepcopy(norm)
    h, mask = padded() if masked else (torch.randn(6, 5, 3), None)
    h = h.nan_to_num()
    gradients = []
    for layer, call in ((norm, lambda h: checkpoint(norm, h, 0, mask, use_reentrant=False)), (plain, plain)):
        x = h.clone().requires_grad_()
        out = call(x) if layer is norm else layer(x, mask=mask)
        out.square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(dict(norm.state_dict()), dict(plain.state_dict()))


@pytest.mark.parametrize("momentum", [0.3, None])
def test_accumulated_micro_batches_are_one_batch(momentum):
    pooled, whole = (RecurrentBatchNorm(3, 5, momentum=momentum) for _ in range(2))
    sgd = torch.optim.SGD(pooled.parameters(), lr=0.0)
    with accumulate(pooled, sgd):
        for _ in range(2):
            h, mask = padded()
            for part, valid in ((h[:3], mask[:3]), (h[3:], mask[3:])):
                pooled(part, mask=valid).sum().backward()
            assert pooled.num_batches_tracked[0] == whole.num_batches_tracked[0]
            sgd.step()
            # A part's step with one row moves nothing, so the whole leaves it out as well.
            counts = torch.stack([mask[:3].sum(0), mask[3:].sum(0)])
            lone = (counts < 2).repeat_interleave(3, 0)
            whole(h, mask=mask & ~lone)
    torch.testing.assert_close(dict(pooled.state_dict()), dict(whole.state_dict()), rtol=1e-5, atol=1e-6)


def test_telemetry_is_one_value_a_step_and_feature():
    norm, (h, mask) = shaken(), padded()
    norm(h, mask=mask)
    _, mean, _ = formula(h, norm, mask)
    torch.testing.assert_close(norm.telemetry()["mean"].double(), mean, rtol=1e-5, atol=1e-6)
    norm(torch.randn(6, 5, 3))
    assert norm.telemetry()["variance"].numel() == 15


def test_the_specification_is_what_is_computed():
    norm, h = shaken().double(), torch.randn(6, 5, 3, dtype=torch.float64)
    assert norm.spec.formula == "y = γ_c · (x − μ_cs) / √(σ²_cs + ε) + β_c"
    expected = norm.spec.reference(h, dict(norm.named_parameters()), norm.eps)
    torch.testing.assert_close(norm(h), expected)
    assert make("recurrent-batch", 4, dims=1, max_steps=7).max_steps == 7


def test_reset_as_the_constructor_left_it():
    norm, fresh = shaken(), RecurrentBatchNorm(3, 5)
    norm(torch.randn(6, 5, 3))
    norm.reset_parameters()
    torch.testing.assert_close(dict(norm.state_dict()), dict(fresh.state_dict()), rtol=0, atol=0)


@pytest.mark.slow
def test_compiles_whole():
    # In a process of its own: the shape checks of the tests cannot be traced.
    script = """
import copy, torch
from holdfast.norms.recurrent_batch_norm import RecurrentBatchNorm
norm, h = RecurrentBatchNorm(4, 3), torch.randn(6, 5, 4)
mask = torch.arange(5) < torch.tensor([5, 4, 3, 2, 2, 5]).unsqueeze(1)
for given in (None, mask):
    for training in (True, False):
        eager = copy.deepcopy(norm.train(training))
        compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(h, mask=given), eager(h, mask=given))
        torch.testing.assert_close(dict(norm.state_dict()), dict(eager.state_dict()))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
