"""Rows of figures as bytes, and back.

A chunk holds the rows of one series: columns one after the other, each in the narrowest type that loses nothing
but what float32 loses, bytes of equal significance together ("shuffled"), zlib level 1. Whole numbers (counts, bins,
sizes, exponents) become integers and stay exact beyond 2**24, where float32 starts to skip some; figures that float32
cannot hold (a fourth moment of 1e10, a variance of 1e-25) stay float64.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.int64]
"""`(rows,)`, not falling."""
Rows = NDArray[np.float64]
"""`(rows, columns)`."""
Stack = NDArray[np.float64]
"""`(series, rows, columns)`."""

_TYPES = [np.dtype(name) for name in ("<u1", "<u2", "<u4", "<i1", "<i2", "<i4", "<i8", "<f4", "<f8")]
_U1, _I1, _I8, _F4, _F8 = 0, 3, 6, 7, 8
_WHOLE = 2.0**53  # up to here float64 holds every whole number
_GREATEST, _LEAST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
_HEAD = struct.Struct("<BII")
_FORMAT = 1
_TAIL = struct.Struct("<III")


def encode(steps: Steps, stack: Stack) -> list[bytes]:
    """Chunks of series that have rows at the same steps.

    Args:
        steps: `(rows,)`, the same for all series.
        stack: `(series, rows, columns)`.

    Returns:
        One chunk a series.

    Example:
        >>> chunk, = encode(np.array([7, 8]), np.array([[[0.1, 2**24 + 1], [0.2, 3]]]))
        >>> steps, rows = decode(chunk)
        >>> steps.tolist(), rows[:, 1].tolist(), bool(abs(rows[0, 0] - 0.1) < 1e-8)
        ([7, 8], [16777217.0, 3.0], True)
    """
    types = _narrowest(stack)
    prefix = _HEAD.pack(_FORMAT, stack.shape[1], stack.shape[2])
    when = _planes(steps.astype("<i8")[None])[0].tobytes()
    alike: dict[bytes, list[int]] = {}
    for index, row in enumerate(types):
        alike.setdefault(row.tobytes(), []).append(index)
    chunks = [b""] * len(stack)
    for code, members in alike.items():
        planes = _columns(stack[members], types[members[0]])
        for index, body in zip(members, planes, strict=True):
            chunks[index] = prefix + zlib.compress(code + when + body.tobytes(), 1)
    return chunks


def decode(chunk: bytes) -> tuple[Steps, Rows]:
    """Read a chunk back.

    Args:
        chunk: one of `encode`'s.

    Returns:
        `(rows,)` steps and `(rows, columns)` figures.

    Raises:
        ValueError: the bytes are not a chunk.
    """
    try:
        form, count, width = _HEAD.unpack_from(chunk)
        body = memoryview(zlib.decompress(memoryview(chunk)[_HEAD.size :]))
    except (struct.error, zlib.error) as error:
        raise ValueError(str(error)) from error
    if form != _FORMAT:
        raise ValueError(f"a chunk of format {form}")
    types = np.frombuffer(body[:width], np.uint8)
    place = width + 8 * count
    steps = _unplaned(body[width:place], np.dtype("<i8"), count).astype(np.int64)
    rows = np.empty((count, width))
    for code in np.unique(types):
        columns, kind = np.flatnonzero(types == code), _TYPES[code]
        end = place + columns.size * count * kind.itemsize
        figures = _unplaned(body[place:end], kind, columns.size * count)
        rows[:, columns] = figures.reshape(columns.size, count).T
        place = end
    return steps, rows


def encode_tail(series: NDArray[np.uint32], widths: NDArray[np.uint32], vector: NDArray[np.float64]) -> bytes:
    """One record's figures as they are, with a checksum.

    Args:
        series: `(k,)` which series have figures.
        widths: `(k,)` how many each.
        vector: all of them, one series after the other.

    Returns:
        The row's bytes.
    """
    body = b"".join((series.astype("<u4").tobytes(), widths.astype("<u4").tobytes(), vector.astype("<f8").tobytes()))
    return _TAIL.pack(zlib.crc32(body), len(series), len(vector)) + body


def decode_tail(data: bytes) -> tuple[Sequence[int], list[NDArray[np.float64]]]:
    """Read a tail row back.

    Args:
        data: `encode_tail`'s.

    Returns:
        The series, and the figures of each.

    Raises:
        ValueError: the bytes are not a tail row.
    """
    try:
        checksum, count, length = _TAIL.unpack_from(data)
    except struct.error as error:
        raise ValueError(str(error)) from error
    body = memoryview(data)[_TAIL.size :]
    if zlib.crc32(body) != checksum or len(body) != 8 * count + 8 * length:
        raise ValueError("a step's figures do not match their checksum")
    series, widths = np.frombuffer(body[: 8 * count], "<u4").reshape(2, count)
    vector = np.frombuffer(body[8 * count :], "<f8").astype(np.float64, copy=False)
    return series.tolist(), np.split(vector, np.cumsum(widths)[:-1]) if count else []


def _narrowest(stack: Stack) -> NDArray[np.uint8]:
    """`(series, columns)`: the index of each column's type."""
    low, high = stack.min(1), stack.max(1)  # NaN where a column has one, so that no comparison below holds
    with np.errstate(invalid="ignore"):
        size = np.abs(stack)
        whole = (stack == np.rint(stack)).all(1) & (low > -_WHOLE) & (high < _WHOLE)
        wide = ((size > _GREATEST) & np.isfinite(size) | (size < _LEAST) & (size > 0)).any(1)
    types = np.where(wide, _F8, _F4).astype(np.uint8)
    types[whole] = _I8
    for code in (_I8 - 1, _I8 - 2, _I1):
        bound = 2.0 ** (8 * _TYPES[code].itemsize - 1)
        types[whole & (low >= -bound) & (high < bound)] = code
    for code in (_U1 + 2, _U1 + 1, _U1):
        types[whole & (low >= 0) & (high < 2.0 ** (8 * _TYPES[code].itemsize))] = code
    return types


def _columns(stack: Stack, types: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`(series, bytes)`: columns of the same type together, in the order of the types."""
    across = stack.transpose(0, 2, 1)
    return np.concatenate(
        [_planes(across[:, types == code].astype(_TYPES[code])) for code in np.flatnonzero(np.bincount(types))],
        axis=1,
    )


def _planes(figures: NDArray[np.generic]) -> NDArray[np.uint8]:
    """`(series, bytes)` of `(series, ...)` figures, bytes of equal significance together."""
    planes = figures.reshape(len(figures), -1, 1).view(np.uint8)
    return np.ascontiguousarray(planes.transpose(0, 2, 1)).reshape(len(figures), -1)


def _unplaned(data: memoryview, kind: np.dtype[np.generic], count: int) -> NDArray[np.generic]:
    planes = np.frombuffer(data, np.uint8)
    if planes.size != count * kind.itemsize:
        raise ValueError("a chunk that ends early")
    return np.ascontiguousarray(planes.reshape(kind.itemsize, count).T).view(kind).reshape(count)
