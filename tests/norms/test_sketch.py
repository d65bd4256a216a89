from __future__ import annotations

import pytest

import holdfast.norms as norms
from holdfast.norms.sketch import SIZE, sketch, text_sketch
from holdfast.norms.spec import NormSpec


@pytest.mark.parametrize(
    ("layer", "reached"),
    [
        (norms.BatchNorm2d(64), (4, 1, 6)),
        (norms.GhostBatchNorm(64, chunk_size=32), (2, 1, 6)),
        (norms.GroupNorm(32, 64), (1, 3, 6)),
        (norms.GroupNorm(1, 64), (1, 6, 6)),
        (norms.LayerNorm(64), (1, 6, 1)),
        (norms.RMSNorm(64), (1, 6, 1)),
        (norms.InstanceNorm2d(64), (1, 1, 6)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_cells_are_a_block_of_the_shared_axes(layer, reached):
    cells = sketch(layer.spec)
    assert cells.shape == SIZE
    samples, channels, positions = reached
    assert cells[:samples, :channels, :positions].all()
    assert int(cells.sum()) == samples * channels * positions
    lines = text_sketch(layer.spec).splitlines()
    assert [line.count("■") for line in lines] == list(reached)
    assert [line.count("■") + line.count("□") for line in lines] == list(SIZE)


def test_as_many_groups_as_channels_are_drawn_as_two():
    assert int(sketch(NormSpec("group", ("channels", "positions"), groups=64)).sum()) == 18


def test_a_mix_is_the_union_and_is_told_part_by_part():
    spec = norms.SwitchableNorm(8).spec
    assert int(sketch(spec).sum()) == 4 * 6 + 6 * 6 - 6
    text = text_sketch(spec)
    assert [line for line in text.splitlines() if not line.startswith(" ")] == ["instance", "layer", "batch"]
    assert text.count("■") == (1 + 1 + 6) + (1 + 6 + 6) + (4 + 1 + 6)


def test_without_a_statistic_it_is_said():
    assert text_sketch(NormSpec("tanh", (), scale="none", then="tanh")) == "no statistic: each value by itself"
