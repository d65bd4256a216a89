import random
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from holdfast.live.random_state import RandomState, generator_restorer, preserved_random_state


def draw():
    return torch.rand(3).tolist(), random.random(), np.random.random(), torch.randn(1).item(), np.random.normal()


def test_restoring_repeats_all_three_generators_as_often_as_asked():
    state = RandomState.capture()
    first = draw()
    assert draw() != first
    state.restore()
    assert draw() == first
    state.restore()
    assert draw() == first


def test_what_was_not_kept_goes_on():
    state = RandomState.capture(python=False, numpy=False)
    first = draw()
    state.restore()
    second = draw()
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert first[2] != second[2]


def test_the_block_leaves_no_trace_even_when_it_raises():
    state = RandomState.capture()
    expected = draw()
    state.restore()

    def fail():
        draw()
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"), preserved_random_state():
        fail()
    assert draw() == expected


def test_numpy_is_left_alone_where_it_was_not_imported():
    code = (
        "import sys, torch\nfrom holdfast.live.random_state import RandomState\n"
        "sys.modules.pop('numpy.random', None)\n"
        "state = RandomState.capture(); state.restore()\n"
        "assert state.numpy is None and 'numpy.random' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_numpy_in_the_midst_of_its_import_is_left_alone(monkeypatch):
    """Another thread may be importing it: Numba does, in the thread that compiles our kernel."""
    monkeypatch.setitem(sys.modules, "numpy.random", types.ModuleType("numpy.random"))
    state = RandomState.capture()
    assert state.numpy is None
    state.restore()
    assert generator_restorer(object()) is None
