import itertools
import math

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("limit", [None, 300, 40])
def test_a_lens_sees_what_the_block_of_the_same_phase_holds(kernel, case, dtype, limit):
    shape, layout = CASES[case]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    x.view(-1)[::7] = 0.0
    sampling = Sampling.of(x, layout, limit)
    window = window_of(x, layout, sampling)
    lens = Lens(KINDS[dtype], window, -2, 1.5)
    sizes = set()
    for phase in (0.0, 0.31, 0.5, 0.77, 0.999):
        part = block(x, layout, sampling, phase)
        wanted = observe(part, exponent=-2, threshold=1.5)
        looked = lens.look(x.data_ptr(), phase, features=True)
        seen = Observation.of(looked)
        assert seen.summary.counts == wanted.summary.counts
        assert seen.summary.sketch == wanted.summary.sketch
        assert seen.summary.counts.total == part.numel()
        np.testing.assert_allclose(looked.vector, wanted.packed_summary.vector, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(looked.channels.ravel(), wanted.packed_channels.vector, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(seen.features.values, part.float().mean(2), rtol=1e-5, atol=1e-6)
        assert looked.positions == part.shape[2]
        sizes.add(part.shape)
        without = lens.look(x.data_ptr(), phase, features=False)
        assert without.features is None
        np.testing.assert_array_equal(without.vector, looked.vector)
    if limit is not None:
        assert all(math.prod(size) <= limit or size[0] == size[2] == 1 for size in sizes)


def test_over_all_phases_every_position_is_first_equally_often():
    x = torch.zeros(8, 16, 100)
    window = window_of(x, Layout(0, 1), Sampling(1280, 1))
    starts = [window.start(phase)[1] for phase in (np.arange(1100) + 0.5) / 1100]
    assert [len(list(group)) for _, group in itertools.groupby(starts)] == [100] * window.position_step
