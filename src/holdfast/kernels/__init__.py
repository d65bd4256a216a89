"""Tensors in, tensors out: the figures of a block, in plain PyTorch and compiled, side by side."""

# the call
from holdfast.kernels.dispatch import summarise_block as summarise_block

# its result
from holdfast.kernels.figures import TOTALS as TOTALS
from holdfast.kernels.figures import BlockFigures as BlockFigures
