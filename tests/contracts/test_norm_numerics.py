"""How exactly every normaliser computes: hard inputs against float64, gradients, half types, the same bits again."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from holdfast.norms.make import make

HALVES = (torch.bfloat16, torch.float16)
ROWS = ("layer", "rms")
BY_KERNEL = ("batch", "instance", "ghost", "sync", "group", "layer", "rms")


def test_gradients_of_the_first_and_second_order(case):
    layer = case.make(**case.tracking).double()
    # 3 samples and few positions: a gradient is checked element by element.
    x = case.x(3)[(slice(None), slice(None), *[slice(2)] * case.dims)].double().requires_grad_()
    parameters = list(layer.parameters())
    for training in (True, False):
        layer.train(training)

        def run(x, *_):
            return case.call(layer, x)

        # In full for one axis of positions, in a random direction elsewhere: the cost is quadratic in the size.
        assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=case.dims != 1)
        assert torch.autograd.gradgradcheck(run, (x, *parameters), atol=1e-4, fast_mode=True)


def test_second_derivatives_of_the_kernels_are_those_of_the_formula(case, compiled):
    layer, x = case.make(**case.tracking), case.x(wide=True)
    x = x[: len(x) // 64 * 64] if len(x) > 64 else x
    wide = copy.deepcopy(layer).double()

    def penalty(run, x):
        x = x.clone().requires_grad_()
        y = run(x)
        weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y).to(y.dtype)
        (slope,) = torch.autograd.grad((y * weights).tanh().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    ours = penalty(lambda x: case.call(layer, x), x)
    expected = penalty(lambda x: case.reference(wide, x), x.double())
    torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=2e-5 * float(expected.abs().max()))


HARD = {
    "narrow and far": lambda x: x * 0.01 + 100,
    "far": lambda x: x + 2000,
    "constant": lambda x: x * 0 + 7.3,
    "zero": lambda x: x * 0,
    "a constant channel": lambda x: torch.cat([x[:, :1] * 0 + 0.1, x[:, 1:]], 1),
    "one far out": lambda x: torch.where(torch.arange(x.numel()).view_as(x) == 11, 1e4, x),
    "tiny": lambda x: x * 1e-20,
    "large": lambda x: x * 1e15,
}


def tolerance(x):
    """What the input's own digits allow: a mean is known to one of them, whatever the order of the sum."""
    wide = x.double()
    spread = max(float(wide.std(0).min()), 3e-3)
    return 2e-5 + 4 * float(torch.finfo(torch.float32).eps * wide.abs().max()) / spread


def test_hard_inputs_against_float64(case, kernel):
    for hard, spoil in HARD.items():
        x = spoil(case.x(16 if case.dims == 0 else 5, wide=kernel))
        layer = case.make(**({"affine": False} if case.offers("affine") else {}))
        expected = case.reference(copy.deepcopy(layer).double(), x.double())
        y = case.call(layer, x).double()
        assert y.isfinite().all(), hard
        found = {"rtol": 2e-5, "atol": tolerance(x)}
        torch.testing.assert_close(y, expected, **found, msg=lambda text, hard=hard: f"{hard}: {text}")


@pytest.mark.parametrize("offset", [2000.0, -2000.0])
def test_four_features_far_from_zero(case, offset):
    """The rows of 4 that break a variance of E[x²] − μ²: layers over channels see one row of 4 each."""
    if case.kind not in ("layer", "rms", "group") or case.dims:
        pytest.skip("not a layer over channels alone")
    settings = {"groups": 1} if case.kind == "group" else {}
    layer = make(case.kind, 4, 0, **settings)
    x = torch.randn(4097, 4) + offset
    expected = layer.spec.reference(x.double(), eps=layer.eps or 0.0)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-2)
    assert (layer(x).double() - expected).abs().mean() < 5e-4


@pytest.mark.parametrize("power", [30, 18, -15, -30])
def test_huge_and_tiny_values_by_the_kernels(case, compiled, power):
    """|x| ≈ 1e30 has a square beyond float32, 1e-30 one below it."""
    x = case.x(wide=True) * 10.0**power
    if case.kind not in BY_KERNEL or (case.kind in ROWS and case.dims):
        pytest.skip("in plain PyTorch")
    layer = case.make(eps=0.0)
    y = case.call(layer, x)
    expected = case.reference(copy.deepcopy(layer).double(), x.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["batch", "instance", "group", "layer", "rms"])
