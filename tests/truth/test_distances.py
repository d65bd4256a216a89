"""Distances between two states of a site against quadrature, closed forms, other implementations and simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, stats

from holdfast.measures.gaussian import Gaussian
from holdfast.measures.gaussian_kl import gaussian_kl
from holdfast.measures.gaussian_w2 import gaussian_w2
from holdfast.measures.jensen_shannon import jensen_shannon
from holdfast.measures.kolmogorov_smirnov import kolmogorov_smirnov
from holdfast.measures.mmd import mmd_test
from holdfast.measures.permutation_test import permutation_test, split_half_floor
from holdfast.measures.sliced_wasserstein import sliced_wasserstein
from holdfast.measures.standardised_mean_shift import standardised_mean_shift
from holdfast.measures.wasserstein1 import wasserstein1
from holdfast.stats.moments import Moments
from holdfast.stats.sketch import Sketch, edges

Array = np.ndarray


# normal distributions by their moments


def moments_of(x: Array) -> Moments:
    return Moments(len(x), float(x.mean()), float(x.var() * len(x)), 0.0, 0.0)


def moments(mean: float, sd: float) -> Moments:
    return Moments(1, mean, sd * sd, 0.0, 0.0)


def covariance(d: int, seed: int) -> Array:
    mixing = np.random.default_rng(seed).normal(size=(d, d + 2))
    return mixing @ mixing.T / d


PAIRS = [((0.0, 1.0), (2.0, 3.0)), ((1.0, 0.5), (1.2, 0.4)), ((-1.0, 2.0), (0.0, 2.0))]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_w2_and_kl_of_normal_values_by_quadrature(a: tuple[float, float], b: tuple[float, float]) -> None:
    """W2² = ∫ (F⁻¹ − G⁻¹)² du and KL = ∫ p ln(p/q), to 1e-6."""
    p, q = stats.norm(*a), stats.norm(*b)
    w2, _ = integrate.quad(lambda u: (p.ppf(u) - q.ppf(u)) ** 2, 0, 1, limit=200)
    kl, _ = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), a[0] - 12 * a[1], a[0] + 12 * a[1])
    assert gaussian_w2(moments(*a), moments(*b)) == pytest.approx(math.sqrt(w2), rel=1e-6)
    assert gaussian_kl(moments(*a), moments(*b)) == pytest.approx(kl, rel=1e-6)


@pytest.mark.parametrize("d", [1, 2, 7, 40])
def test_w2_with_full_covariance_is_that_of_scipys_square_roots(d: int) -> None:
    s1, s2 = covariance(d, 0), covariance(d, 1)
    m1, m2 = np.random.default_rng(2).normal(size=(2, d))
    root = linalg.sqrtm(s2)
    trace = np.trace(s1 + s2 - 2 * np.real(linalg.sqrtm(root @ s1 @ root)))
    expected = math.sqrt(np.sum((m1 - m2) ** 2) + trace)
    assert gaussian_w2(Gaussian(m1, s1), Gaussian(m2, s2)) == pytest.approx(expected, rel=1e-9)


def test_w2_of_commuting_covariances() -> None:
    """Σ_j (√λ₁j − √λ₂j)² for covariances with the same eigenvectors, singular ones among them."""
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    first, second = np.array([4.0, 1.0, 0.25, 9.0, 0.0, 1.0]), np.array([1.0, 1.0, 4.0, 16.0, 2.25, 0.0])
    a, b = (Gaussian(np.zeros(6), (rotation * each) @ rotation.T) for each in (first, second))
    expected = math.sqrt(np.sum((np.sqrt(first) - np.sqrt(second)) ** 2))
    assert gaussian_w2(a, b) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("d", [1, 2, 7, 40])
def test_kl_with_full_covariance_is_torchs(d: int) -> None:
    s1, s2 = covariance(d, 0), covariance(d, 1)
    m1, m2 = np.random.default_rng(2).normal(size=(2, d))
    p, q = (
        torch.distributions.MultivariateNormal(torch.from_numpy(m), torch.from_numpy(s))
        for m, s in ((m1, s1), (m2, s2))
    )
    expected = float(torch.distributions.kl_divergence(p, q))
    assert gaussian_kl(Gaussian(m1, s1), Gaussian(m2, s2)) == pytest.approx(expected, rel=1e-8)


# sketches of known densities


def expected_sketch(distribution: Any, values: int = 10**12, exponent: int = -2) -> Sketch:
    """What a sketch of so many values holds in expectation; -2 is the scale that an RMS of 1 gets."""
    ends = edges(exponent).copy()
    ends[0], ends[-1] = -np.inf, np.inf
    shares = np.diff(distribution.cdf(ends))
    return Sketch(exponent, tuple(int(each) for each in np.round(shares * values)))


DENSITIES = [
    (stats.norm(0, 1), stats.norm(0.5, 1)),
    (stats.norm(0, 1), stats.norm(0, 1.3)),
    (stats.norm(0, 1), stats.t(3, scale=0.6)),
    (stats.expon(), stats.gamma(2, scale=0.5)),
]


@pytest.mark.parametrize(("p", "q"), DENSITIES)
def test_sketches_against_quadrature(p: Any, q: Any) -> None:
    """W1 to 0.01 RMS and KS to 0.01; Jensen–Shannon, which binning can only lower, to 3 %."""
    a, b = expected_sketch(p), expected_sketch(q)
    points = [-3, -1, 0, 1, 3]
    w1, _ = integrate.quad(lambda x: abs(p.cdf(x) - q.cdf(x)), -60, 60, points=points, limit=400)
    grid = np.linspace(-20, 20, 400_001)
    ks = np.abs(p.cdf(grid) - q.cdf(grid)).max()

    def information(x: float) -> float:
        one, other = p.pdf(x), q.pdf(x)
        return sum(each * math.log(2 * each / (one + other)) / 2 for each in (one, other) if each > 0)

    js, _ = integrate.quad(information, -40, 40, points=points, limit=400)
    assert wasserstein1(a, b) == pytest.approx(w1, abs=0.01)
    assert kolmogorov_smirnov(a, b) == pytest.approx(ks, abs=0.01)
    assert js * 0.97 <= jensen_shannon(a, b) <= js + 1e-6


def test_a_shift_of_normals_in_closed_form() -> None:
    """By 0.5 SD: W1 is 0.5, KS is 2Φ(0.25) − 1."""
    a, b = (expected_sketch(each) for each in DENSITIES[0])
    assert wasserstein1(a, b) == pytest.approx(0.5, abs=0.005)
    assert kolmogorov_smirnov(a, b) == pytest.approx(2 * stats.norm.cdf(0.25) - 1, abs=0.005)


# what is to be expected between independent batches

BATCH, TRIALS = 256, 3000


def test_orientation_means_under_standard_normal_features(shapes_unchecked: None) -> None:
    """Means of 3,000 pairs of batches of 256, to 5 %: four standard errors of the noisiest (W2², KL), and the terms
    of the next order in 1/B, both 1 to 2 %."""
    generator = np.random.default_rng(0)
    found: dict[str, list[float]] = {}
    for _ in range(TRIALS):
        x, y = generator.normal(size=(2, BATCH))
        a, b = moments_of(x), moments_of(y)
        for name, value in (
            ("|Δμ|", standardised_mean_shift(a, b)),
            ("Δμ²", standardised_mean_shift(a, b) ** 2),
            ("W2²", gaussian_w2(a, b) ** 2),
            ("KL", gaussian_kl(a, b)),
            ("symmetric KL", gaussian_kl(a, b, symmetric=True)),
            ("W1", wasserstein1(x, y)),
            ("KS", kolmogorov_smirnov(x, y)),
        ):
            found.setdefault(name, []).append(value)
    bridge, _ = integrate.quad(lambda x: math.sqrt(stats.norm.cdf(x) * stats.norm.sf(x)), -12, 12)
    expected = {
        "|Δμ|": 2 / math.sqrt(math.pi * BATCH),
        "Δμ²": 2 / BATCH,
        "W2²": 3 / BATCH,
        "KL": 2 / BATCH,
        "symmetric KL": 2 / BATCH,
        "W1": 2 / math.sqrt(math.pi) * bridge / math.sqrt(BATCH),
        # E sup |Brownian bridge| = √(π/2) ln 2
        "KS": math.sqrt(math.pi / 2) * math.log(2) * math.sqrt(2 / BATCH),
    }
    assert 2 / math.sqrt(math.pi) * bridge == pytest.approx(1.82, abs=0.005)
    # the greatest gap of finite samples falls short of the bridge's by some 0.2/√B of itself
    tolerance = {"KS": 0.07}
    for name, values in found.items():
        assert np.mean(values) == pytest.approx(expected[name], rel=tolerance.get(name, 0.05)), name


def test_jensen_shannon_between_equal_batches(shapes_unchecked: None) -> None:
    """(bins in use − 1) (1/n + 1/m) / 8 on 20 equally filled bins; 400 pairs, to 5 %."""
    generator = np.random.default_rng(0)
    pairs = generator.multinomial(2000, np.full(20, 1 / 20), size=(400, 2))
    rest = (0,) * 44
    found = [jensen_shannon(*(Sketch(0, (*each.tolist(), *rest)) for each in pair)) for pair in pairs]
    assert np.mean(found) == pytest.approx(19 * (2 / 2000) / 8, rel=0.05)


# floors: how often something is seen where nothing moved

Draw = Callable[[np.random.Generator, int], Array]


def normal(generator: np.random.Generator, n: int) -> Array:
    return generator.normal(size=(n, 3))


def heavy_tailed(generator: np.random.Generator, n: int) -> Array:
    return generator.standard_t(2, size=(n, 3))


def alike(generator: np.random.Generator, n: int) -> Array:
    """Positions of a sample share most of what they are."""
    return generator.normal(size=(n, 1)) + 0.3 * generator.normal(size=(n, 3))


def pooled(distance: Callable[[Any, Any], float]) -> Callable[[Array, Array], float]:
    return lambda a, b: distance(a.ravel(), b.ravel())


def kl_of(a: Array, b: Array) -> float:
    return gaussian_kl(moments_of(a.ravel()), moments_of(b.ravel()))


TESTS: dict[str, Callable[[Array, Array], Any]] = {
    "W1": lambda a, b: permutation_test(pooled(wasserstein1), a, b, permutations=39),
    "KS": lambda a, b: permutation_test(pooled(kolmogorov_smirnov), a, b, permutations=39),
    "KL": lambda a, b: permutation_test(kl_of, a, b, permutations=39),
    "sliced W1": lambda a, b: permutation_test(
        lambda p, q: sliced_wasserstein(p, q, projections=4), a, b, permutations=39
    ),
    "MMD²": lambda a, b: mmd_test(a, b, permutations=199),
}


CASES = [(name, draw) for name in TESTS for draw in (normal, heavy_tailed, alike)]
FAST = [(name, alike) for name in TESTS if name != "sliced W1"]


@pytest.mark.parametrize(
    ("name", "draw"),
    # In the fast suite only what a floor by position would get wrong; the other laws take as long.
    [pytest.param(*each, marks=() if each in FAST else pytest.mark.slow) for each in CASES],
)
def test_permutation_floors_are_exceeded_at_5_percent(shapes_unchecked: None, name: str, draw: Draw) -> None:
    """400 pairs of 16 and 12 samples: 5 % within three binomial standard errors (3.3 %); ties can only lower it."""
    generator = np.random.default_rng(1)
    found = [TESTS[name](draw(generator, 16), draw(generator, 12)) for _ in range(400)]
    above = np.mean([each.value > each.noise_floor for each in found])
    assert 0.017 <= above <= 0.083
    # and the p-value says the same
    assert np.mean([each.p_value <= 0.05 for each in found]) == pytest.approx(above, abs=1e-9)


HALVES: dict[str, tuple[Callable[[Array, Array], float], float]] = {
    "W1": (pooled(wasserstein1), 0.5),
    "KS": (pooled(kolmogorov_smirnov), 0.5),
    "KL": (kl_of, 1.0),
}


@pytest.mark.parametrize("draw", [pytest.param(normal, marks=pytest.mark.slow), alike])
@pytest.mark.parametrize("name", HALVES)
def test_split_half_floors_hold_for_whole_batches(shapes_unchecked: None, name: str, draw: Draw) -> None:
    """Batches of 100 samples, the floor from the first alone: of 250 pairs 2 to 9 % lie above it."""
    distance, rate = HALVES[name]
    generator = np.random.default_rng(2)
    above = 0
    for _ in range(250):
        a, b = draw(generator, 100), draw(generator, 100)
        above += distance(a, b) > split_half_floor(distance, a, rate=rate, draws=59)
    assert 0.02 <= above / 250 <= 0.09
