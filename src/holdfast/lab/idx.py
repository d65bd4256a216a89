"""The IDX format of MNIST and its relatives: one array of bytes in a file, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from holdfast.core.errors import InputError

_GZIP = b"\x1f\x8b"
_UNSIGNED_BYTES = 0x08
_AGAIN = "fetch the file again: it is not what it should be"


def read_idx(path: Path, *, axes: int) -> UInt8[np.ndarray, " *shape"]:
    """Read an IDX file: 2 zero bytes, the type, the number of axes, one big-endian int32 an axis, then the bytes.

    Args:
        path: of the file; whether it is gzipped is told from its first bytes, not from its name.
        axes: how many it must have: 3 for images, 1 for labels.

    Returns:
        The array, shaped as the header says.

    Raises:
        InputError: the file is missing, damaged, cut short, too long, or something else than IDX bytes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels-idx1-ubyte")
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        ...     read_idx(path, axes=1).tolist()
        [7, 2, 1]
    """
    raw = _contents(path)
    magic = bytes([0, 0, _UNSIGNED_BYTES, axes])
    head = 4 + 4 * axes
    if raw[:4] != magic or len(raw) < head:
        kind = "1 axis" if axes == 1 else f"{axes} axes"
        raise InputError(
            f"an IDX file of unsigned bytes with {kind} (it starts with {magic.hex()})",
            f"{str(path)!r}, which starts with {raw[:4].hex() or 'nothing: it is empty'}",
            _AGAIN,
        )
    shape = tuple(int(each) for each in np.frombuffer(raw, ">u4", count=axes, offset=4))
    expected, got = math.prod(shape), len(raw) - head
    if got != expected:
        raise InputError(
            f"{expected:,} bytes of data, as the header {shape} says",
            f"{got:,} in {str(path)!r}, which is {'cut short' if got < expected else 'too long'}",
            _AGAIN,
        )
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def find_idx(folder: Path, stem: str) -> Path:
    """The file of an IDX array in a folder, under the names it goes by.

    Args:
        folder: where to look.
        stem: such as `"train-images-idx3-ubyte"`.

    Returns:
        Its path: the plain file before the gzipped one.

    Raises:
        InputError: there is none.
    """
    for name in (stem, f"{stem}.gz"):
        # Some archives unpack to `train-images.idx3-ubyte`.
        for spelling in (name, name.replace("-idx", ".idx")):
            if (folder / spelling).is_file():
                return folder / spelling
    raise InputError(
        f"the file {stem} or {stem}.gz",
        f"the folder {str(folder)!r} without it",
        "put the four files of the data set into one folder and name that folder",
    )


def _contents(path: Path) -> bytes:
    """Everything in a file, unpacked if it is gzipped."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == _GZIP else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError("a whole gzip file", f"{str(path)!r}, which is damaged ({error})", _AGAIN) from None
    except OSError as error:
        raise InputError(
            "a file that can be read", f"{str(path)!r} ({error.strerror})", "check its name and its permissions"
        ) from None
