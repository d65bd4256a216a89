"""What the compiled kernels share: typed views of an address, bfloat16 by its bits. Importing this costs Numba's 0.2 s.

Kernels are serial and hold no lock of Python: no OpenMP, no threading layer of Numba's (after one parallel kernel
every forked data loader worker that runs its own would die). `threads` splits their work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types  # type: ignore[attr-defined]
from numba.core import errors
from numba.extending import intrinsic, overload

# Numba words an error for every overload that does not fit. Where colorama is installed it exchanges `sys.stdout` and
# `sys.stderr` meanwhile, though it prints nothing: from the compiler's thread, while a user redirects their own.
if hasattr(errors, "ColorShell"):
    errors.ColorShell = nullcontext

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}


def callback(function: Callable[..., None]) -> int:
    """Compile a function of one address for native callers, or load what an earlier process compiled.

    Numba looks for a writable cache beside the file, in `NUMBA_CACHE_DIR` and in the user's cache; it raises where
    there is none, and then every process compiles for itself.

    Args:
        function: takes an int64 and returns nothing.

    Returns:
        The address of the code, which lives as long as the process.
    """
    signature = types.void(types.int64)
    try:
        made = cfunc(signature, cache=True, **OPTIONS)(function)
    except (RuntimeError, OSError):
        made = cfunc(signature, **OPTIONS)(function)
    _kept.append(made)
    assert made.address is not None
    return int(made.address)


_kept: list[Any] = []


def order(job: Sequence[int], eps: float) -> list[int]:
    """What a call of a kernel reads: its job and ε; then the step, the source of its parts, their number, those taken.

    Args:
        job: sizes and addresses.
        eps: ε.

    Returns:
        Its words, the last four 0.
    """
    return [*job, int(np.float64(eps).view(np.int64)), 0, 0, 0, 0]


@intrinsic
def next_of(_context, address):  # type: ignore[no-untyped-def]
    """Add one to the int64 at an address and return what it was, whichever threads do so at once."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind = context.get_value_type(types.int64)
        return builder.atomic_rmw("add", builder.inttoptr(arguments[0], kind.as_pointer()), kind(1), "seq_cst")

    return types.int64(address), code


def pointer(element: types.Type) -> Any:
    """An intrinsic that turns an address into a pointer to elements of one type."""

    @intrinsic
    def at(_context, address):  # type: ignore[no-untyped-def]
        def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(address), code  # type: ignore[no-untyped-call]

    return at


def _bits_as(kind: types.Type) -> Any:
    """An intrinsic that reads bits as another type (Numba's `.view` fails where a variable is assigned twice)."""

    @intrinsic
    def read(_context, bits):  # type: ignore[no-untyped-def]
        def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.bitcast(arguments[0], context.get_value_type(kind))

        return kind(bits), code

    return read


float32_at = pointer(types.float32)
float64_at = pointer(types.float64)
int32_at = pointer(types.int32)
int64_at = pointer(types.int64)
uint16_at = pointer(types.uint16)
uint32_at = pointer(types.uint32)
as_float64 = _bits_as(types.float64)
as_float32 = _bits_as(types.float32)
as_uint32 = _bits_as(types.uint32)


def elements(kind: Any, address: int, n: int) -> Any:
    """The array of n elements at an address: float32, or bfloat16 as uint16, by the type of `kind`."""


def get(values: Any, i: int) -> Any:
    """An element as float32."""


def put(values: Any, i: int, value: Any) -> None:
    """Write a float32 to an element, rounded to the nearest, ties to even."""


@overload(elements)
def _elements(kind, address, n):  # type: ignore[no-untyped-def]
    if kind == types.float32:
        return lambda kind, address, n: carray(float32_at(address), (n,))
    return lambda kind, address, n: carray(uint16_at(address), (n,))


@overload(get)
def _get(values, i):  # type: ignore[no-untyped-def]
    if values.dtype == types.float32:
        return lambda values, i: values[i]
    return lambda values, i: as_float32(np.uint32(np.uint32(values[i]) << np.uint32(16)))


@overload(put)
def _put(values, i, value):  # type: ignore[no-untyped-def]
    if values.dtype == types.float32:

        def single(values, i, value):  # type: ignore[no-untyped-def]
            values[i] = value

        return single

    def half(values, i, value):  # type: ignore[no-untyped-def]
        values[i] = rounded(value)

    return half


@njit(**OPTIONS)
def rounded(value):  # type: ignore[no-untyped-def]
    """The upper half of a float32, rounded to the nearest even; NaN stays NaN."""
    bits = as_uint32(value)
    up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    missing = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(0x7FC0) if missing else np.uint16(np.uint32(bits + up) >> np.uint32(16))
