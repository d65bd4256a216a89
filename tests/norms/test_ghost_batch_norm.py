import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from holdfast.core.errors import InputError
from holdfast.core.protocols import Telemetry
from holdfast.norms.ghost_batch_norm import GhostBatchNorm

NORMAL = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
TORCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def reference(norm, x):
    """The formulas in float64: output, and the running statistics after the batch."""
    wide = x.double()
    sizes = even(len(x), max(1, len(x) // norm.chunk_size))
    axes = [0, *range(2, x.ndim)]
    shape = (1, -1) + (1,) * (x.ndim - 2)
    out, means, variances, counts = [], [], [], []
    for chunk in wide.split(sizes):
        mean, biased = chunk.mean(axes), chunk.var(axes, correction=0)
        out.append((chunk - mean.view(shape)) / (biased.view(shape) + norm.eps).sqrt())
        counts.append(chunk[:, 0].numel())
        means.append(mean)
        variances.append(chunk.var(axes, correction=1))
    n = torch.tensor(counts).double().unsqueeze(1)
    mean = (torch.stack(means) * n).sum(0) / n.sum()
    variance = (torch.stack(variances) * (n - 1)).sum(0) / (n - 1).sum()
    return torch.cat(out), mean, variance


def even(n, parts):
    return [n // parts + (1 if part < n % parts else 0) for part in range(parts)]


@pytest.mark.parametrize("shape", [(12, 3), (12, 3, 5), (12, 3, 4, 2), (12, 3, 2, 2, 2)])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
def test_one_chunk_is_torchs_batch_norm(shape, options):
    torch.manual_seed(0)
    ours, theirs = GhostBatchNorm(3, chunk_size=32, **options), TORCH[len(shape)](3, **options)
    if ours.affine:
        nn.init.normal_(ours.weight)
        nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(shape) * 3 + 1
    for _ in range(3):
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("samples", [4, 7, 8, 11, 33])
@pytest.mark.parametrize("positions", [(), (5,), (3, 2)])
def test_chunks_against_the_formula(samples, positions):
    torch.manual_seed(samples)
    norm = GhostBatchNorm(3, chunk_size=4, momentum=0.25, affine=False)
    x = torch.randn(samples, 3, *positions) * 2 + 5
    expected, mean, variance = reference(norm, x)
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_mean.double(), 0.25 * mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), 0.75 + 0.25 * variance, rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked == 1


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(2, 300))
def test_no_chunk_is_below_the_size_nor_twice_it(chunk_size, samples):
    norm = GhostBatchNorm(1, chunk_size=chunk_size)
    norm(torch.randn(samples, 1))
    chunks = len(norm.telemetry()["mean"])
    sizes = even(samples, chunks)
    assert min(sizes) >= min(chunk_size, samples)
    assert max(sizes) < 2 * chunk_size


def test_the_running_mean_is_batch_norms_whatever_the_chunks():
    x = torch.randn(64, 3) * 2 + 1
    ghost, plain = GhostBatchNorm(3, chunk_size=8), nn.BatchNorm1d(3)
    ghost(x)
    plain(x)
    torch.testing.assert_close(ghost.running_mean, plain.running_mean, rtol=1e-5, atol=1e-6)
    assert not torch.equal(ghost.running_var, plain.running_var)


def test_the_average_over_all_batches():
    norm = GhostBatchNorm(2, chunk_size=2, momentum=None)
    batches = [torch.randn(6, 2) + shift for shift in (0, 5, 10)]
    for batch in batches:
        norm(batch)
    torch.testing.assert_close(norm.running_mean, torch.cat(batches).mean(0))


def test_evaluation_and_frozen_statistics_leave_the_buffers():
    norm = GhostBatchNorm(2, chunk_size=2)
    norm(torch.randn(6, 2))
    before = copy.deepcopy(norm.state_dict())
    norm.eval()(torch.randn(6, 2))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    with torch.no_grad():
        norm.train()(torch.randn(6, 2))
    assert norm.num_batches_tracked == 2


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training):
    norm = GhostBatchNorm(2, chunk_size=3).double().train(training)
    nn.init.normal_(norm.weight)
    x = torch.randn(7, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
    assert torch.autograd.gradgradcheck(norm, (x,))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1)])
def test_one_value_per_channel_raises_as_torchs(shape):
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        GhostBatchNorm(3)(torch.randn(shape))
    assert GhostBatchNorm(3).eval()(torch.randn(shape)).shape == shape


def test_one_axis_and_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="at least 2D"):
        GhostBatchNorm(3)(torch.randn(3))
    for size in (1, 0, 2.0, True):
        with pytest.raises(InputError, match="chunks of 2 samples or more"):
            GhostBatchNorm(3, chunk_size=size)


