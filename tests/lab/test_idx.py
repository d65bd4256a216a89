from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from holdfast.core.errors import InputError
from holdfast.lab.idx import find_idx, read_idx

ARRAY = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)


@pytest.mark.parametrize("packed", [False, True])
def test_what_was_written_is_read_whatever_the_file_is_called(
    tmp_path: Path, idx_bytes: Callable[[np.ndarray], bytes], packed: bool
) -> None:
    path = tmp_path / "train-images-idx3-ubyte"  # a gzipped file may have lost its ending, too
    raw = idx_bytes(ARRAY)
    path.write_bytes(gzip.compress(raw) if packed else raw)
    np.testing.assert_array_equal(read_idx(path, axes=3), ARRAY)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda raw: raw[:-5], r"24 bytes of data, as the header \(4, 3, 2\) says; got 19 .* cut short"),
        (lambda raw: raw + b"xx", r"got 26 .* too long"),
        (lambda raw: b"", "which starts with nothing: it is empty"),
        (lambda raw: b"\0\0\x08\x01" + raw[4:], r"3 axes \(it starts with 00000803\); got .* starts with 00000801"),
        (lambda raw: b"\0\0\x0d\x03" + raw[4:], "starts with 00000d03"),
        (lambda raw: raw[:9], "expected an IDX file"),
        (lambda raw: b"<html>404</html>", "starts with 3c68746d"),
        (lambda raw: raw[:4] + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1) + raw[16:], "cut short"),
        (lambda raw: gzip.compress(raw)[:-12], "a whole gzip file; got .* damaged"),
        (
            lambda raw: gzip.compress(raw)[:15] + b"\xff" * 9 + gzip.compress(raw)[24:],
            "a whole gzip file; got .* damaged",
        ),
    ],
)
def test_a_damaged_file_is_one_sentence(
    tmp_path: Path, idx_bytes: Callable[[np.ndarray], bytes], damage: Callable[[bytes], bytes], says: str
) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(damage(idx_bytes(ARRAY)))
    with pytest.raises(InputError, match=says) as caught:
        read_idx(path, axes=3)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the file train-images-idx3-ubyte or train-images-idx3-ubyte\.gz"):
        find_idx(tmp_path, "train-images-idx3-ubyte")
    with pytest.raises(InputError, match="No such file"):
        read_idx(tmp_path / "gone", axes=1)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "train-images.idx3-ubyte"])
def test_the_usual_names_are_found(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert find_idx(tmp_path, "train-images-idx3-ubyte").name == name
