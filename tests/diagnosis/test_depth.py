import math

import numpy as np
import pytest
from scipy import stats

from holdfast.core.site import Site
from holdfast.diagnosis.depth import Profile, profile_of, weight_layers, weights_only
from holdfast.diagnosis.evidence import series_of


def _profile(history, layers):
    return profile_of(series_of(history, "gradient-norm", stream="net", port="grad_output"), layers)


def test_a_planted_slope_is_found_with_one_odd_layer(script):
    names = [f"l{k}" for k in range(9)]
    norms = {name: 3.0**k for k, name in enumerate(names)} | {"l4": 1e6}
    profile = _profile(script().layers(*names).gradients(norms).history, names)
    assert profile.slope().value == pytest.approx(math.log(3), rel=1e-6)
    assert np.allclose(profile.slopes(), math.log(3))
    assert (profile.span, len(profile.steps)) == (8, 6)


def test_the_order_is_the_structures_not_that_of_the_backward_pass(script):
    history = script().layers("a", "b", "c").gradients({"c": 3.0, "b": 2.0, "a": 1.0}).history
    profile = _profile(history, weight_layers(history, "net"))
    assert [site.module for site in profile.sites] == ["a", "b", "c"]
    assert profile.medians.tolist() == [1, 2, 3]


def test_without_structure_the_layers_are_those_with_weight_gradients(script):
    history = script().signal("a", [0.0], [1.0]).signal("act", [0.0], [1.0]).gradients({"a": 1.0}).history
    assert weight_layers(history, "net") == ("a",)


def test_biases_are_no_weights_with_and_without_structure(script):
    for one in (script(), script().layers("a")):
        one.add("update-ratio", "a", [0.1], port="update", leaf="weight")
        one.add("update-ratio", "a", [9.0], port="update", leaf="bias")
        groups = series_of(one.history, "update-ratio", stream="net", port="update")
        assert [each.site.leaf for each in weights_only(one.run, groups, "net")] == ["weight"]


def test_zeros_and_missing_layers_are_no_figures(script):
    history = script().layers("a", "b").gradients({"a": 0.0, "b": 1.0}).history
    assert [site.module for site in _profile(history, ("a", "b")).sites] == ["b"]


def test_the_slope_and_its_interval_are_theil_and_sens():
    generator = np.random.default_rng(0)
    for n in (3, 4, 9, 30):
        values = np.round(np.exp(0.3 * np.arange(n) + generator.standard_normal(n)), 1 if n == 30 else 9) + 0.1
        sites = tuple(Site(f"l{k}", "input") for k in range(n))
        depth = tuple(k // 4 if n == 30 else k - (k % 3 == 2) for k in range(n))
        slope = Profile(sites, depth, (1,), values[None]).slope()
        expected = stats.theilslopes(np.log(values), depth)
        assert slope == pytest.approx((expected.slope, expected.low_slope, expected.high_slope), rel=1e-12)
