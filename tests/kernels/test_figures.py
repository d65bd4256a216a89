"""The names of the totals stand for what they say."""

import torch

from holdfast.kernels.block_ref import summarise_block_ref
from holdfast.kernels.figures import TOTALS


def test_names_are_in_the_order_of_the_entries():
    nan, inf = float("nan"), float("inf")
    block = torch.tensor([0.0, 4.0, -1.0, nan, nan, inf, inf, inf, -inf, -inf, -inf, -inf])[:, None, None]
    totals = dict(zip(TOTALS, summarise_block_ref(block, 0, 2.0).totals.tolist(), strict=True))
    assert totals == {
        "n_finite": 3, "mean": 1, "m2": 14, "m3": 18, "m4": 98, "min": -1, "max": 4,
        "zeros": 1, "nan": 2, "posinf": 3, "neginf": 4, "beyond": 1,
    }  # fmt: skip
