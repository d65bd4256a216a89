"""Chooses the path for a block: the compiled kernel where it is ready and may read the memory, else plain PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.kernels.block_ref import summarise_block_ref
from holdfast.kernels.figures import BlockFigures
from holdfast.kernels.lens import KINDS, Lens, Window


def summarise_block(
    block: Float[Tensor, "samples channels positions"], exponent: int, threshold: float
) -> BlockFigures:
    """The figures of a block, by the fastest path that can read it.

    Both paths agree exactly in counts and bins and to rounding in the rest; each gives the same bits from run to
    run. The tensor is read in place, whatever its strides.

    Args:
        block: `(samples, channels, positions)`, of float32, float64, bfloat16 or float16, possibly empty.
        exponent: the sketch's scale is 2**exponent.
        threshold: finite values with |x| above it are counted as beyond; inf counts none.

    Returns:
        The figures: on the CPU, or on the block's device.

    Raises:
        InputError: the block has other than three dimensions, another type, or no data (a meta tensor).

    Example:
        >>> summarise_block(torch.tensor([[[1.0], [float("nan")]]]), 0, float("inf")).totals[[0, 8]].tolist()
        [1.0, 1.0]
    """
    if block.ndim != 3 or block.dtype not in KINDS or block.is_meta:
        raise InputError(
            "a tensor (samples, channels, positions) of float32, float64, bfloat16 or float16 with data",
            f"{tuple(block.shape)} of {block.dtype} on {block.device}",
            "reshape it, or leave the site out with sites=",
        )
    found = None
    if readable(block):
        lens = Lens(KINDS[block.dtype], Window(*block.shape, *block.stride()), exponent, threshold)
        found = lens.look(block.data_ptr(), 0.0, features=True)
    if found is None:
        return summarise_block_ref(block, exponent, threshold)
    totals = np.delete(found.vector[:13], 7)  # without the number of all values
    bins = found.vector[14:].astype(np.int64)
    return BlockFigures(*(torch.from_numpy(each) for each in (totals, found.channels, found.features, bins)))


def readable(block: Tensor) -> bool:
    """Whether native code may read the tensor's memory by its address and strides.

    Not so for another device, for wrappers that have no memory of their own (functorch's, subclasses, fake and
    meta tensors), and for views whose sign is applied when they are read.

    Args:
        block: any tensor.

    Returns:
        Whether the kernel may take it; an empty one it may not.
    """
    return (
        type(block) in (Tensor, nn.Parameter)
        and block.device.type == "cpu"
        and block.layout is torch.strided
        and block.dtype in KINDS
        and not torch._C._functorch.is_functorch_wrapped_tensor(block)
        and not block.is_neg()
        and not block.is_conj()
        and block.numel() > 0
    )
