import functools
import operator

import numpy as np
import pytest

from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.stats.channels import ChannelMoments
from holdfast.stats.sketch import Sketch
from holdfast.stats.summary import Summary
from holdfast.store.rollup import bucket_end, merge
from holdfast.store.rows import ROLLED, channels, reading_rows, readings, statistic_row, summaries

STEPS = np.array([1, 2, 4, 9, 10, 11, 25, 30])
BUCKETS = [slice(0, 5), slice(5, 6), slice(6, 8)]  # steps 1–10, 11–20, 21–30


def test_bucket_end():
    assert [bucket_end(step, 100) for step in (1, 100, 101)] == [100, 100, 200]


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_summaries_merge_as_plus_does(record_of, offset):
    found = [next(iter(record_of(2 * step).summaries.values())) for step in range(1, len(STEPS) + 1)]
    found = [Summary.unpack(each.pack() + offset * (np.arange(78) == 1)) for each in found]  # shift the means
    found[2] = Summary.empty()
    found[2] = Summary(found[2].moments, found[2].extremes, found[2].counts, Sketch.empty(-2))
    stack = np.array([[statistic_row(each) for each in found]] * 2)
    steps, merged = merge("summary", 10, STEPS, stack)
    assert steps.tolist() == [10, 11, 30]
    for rows in merged:
        for row, bucket in zip(rows, BUCKETS, strict=True):
            expected = functools.reduce(operator.add, found[bucket])
            np.testing.assert_allclose(row, expected.pack(), rtol=1e-9, atol=1e-6)
            assert np.array_equal(row[5:], expected.pack()[5:])  # extremes, counts and bins exactly


def test_statistic_rows_are_what_pack_says_and_come_back(record_of):
    found = list(record_of(2).summaries.values())
    rows = np.array([statistic_row(each) for each in found])
    assert np.array_equal(rows, [each.pack() for each in found])
    assert list(summaries(rows)) == found


def test_empty_summaries_merge_to_an_empty_one():
    _, merged = merge("summary", 10, np.array([1, 2]), np.array([[statistic_row(Summary.empty())] * 2]))
    assert next(summaries(merged[0])) == Summary.empty()


def test_sketches_of_two_scales_keep_the_later():
    one, two = (Summary.unpack(np.r_[1, 0, 0, 0, 0, 0, 0, 1, np.zeros(5), e, 1, np.zeros(63)]) for e in (-2, 5))
    _, merged = merge("summary", 10, np.array([1, 2, 3]), np.array([[statistic_row(each) for each in (one, two, two)]]))
    (summary,) = summaries(merged[0])
    assert (summary.counts.total, summary.sketch.exponent, summary.sketch.count) == (3, 5, 2)


def test_channels_merge_as_plus_does(record_of):
    found = [next(iter(record_of(2 * step).channels.values())) for step in range(1, len(STEPS) + 1)]
    found[1] = ChannelMoments.empty(4)
    steps, merged = merge("channels", 10, STEPS, np.array([[each.pack() for each in found]]))
    assert steps.tolist() == [10, 11, 30]
    for each, bucket in zip(channels(merged[0]), BUCKETS, strict=True):
        np.testing.assert_allclose(each.pack(), functools.reduce(operator.add, found[bucket]).pack(), rtol=1e-12)


def reading(value, *, floor=0.5, interval=(0.0, 2.0), n=64, lag=1):
    return Reading("parameter-drift", Site("fc", "input"), 1, value, "reference SD", n, floor, interval, lag)


def rolled(*found):
    rows = reading_rows(found)
    steps, stack = merge("reading", 10, np.arange(1, len(found) + 1), rows[None])
    (again,) = readings("parameter-drift", Site("fc", "input"), "reference SD", steps, stack[0])
    return again, dict(zip(ROLLED, stack[0, 0].tolist(), strict=True))


def test_readings_merge_to_means_with_extremes():
    again, row = rolled(reading(1.0), reading(3.0, floor=1.5, interval=(1.0, 4.0), n=60, lag=2))
    assert (again.value, again.noise_floor, again.interval, again.n, again.lag) == (2.0, 1.0, (0.5, 3.0), 60, 2)
    assert (row["least"], row["greatest"], row["count"], again.step) == (1.0, 3.0, 2.0, 2)


def test_readings_that_are_not_finite_do_not_poison_the_mean():
    again, row = rolled(reading(1.0), reading(np.nan), reading(np.inf))
    assert (again.value, row["greatest"], row["count"]) == (1.0, np.inf, 1.0)
    assert np.isnan(rolled(reading(np.nan), reading(np.nan))[0].value)


def test_what_one_reading_lacks_the_mean_lacks():
    again, _ = rolled(reading(1.0, floor=None, interval=None, lag=None), reading(2.0))
    assert (again.noise_floor, again.interval, again.lag) == (None, None, None)


def test_means_of_means_weigh_every_reading_alike():
    rows = reading_rows([reading(value) for value in (1.0, 2.0, 3.0, 10.0)])
    steps = np.array([1, 2, 3, 11])
    tens, stack = merge("reading", 10, steps, rows[None])
    _, stack = merge("reading", 100, tens, stack)
    assert stack[0, 0, 0] == 4.0
