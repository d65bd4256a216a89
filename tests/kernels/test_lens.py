import itertools
import math

import numpy as np
import pytest
import torch

from holdfast.kernels import block_cpu, lens
from holdfast.kernels.lens import KINDS, Lens
from holdfast.live.layout import Layout, Sampling, block, window_of
from holdfast.stats.observation import Observation, observe

CASES = {
    "rows": ((37, 70), Layout(0, 1)),
    "planes": ((9, 6, 11, 13), Layout(0, 1)),
    "one channel": ((9, 1, 50), Layout(0, 1)),
    "last": ((6, 17, 23), Layout(0, 2)),
    "time first": ((17, 6, 23), Layout(1, 2)),
    "single numbers": ((101,), Layout(0, None)),
}


@pytest.fixture
def threads_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("limit", [None, 300, 40])
def test_a_lens_sees_what_the_block_of_the_same_phase_holds(kernel, case, dtype, limit):
    shape, layout = CASES[case]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    x.view(-1)[::7] = 0.0
    sampling = Sampling.of(x, layout, limit)
    window = window_of(x, layout, sampling)
    reads = Lens(KINDS[dtype], window, -2, 1.5)
    sizes = set()
    for phase in (0.0, 0.31, 0.5, 0.77, 0.999):
        part = block(x, layout, sampling, phase)
        wanted = observe(part, exponent=-2, threshold=1.5)
        looked = reads.look(x.data_ptr(), phase, features=True)
        seen = Observation(looked)
        assert seen.summary.counts == wanted.summary.counts
        assert seen.summary.sketch == wanted.summary.sketch
        assert seen.summary.counts.total == part.numel()
        np.testing.assert_allclose(looked.vector, wanted.packed_summary.vector, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(looked.channels.ravel(), wanted.packed_channels.vector, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(seen.features.values, part.float().mean(2), rtol=1e-5, atol=1e-6)
        assert looked.positions == part.shape[2]
        sizes.add(part.shape)
        without = reads.look(x.data_ptr(), phase, features=False)
        assert without.features is None
        np.testing.assert_array_equal(without.vector, looked.vector)
    if limit is not None:
        assert all(math.prod(size) <= limit or size[0] == size[2] == 1 for size in sizes)


def test_over_all_phases_every_position_is_first_equally_often():
    x = torch.zeros(8, 16, 100)
    window = window_of(x, Layout(0, 1), Sampling(1280, 1))
    starts = [window.start(phase)[1] for phase in (np.arange(1100) + 0.5) / 1100]
    assert [len(list(group)) for _, group in itertools.groupby(starts)] == [100] * window.position_step


@pytest.mark.parametrize("case", ["rows", "planes", "last", "one channel"])
@pytest.mark.parametrize("holes", [False, True])
def test_a_sketch_of_some_rows_is_all_of_them_over_all_turns(kernel, case, holes):
    shape, layout = CASES[case]
    x = torch.randn((64, *shape[1:]), generator=torch.Generator().manual_seed(3))
    if holes:
        x.view(-1)[::11] = math.nan
    window = window_of(x, layout, Sampling.of(x, layout, None))
    whole = Lens(0, window, -2, math.inf).look(x.data_ptr(), 0.0, features=False)
    part = Lens(0, window, -2, math.inf, sketched=x.numel() // 5)
    turns = {}
    for phase in np.linspace(0, 1, 60, endpoint=False):
        seen = part.look(x.data_ptr(), phase, features=False).vector
        np.testing.assert_array_equal(seen[:14], whole.vector[:14])  # all but the sketch is of every element
        turns[seen[14:].tobytes()] = seen[14:]
    assert 2 < len(turns) <= 5
    np.testing.assert_array_equal(sum(turns.values()), whole.vector[14:])
    counts = [bins.sum() for bins in turns.values()]
    assert max(counts) < 1.3 * min(counts)


def test_a_sketch_of_some_rows_shows_every_channel(kernel):
    x = torch.logspace(0, 7, 8, 2).view(1, 8, 1).expand(64, 8, 16).contiguous()  # a channel is a number, and a bin
    window = window_of(x, Layout(0, 1), Sampling.of(x, Layout(0, 1), None))
    bins = Lens(0, window, 0, math.inf, sketched=x.numel() // 4).look(x.data_ptr(), 0.3, features=False).vector[14:]
    assert np.count_nonzero(bins) == 8
    assert bins[bins > 0].max() < 1.3 * bins[bins > 0].min()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("holes", [None, math.nan, math.inf])
def test_several_threads_see_what_one_sees_and_each_number_of_threads_the_same_bits(
    kernel, dtype, holes, monkeypatch, threads_back
):
    x = (100 + torch.randn(33, 16, 32, 32, generator=torch.Generator().manual_seed(4))).to(dtype)
    if holes is not None:
        x[:2] = holes  # a part of which nothing is finite in some samples
        x[20, 3, 1, 1] = holes
    window = window_of(x, Layout(0, 1), Sampling.of(x, Layout(0, 1), None))
    monkeypatch.setattr(lens, "WORTH_SHARING", math.inf)
    one = Lens(KINDS[dtype], window, 4, 101.0).look(x.data_ptr(), 0.0, features=True)
    monkeypatch.setattr(lens, "WORTH_SHARING", 1)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(Lens(KINDS[dtype], window, 4, 101.0).look(x.data_ptr(), 0.0, features=True))
    for several in found:
        np.testing.assert_allclose(several.vector, one.vector, rtol=1e-9)
        np.testing.assert_allclose(several.channels, one.channels, rtol=1e-9)
        np.testing.assert_array_equal(several.features, one.features)
        assert several.positions == one.positions
        np.testing.assert_array_equal(several.vector, found[0].vector)
        np.testing.assert_array_equal(several.channels, found[0].channels)


def test_several_threads_find_nothing_where_nothing_is_finite(kernel, monkeypatch):
    monkeypatch.setattr(lens, "WORTH_SHARING", 1)
    x = torch.full((16, 3, 5), math.nan)
    window = window_of(x, Layout(0, 1), Sampling.of(x, Layout(0, 1), None))
    seen = Observation(Lens(0, window, 0, math.inf).look(x.data_ptr(), 0.0, features=False))
    wanted = observe(x, exponent=0)
    assert seen.summary.counts == wanted.summary.counts
    np.testing.assert_array_equal(seen.packed_summary.vector, wanted.packed_summary.vector)
    np.testing.assert_array_equal(seen.packed_channels.vector, wanted.packed_channels.vector)


def test_a_lens_writes_its_job_as_the_kernel_reads_it():
    assert (lens._JOB, lens.WIDTH) == (block_cpu.JOB, block_cpu.WIDTH)
    assert (block_cpu.TENSOR, block_cpu.SEEN_SAMPLES) == (lens._JOB - 7, lens._JOB - 2)
