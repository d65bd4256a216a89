"""The reference against definitions written out in NumPy."""

import math

import numpy as np
import pytest
import torch

from holdfast.kernels import block_ref
from holdfast.kernels.bins import POSITIVE_EDGES
from holdfast.kernels.block_ref import summarise_block_ref
from holdfast.kernels.figures import TOTALS


def _naive(block, exponent, threshold):
    x = block.double().numpy()
    finite = x[np.isfinite(x)]
    d = finite.astype(np.longdouble) - finite.astype(np.longdouble).mean()
    return {
        "n_finite": finite.size,
        "mean": finite.astype(np.longdouble).mean(),
        "m2": (d**2).sum(),
        "m3": (d**3).sum(),
        "m4": (d**4).sum(),
        "min": finite.min(),
        "max": finite.max(),
        "zeros": (x == 0).sum(),
        "nan": np.isnan(x).sum(),
        "posinf": (x == math.inf).sum(),
        "neginf": (x == -math.inf).sum(),
        "beyond": (np.abs(finite) > threshold).sum(),
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(30, 5, 7),
        lambda: torch.randn(30, 5, 7) + 2000,
        lambda: torch.randn(30, 5, 7) * 0.01 + 100,
        lambda: torch.randn(30, 5, 7) * 1e30,
        lambda: torch.randn(40, 60, 40) + torch.linspace(0, 9, 40)[:, None, None],  # slices of different means
        lambda: torch.randn(2, 3, 40_000),  # a sample that is longer than a slice
        lambda: torch.tensor([[[math.nan, 1.0, 0.0], [math.inf, -math.inf, -3.0]]]),
    ],
)
def test_totals_are_the_definitions(make):
    torch.manual_seed(0)
    block = make()
    got = dict(zip(TOTALS, summarise_block_ref(block, 0, 1.5).totals.tolist(), strict=True))
    want = _naive(block, 0, 1.5)
    # A third central moment may cancel: it is right to rounding of its terms, whose size M4 and M2 bound.
    size = math.sqrt(float(want["m2"]) * float(want["m4"]))
    assert got.pop("m3") == pytest.approx(float(want.pop("m3")), rel=1e-9, abs=1e-9 * size)
    assert got == {name: pytest.approx(float(value), rel=1e-9) for name, value in want.items()}


def test_channels_and_features():
    block = torch.tensor([[[1.0, math.nan], [0.0, 0.0]], [[3.0, 5.0], [math.nan, math.inf]]])
    figures = summarise_block_ref(block, 0, math.inf)
    assert figures.channels.tolist() == [[3, 3, 8, 0], [2, 0, 0, 2]]
    assert figures.features[:, 0].tolist() == [1.0, 4.0]
    assert figures.features[0, 1] == 0
    assert figures.features[1, 1].isnan()


@pytest.mark.parametrize("exponent", [-3, 0, 5])
def test_bins_are_counts_between_edges(exponent):
    torch.manual_seed(1)
    block = torch.randn(50, 4, 10).exp() * torch.randn(50, 4, 10).sign()
    scale = 2.0**exponent
    inner = POSITIVE_EDGES[:-1] * scale
    edges = np.concatenate([[-np.inf], -inner[::-1], [0.0], inner, [np.inf]])
    want, _ = np.histogram(block.double().numpy(), edges)  # no value lies on an edge
    assert summarise_block_ref(block, exponent, math.inf).bins.tolist() == want.tolist()


def test_values_on_edges_belong_to_the_outer_bin():
    edges = torch.tensor(POSITIVE_EDGES[:-1], dtype=torch.float32)
    bins = summarise_block_ref(torch.cat([edges, -edges])[:, None, None], 0, math.inf).bins
    assert bins.tolist() == [1] * 31 + [0, 0] + [1] * 31


def test_zeros_of_either_sign_share_a_bin():
    bins = summarise_block_ref(torch.tensor([0.0, -0.0])[:, None, None], 0, math.inf).bins
    assert bins[32] == 2


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_no_data(shape):
    figures = summarise_block_ref(torch.empty(shape), 0, math.inf)
    assert figures.totals.tolist() == [0, 0, 0, 0, 0, math.inf, -math.inf, 0, 0, 0, 0, 0]
    assert figures.channels.tolist() == [[0, 0, 0, 0]] * shape[1]
    assert figures.features.shape == shape[:2]
    assert figures.features.isnan().all()
    assert not figures.bins.any()


def test_constant_data_have_no_variance():
    figures = summarise_block_ref(torch.full((100, 3, 7), 0.1), 0, math.inf)
    assert figures.totals[2:5].tolist() == [0, 0, 0]
    assert figures.channels[:, 2].tolist() == [0, 0, 0]


def test_no_large_copy_is_made(monkeypatch):
    widened = []
    original = block_ref._totals
    monkeypatch.setattr(block_ref, "_totals", lambda part, *rest: widened.append(part.numel()) or original(part, *rest))
    summarise_block_ref(torch.zeros(1, 3, 1).expand(300, 3, 1000), 0, math.inf)
    assert sum(widened) == 900_000
    assert max(widened) <= block_ref.SLICE
