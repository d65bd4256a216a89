import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import holdfast.norms as norms
from holdfast.core.errors import InputError
from holdfast.norms.adopt import OURS, adopt
from holdfast.treatments.normalisers import KINDS, KNOWN, counterpart, group_count, is_kind
from holdfast.treatments.places import Leaf


@given(st.integers(1, 4096), st.integers(1, 10_000))
def test_groups_divide_and_never_hold_one_value(channels, positions):
    groups = group_count(channels, positions)
    assert channels % groups == 0
    assert 1 <= groups <= 32
    values = channels // groups * positions
    assert values >= 2 or channels * positions == 1
    if groups > 1:
        assert channels // groups >= 2
        assert values >= 16


@given(st.integers(1, 4096))
def test_groups_are_as_many_as_the_rule_allows(channels):
    allowed = [g for g in range(1, 33) if channels % g == 0 and channels // g >= 16]
    assert group_count(channels) == max(allowed, default=1)


@pytest.mark.parametrize(
    ("channels", "positions", "groups"),
    [(64, 1, 4), (512, 1, 32), (96, 1, 6), (17, 1, 1), (64, 49, 32), (16, 64, 8), (2, 100, 1), (1, 9, 1), (3, 4, 1)],
)
def test_groups_of_known_sizes(channels, positions, groups):
    assert group_count(channels, positions) == groups


def test_no_channels_are_refused():
    with pytest.raises(InputError, match="at least one channel"):
        group_count(0)


def torchs():
    return [
        nn.BatchNorm1d(6),
        nn.BatchNorm2d(6),
        nn.BatchNorm3d(6),
        nn.InstanceNorm1d(6, affine=True),
        nn.InstanceNorm2d(6),
        nn.InstanceNorm3d(6),
        nn.GroupNorm(2, 6),
        nn.LayerNorm(6),
        nn.RMSNorm(6),
        nn.SyncBatchNorm(6),
    ]


def known():
    return [*torchs(), *map(adopt, torchs()), norms.GhostBatchNorm(6)]


def test_every_known_type_is_here():
    assert {type(each) for each in known()} == set(KNOWN)
    assert all(sum(is_kind(each, kind) for kind in KINDS) == 1 for each in known())


SHAPES = [(4, 6), (4, 6, 5), (4, 6, 5, 3), (4, 6, 2, 3, 2), (4, 5, 6)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("module", known(), ids=lambda each: type(each).__module__[:5] + type(each).__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_made_runs_where_the_old_one_ran(kind, module, shape):
    """Every pair, on every shape that the old one takes: a reason, or a layer that keeps shape and settings."""
    x = torch.randn(shape)
    try:
        module.eval()(x)
    except (RuntimeError, ValueError, UserWarning):
        return  # the old one does not take this shape
    spec = counterpart(module, kind, Leaf("0", module, shape))
    if isinstance(spec, str):
        assert len(spec) > 10
        return
    new = spec.make().train()
    assert is_kind(new, kind)
    assert new(x).shape == shape
    assert new(x).std() > 0.5
    assert getattr(module, "weight", None) is None or new.weight.shape == module.weight.shape
    assert module.eps == new.eps or module.eps is None
    assert repr(eval(str(spec), {"nn": nn} | vars(norms))) == repr(spec.make())
    assert type(new) in (
        (*OURS, norms.GhostBatchNorm) if type(module) in OURS else (*OURS.values(), norms.GhostBatchNorm)
    )


@pytest.mark.parametrize(
    ("module", "kind", "shape", "expected"),
    [
        (nn.BatchNorm2d(64, eps=0.01), "group", None, "nn.GroupNorm(4, 64, eps=0.01)"),
        (nn.BatchNorm2d(64), "group", (2, 64, 7, 7), "nn.GroupNorm(32, 64)"),
        (nn.BatchNorm2d(64, affine=False), "group", None, "nn.GroupNorm(4, 64, affine=False)"),
        (nn.BatchNorm2d(8), "layer", None, "nn.GroupNorm(1, 8)"),
        (nn.BatchNorm1d(8), "layer", None, "nn.GroupNorm(1, 8)"),
        (nn.BatchNorm1d(8), "layer", (4, 8), "nn.LayerNorm(8)"),
        (nn.BatchNorm1d(8), "rms", (4, 8), "nn.RMSNorm(8, eps=1e-05)"),
        (nn.BatchNorm2d(8, momentum=None), "ghost", None, "GhostBatchNorm(8, momentum=None, chunk_size=16)"),
        (nn.BatchNorm2d(8), "instance", None, "nn.InstanceNorm2d(8, affine=True)"),
        (nn.InstanceNorm3d(8), "batch", None, "nn.BatchNorm3d(8, affine=False)"),
        (nn.GroupNorm(2, 8), "batch", (4, 8, 5), "nn.BatchNorm1d(8)"),
        (nn.LayerNorm(8), "batch", (4, 8), "nn.BatchNorm1d(8)"),
        (nn.LayerNorm((3, 8)), "rms", None, "nn.RMSNorm((3, 8), eps=1e-05)"),
        (nn.RMSNorm(8, elementwise_affine=False), "layer", None, "elementwise_affine=False"),
        (nn.SyncBatchNorm(8), "group", None, "nn.GroupNorm(1, 8)"),
    ],
)
def test_settings(module, kind, shape, expected):
    spec = str(counterpart(module, kind, Leaf("0", module, shape), 16))
    assert expected in spec


class Own(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize(
    ("module", "kind", "shape", "reason"),
    [
        (Own(8), "group", None, "Own is not a normaliser that this treatment knows"),
        (nn.ReLU(), "group", None, "ReLU is not a normaliser"),
        (nn.LazyBatchNorm2d(affine=False), "group", None, "LazyBatchNorm2d is not"),
        (nn.SyncBatchNorm(8), "batch", None, "it is a SyncBatchNorm already"),
        (nn.SyncBatchNorm(8), "ghost", None, "those of all processes"),
        (nn.GroupNorm(2, 8), "batch", None, "number of axes is not known without a batch"),
        (nn.GroupNorm(1, 8), "layer", None, "it is a GroupNorm already"),
        (nn.BatchNorm1d(8), "instance", None, "has positions is not known without a batch"),
        (nn.BatchNorm1d(8), "instance", (4, 8), "one value a sample"),
        (nn.BatchNorm2d(8), "instance", (4, 8, 1, 1), "one value a sample"),
        (nn.BatchNorm2d(8), "rms", None, "RMSNorm reads the features from the last axis"),
        (nn.BatchNorm1d(8), "rms", None, "not known without a batch"),
        (nn.InstanceNorm2d(8), "group", (8, 5, 5), "does not hold samples on axis 0"),
        (nn.InstanceNorm2d(8), "group", (4, 6, 5, 5), "8 channels on axis 1"),
        (nn.BatchNorm1d(1), "group", (4, 1), "of which there is no variance"),
        (nn.BatchNorm2d(1), "layer", None, "as far as known"),
        (nn.LayerNorm(8), "batch", None, "on axis 1 is not known without a batch"),
        (nn.LayerNorm(8), "group", (4, 5, 8), "on the last axis of 3"),
        (nn.LayerNorm((5, 8)), "group", (4, 5, 8), "several axes"),
    ],
)
def test_reasons(module, kind, shape, reason):
    found = counterpart(module, kind, Leaf("0", module, shape))
    assert isinstance(found, str)
    assert reason in found
