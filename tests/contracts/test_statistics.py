"""What every statistic promises, for every class that `holdfast.stats` offers."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

import holdfast.stats
from holdfast.core.statistic import Statistic
from holdfast.stats import Covariance, Features, PairedDifference, Summary, observe

STATISTICS = [
    member for member in vars(holdfast.stats).values() if isinstance(member, type) and hasattr(member, "COLUMNS")
]


def _observation(seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(12, 3, 4, generator=generator) + shift
    block[0, 0, 0], block[1, 1, 1], block[2, 2, 2] = 0.0, float("nan"), float("inf")
    return observe(block, exponent=-2, threshold=1.0)


def _sample(kind, seed):
    """A statistic of some data, of any of the classes."""
    seen = _observation(seed)
    if kind is PairedDifference:
        still = Features(torch.zeros(12, 3), seen.features.sd, seen.features.mean, seen.features.rms)
        return PairedDifference.of(still, Features(torch.randn(12, 3), still.sd, still.mean, still.rms))
    candidates = [
        seen.summary,
        seen.channels,
        Covariance.of(torch.randn(12, 3, generator=torch.Generator().manual_seed(seed))),
    ]
    candidates += [getattr(seen.summary, field.name) for field in dataclasses.fields(Summary)]
    return next(each for each in candidates if isinstance(each, kind))


@pytest.fixture(params=STATISTICS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def test_the_family_is_found():
    names = {kind.__name__ for kind in STATISTICS}
    assert names >= {"Moments", "Extremes", "Counts", "Sketch", "Summary", "ChannelMoments", "PairedDifference"}


def test_it_is_a_statistic(kind):
    assert isinstance(_sample(kind, 1), Statistic)


def test_pack_and_unpack(kind):
    sample = _sample(kind, 1)
    vector = sample.pack()
    assert vector.dtype == np.float64
    assert vector.ndim == 1
    assert len(vector) % len(kind.COLUMNS) == 0
    assert len(set(kind.COLUMNS)) == len(kind.COLUMNS)
    assert kind.unpack(vector) == sample
    # A store hands over views of a file's bytes, which may be read-only.
    vector.flags.writeable = False
    again = kind.unpack(vector)
    assert again.pack().tobytes() == sample.pack().tobytes()
    assert hash(again) == hash(sample)


def test_types_survive_packing(kind):
    sample = _sample(kind, 1)
    for field in dataclasses.fields(kind):
        before, after = getattr(sample, field.name), getattr(kind.unpack(sample.pack()), field.name)
        assert type(after) is type(before), field.name


def test_no_data_changes_nothing(kind):
    sample, nothing = _sample(kind, 1), kind.empty()
    assert sample + nothing == sample
    assert nothing + sample == sample
    assert nothing + nothing == nothing
    assert kind.unpack(nothing.pack()) == nothing


def test_merging_commutes_and_changes_no_operand(kind):
    a, b = _sample(kind, 1), _sample(kind, 2)
    packed = a.pack(), b.pack()
    np.testing.assert_allclose((a + b).pack(), (b + a).pack(), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(a.pack(), packed[0])
    np.testing.assert_array_equal(b.pack(), packed[1])
    assert a != b


def test_it_is_frozen(kind):
    sample = _sample(kind, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(sample, dataclasses.fields(kind)[0].name, 0)


def test_it_is_picklable(kind):
    sample = _sample(kind, 1)
    assert pickle.loads(pickle.dumps(sample)) == sample


def test_other_things_are_not_equal_to_it(kind):
    assert _sample(kind, 1) != "a statistic"
