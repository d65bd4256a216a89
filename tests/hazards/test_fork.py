"""What a forked worker inherits from a watched process: no OpenMP and no threading layer of Numba's that we started."""

import sys
from pathlib import Path

import torch
from torch import nn


def test_our_kernels_start_no_threading_layer_that_a_fork_would_break(record):
    """A parallel Numba kernel in the parent makes the same in any forked worker end the worker, or hang."""
    model = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    recording = record(model, optimizer, mode="exact", probe=torch.ones(8, 1))
    for samples in (64, 40_000, 40_000):  # the last two are more than a million values a layer
        optimizer.zero_grad()
        model(torch.ones(samples, 1)).square().mean().backward()
        optimizer.step()
    recording.close()
    parallel = sys.modules.get("numba.np.ufunc.parallel")
    assert parallel is None or not parallel._is_initialized
    libraries = Path("/proc/self/maps").read_text()
    assert "omppool" not in libraries, "Numba's layer over OpenMP"
    assert "workqueue" not in libraries
