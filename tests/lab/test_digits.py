from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.lab.digits import read_digits


def test_pixels_are_standardised_on_the_training_part_alone() -> None:
    digits = read_digits()
    mean, sd = digits.inputs.mean(0), digits.inputs.std(0)
    varying = sd > 0
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(sd[varying], torch.ones_like(sd[varying]), atol=1e-4, rtol=0)
    assert 50 < int(varying.sum()) < 64  # the corners of a digit's picture are always empty
    assert not digits.held_out[:, ~varying].any()
    assert digits.held_out.mean(0).abs().max() > 0.01  # its own mean was not taken away


def test_parts_do_not_overlap_and_carry_every_class() -> None:
    digits = read_digits(seed=5)
    assert (len(digits.inputs), len(digits.probe), len(digits.held_out)) == (1310, 128, 359)
    assert set(digits.labels.tolist()) == set(digits.held_out_labels.tolist()) == set(range(10))


def test_the_same_seed_gives_the_same_split() -> None:
    assert torch.equal(read_digits(seed=1).probe, read_digits(seed=1).probe)
    assert not torch.equal(read_digits(seed=1).probe, read_digits(seed=2).probe)


def test_without_scikit_learn_the_line_to_type_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pip install 'holdfast\[lab\]'"):
        read_digits()


def test_scikit_learn_is_imported_only_when_digits_are_read() -> None:
    code = "import sys, holdfast.lab; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