def test_empty_batch():
    norm = GhostBatchNorm(3)
    before = copy.deepcopy(norm.state_dict())
    out = norm(torch.empty(0, 3, 4, requires_grad=True))
    out.sum().backward()
    assert out.shape == (0, 3, 4)
    assert torch.equal(norm.weight.grad, torch.zeros(3))
    assert torch.equal(norm.bias.grad, torch.zeros(3))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["half", "float"])
@pytest.mark.parametrize("training", [True, False])
def test_halves_are_computed_in_float32(dtype, weights, training):
    norm = GhostBatchNorm(3, chunk_size=4)
    norm.running_mean += 0.1234567
    norm = norm.to(dtype) if weights == "half" else norm
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
    assert norm.running_mean[0].item() == pytest.approx(0.1234567, rel=1e-7)
    wide = copy.deepcopy(norm).float().train(training)
    x = (torch.randn(9, 3, 2) * 3).to(dtype)
    out = norm.train(training)(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out, wide(x.float()).to(dtype), rtol=0, atol=0)
    assert GhostBatchNorm(3, dtype=dtype).running_var.dtype == torch.float32


def test_under_autocast_the_type_stays():
    norm = GhostBatchNorm(3, chunk_size=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.randn(4, 3)).dtype == torch.float32
        assert norm(torch.randn(4, 3).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "data",
    [NORMAL * 0.01 + 100, NORMAL + 2000, torch.full((16, 3), 7.0), torch.zeros(16, 3)],
    ids=["offset", "far", "constant", "zero"],
)
def test_hard_inputs_against_float64(data):
    norm = GhostBatchNorm(data.shape[1], chunk_size=8, affine=False)
    expected, _, _ = reference(norm, data)
    # A float32 tells values of 100 apart by 8e-6, of 2000 by 1e-4: a chunk's mean cannot be known better than that.
    resolution = torch.finfo(torch.float32).eps * data.abs().max()
    spread = min(float(chunk.double().std(0).min()) for chunk in data.split(8))
    atol = 2 * float(resolution) / max(spread, 1e-3)
    torch.testing.assert_close(norm(data).double(), expected, rtol=1e-4, atol=max(atol, 1e-5))


def test_layout_and_identical_runs():
    x = torch.randn(9, 4, 5, 5)
    last = x.to(memory_format=torch.channels_last)
    norm = GhostBatchNorm(4, chunk_size=2)
    assert norm(last).stride() == last.stride()
    assert torch.equal(norm(last), norm(last))
    out, threads = norm(x), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(norm(x), out)
    finally:
        torch.set_num_threads(threads)


def test_checkpoints_load_both_ways_and_old_ones_too():
    ours, theirs = GhostBatchNorm(3, chunk_size=2), nn.BatchNorm1d(3)
    ours(torch.randn(8, 3))
    buffer = io.BytesIO()
    torch.save(ours.state_dict(), buffer)
    buffer.seek(0)
    theirs.load_state_dict(torch.load(buffer), strict=True)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    old = {key: value for key, value in theirs.state_dict().items() if key != "num_batches_tracked"}
    GhostBatchNorm(3).load_state_dict(old, strict=True)


def test_telemetry_is_of_the_last_training_pass_and_does_not_travel():
    norm = GhostBatchNorm(3, chunk_size=4)
    assert isinstance(norm, Telemetry)
    assert norm.telemetry() == {}
    x = torch.randn(8, 3)
    norm(x)
    kept = norm.telemetry()
    wide = x.double()
    torch.testing.assert_close(kept["mean"], torch.stack([wide[:4].mean(0), wide[4:].mean(0)]))
    expected = torch.stack([wide[:4].var(0, correction=0), wide[4:].var(0, correction=0)])
    torch.testing.assert_close(kept["variance"], expected)
    for copied in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert copied.telemetry() == {}
        assert copied.chunk_size == 4
    assert GhostBatchNorm(3, track_running_stats=False)(x) is not None


def test_meta_and_vmap():
    assert GhostBatchNorm(4, device="meta")(torch.empty(64, 4, device="meta")).shape == (64, 4)
    norm = GhostBatchNorm(4, chunk_size=2, track_running_stats=False)
    x = torch.randn(3, 6, 4)
    torch.testing.assert_close(torch.vmap(norm)(x), torch.stack([norm(each) for each in x]))


@pytest.mark.slow
def test_compiles_whole():
    # In a process of its own: the shape checks of the tests cannot be traced.
    script = """
import copy, torch
from holdfast.norms.ghost_batch_norm import GhostBatchNorm
norm, x = GhostBatchNorm(8, chunk_size=4), torch.randn(12, 8)
eager = copy.deepcopy(norm)
torch.testing.assert_close(torch.compile(norm, fullgraph=True, backend="aot_eager")(x), eager(x))
torch.testing.assert_close(norm.running_var, eager.running_var)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
