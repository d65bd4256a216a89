"""Chooses the path for a block: the compiled kernel where it is ready and may read the memory, else plain PyTorch."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from holdfast.kernels.block_ref import summarise_block_ref
from holdfast.kernels.figures import BlockFigures


def summarise_block(
    block: Float[Tensor, "samples channels positions"], exponent: int, threshold: float
) -> BlockFigures:
    """The figures of a block."""
    return summarise_block_ref(block, exponent, threshold)
