from __future__ import annotations

import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.lab.dataset import PROBE, split


def test_every_sample_belongs_to_exactly_one_part() -> None:
    parts = split(1000, name="x", held_out=0.2, seed=3)
    together = torch.cat([parts.train, parts.probe, parts.held_out])
    assert sorted(together.tolist()) == list(range(1000))
    assert (len(parts.probe), len(parts.held_out)) == (PROBE, 200)


def test_the_seed_decides_and_the_global_generator_stays() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (split(1000, name="x", seed=seed).train for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_test_part_of_its_own_is_cut_where_the_data_bring_one() -> None:
    assert len(split(600, name="x", held_out=0.0).held_out) == 0


def test_too_few_samples_are_refused_with_the_number_needed() -> None:
    with pytest.raises(InputError) as caught:
        split(400, name="digits", held_out=0.2)
    assert str(caught.value) == (
        "expected at least 480 samples of digits (128 for the probe, twice that for training); got 400; "
        "point at the whole data set"
    )
    split(480, name="digits", held_out=0.2)