def test_a_group_of_forty_million(kind):
    """Σ over 4e7 elements: a float32 counter stops at 1.7e7, a float32 sum loses its last digits long before."""
    n = 40_000_000
    x = (torch.randn(n, generator=torch.Generator().manual_seed(0)) * 0.01 + 100).view(1, 1, n)
    if kind in ("layer", "rms"):
        layer, x = make(kind, n, 0), x.view(1, n)
    else:
        layer = make(kind, 1, 1, **({"groups": 1} if kind == "group" else {}), affine=False)
    y = layer(x).detach().flatten()
    wide = x.flatten().double()
    centred = wide if kind == "rms" else wide - wide.mean()
    expected = centred / (centred.square().mean() + (layer.eps or torch.finfo(torch.float32).eps)).sqrt()
    # 100 is known to 8e-6, which is 8e-4 of the spread.
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=2e-3)
    assert abs(float((y.double() - expected).mean())) < 1e-4


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_computed_in_float32(case, dtype, kernel):
    if kernel and dtype is torch.float16:
        pytest.skip("there is no kernel of float16")
    x = case.x(wide=kernel).to(dtype)
    for whole in (True, False):
        layer = case.make(**case.tracking)
        layer = layer.to(dtype) if whole else layer
        wide = copy.deepcopy(layer).double()
        if case.kind == "rms":
            wide.eps = torch.finfo(torch.float32).eps if getattr(wide, "eps", None) is None else wide.eps
        for training in (False, True):
            y = case.call(layer.train(training), x)
            running = None if training else case.running(layer, x)
            expected = case.reference(wide.train(training), x.double(), running)
            assert y.dtype == dtype
            ulp = torch.finfo(dtype).eps
            torch.testing.assert_close(y.double(), expected, rtol=ulp, atol=ulp / 8)


@pytest.mark.parametrize("dtype", HALVES)
def test_running_statistics_stay_wide(tracked, dtype):
    layer = tracked.make(**tracked.tracking)
    layer.running_mean += 0.1234567
    layer = layer.to(dtype)
    assert layer.running_mean.dtype == layer.running_var.dtype == torch.float32
    assert layer.running_mean.flatten()[0].item() == pytest.approx(0.1234567, rel=1e-7)
    assert tracked.plain(**tracked.tracking, dtype=dtype).running_var.dtype == torch.float32
    for name in ("half", "bfloat16"):
        nested = nn.Sequential(tracked.make(**tracked.tracking))
        assert getattr(nested, name)()[0].running_var.dtype == torch.float32
    assert layer.double().running_mean.dtype == torch.float64


def test_under_autocast_the_type_of_the_input_stays(case):
    layer = case.make(**case.tracking)
    weight = getattr(layer, "weight", None)
    for dtype, x in itertools.product((torch.float32, torch.bfloat16), (case.x(), case.x(wide=True))):
        expected = case.call(copy.deepcopy(layer), x.to(dtype))
        with torch.autocast("cpu", torch.bfloat16):
            y = case.call(copy.deepcopy(layer), x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
    if weight is not None:
        with torch.autocast("cpu", torch.bfloat16):
            y = case.call(layer, case.x().bfloat16())
        y.float().sum().backward()
        assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_the_same_bits_from_run_to_run_and_for_any_number_of_threads(case, compiled, last, dtype):
    if last and case.dims < 2:
        pytest.skip("channels_last is of 2 and 3 axes")
    x = case.x(wide=True).to(dtype)
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    x = x.contiguous(memory_format=formats[case.dims]) if last else x
    same_bits(lambda: case.make(**case.tracking), case.call, x, parameters=not case.own.summed)


@pytest.mark.parametrize("kind", ["batch", "instance", "group", "ghost"])
@pytest.mark.parametrize("shape", [(3, 1, 211, 173), (2, 2, 307, 101), (40, 5, 37, 11)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_the_same_bits_with_fewer_channels_than_threads(compiled, kind, shape, last):
    x = torch.randn(shape)
    if last:
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    settings = {"affine": False, "groups": 1} if kind == "group" else {}
    same_bits(lambda: make(kind, shape[1], 2, **settings), lambda layer, x: layer(x), x)


def test_the_same_bits_from_run_to_run_whoever_serves(case):
    same_bits(lambda: case.make(**case.tracking), case.call, case.x(wide=True), threads=(1, 1))


def same_bits(make_layer, call, x, threads=(1, 2, 3), parameters=True):
    results, before = [], torch.get_num_threads()
    try:
        for each in threads:
            torch.set_num_threads(each)
            layer = make_layer()
            leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
            y = call(layer, leaf)
            dy = torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype)
            found = torch.autograd.grad(y, [leaf, *layer.parameters()], dy, allow_unused=True)
            results.append([y.detach(), *(found if parameters else found[:1]), *layer.state_dict().values()])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one is two is None or torch.equal(one, two)
