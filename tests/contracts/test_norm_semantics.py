"""What every normaliser owes in meaning: torch's function, statistics, defaults, keys and refusals."""

from __future__ import annotations

import copy
import inspect
import itertools
import warnings

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.norms.make import MAKERS, make
from holdfast.norms.normaliser import Normaliser

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
MOMENTA = (0.1, 0.0, 1.0, None)


def combinations(case, **axes):
    """Every combination of the settings that the constructor has."""
    offered = {name: values for name, values in axes.items() if case.offers(name)}
    for values in itertools.product(*offered.values()):
        yield dict(zip(offered, values, strict=True))


def settings_of(case):
    affine = {"affine": (True, False), "elementwise_affine": (True, False), "bias": (True, False)}
    tracking = {"track_running_stats": (True, False) if case.own.untracked else (True,), "momentum": MOMENTA}
    return combinations(case, **affine, **tracking)


def gradients(case, layer, x, call=None):
    """Output, and the gradients of a sum with unlike weights, of the input and every parameter."""
    x = x.clone().requires_grad_()
    y = (call or case.call)(layer, x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(y.dtype)
    wanted = [x, *(each for each in layer.parameters() if each.requires_grad)]
    return y.detach(), torch.autograd.grad(y, wanted, dy, allow_unused=True)


def test_every_member_is_made_and_called(case):
    layer = case.make()
    x = case.x()
    try:
        y = case.call(layer, x)
    except TypeError as error:
        pytest.fail(f"{case}: {error}; add how it is called to TAILORED in tests/contracts/conftest.py")
    assert isinstance(layer, Normaliser)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert layer.spec.formula.startswith("y = ")


@pytest.mark.parametrize("kind", MAKERS)
def test_a_number_of_axes_that_a_member_is_not_for_is_refused(kind, family):
    for dims in set(range(4)) - {case.dims for case in family if case.kind == kind}:
        with pytest.raises((InputError, ValueError), match=r"position|D input"):
            make(kind, 6, dims)(torch.randn(5, 6, *[3] * dims))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_output_and_gradients_are_the_formulas(case, kernel, training):
    x = case.x(wide=kernel)
    layer = case.make(**case.tracking).train(training)
    running = None
    if case.tracks and not training:
        layer.running_mean += torch.linspace(-1, 1, 6)
        layer.running_var += torch.linspace(0, 2, 6)
        running = case.running(layer, x)
    wide_layer = copy.deepcopy(layer).double()
    y, found = gradients(case, layer, x)
    expected, wanted = gradients(case, wide_layer, x.double(), lambda layer, x: case.reference(layer, x, running))
    torch.testing.assert_close(y.double(), expected, **CLOSE)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()) + 1e-6)


def test_torchs_layer_in_every_combination_of_settings(twinned):
    for settings in settings_of(twinned):
        ours, theirs = twinned.make(**settings), twinned.twin(**settings)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        for seed in range(4):
            x = twinned.x(samples=5 + 2 * seed, seed=seed) + seed
            same_pass(twinned, ours, theirs, x, settings)
        same_pass(twinned, ours.eval(), theirs.eval(), x, settings)


def same_pass(case, ours, theirs, x, settings):
    y, found = gradients(case, ours, x)
    expected, wanted = gradients(case, theirs, x)
    torch.testing.assert_close(y, expected, **CLOSE, msg=lambda text: f"{settings}: {text}")
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5, msg=lambda text: f"{settings}: {text}")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", MOMENTA)
def test_running_statistics_by_the_kernel_are_torchs(twinned, compiled, momentum):
    if not twinned.tracks:
        pytest.skip("keeps no running statistics")
    settings = twinned.tracking | {"momentum": momentum}
    ours, theirs = twinned.make(**settings), twinned.twin(**settings)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for seed in range(3):
        x = twinned.x(wide=True, seed=seed) * (1 + seed)
        if twinned.kind == "ghost":
            x = x[:63]  # one chunk
        ours(x)
        theirs(x)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=1e-5, atol=1e-5)


def test_output_by_the_biased_variance_and_running_by_the_unbiased(tracked):
    layer = tracked.make(**tracked.tracking | {"momentum": 1.0})
    x = tracked.x(samples=3)
    tracked.call(layer, x)
    expected = tracked.own.statistics(x.double())
    for buffer, wanted in zip(tracked.running(layer, x), expected, strict=True):
        torch.testing.assert_close(buffer.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", MOMENTA)
def test_running_statistics_move_by_the_momentum(tracked, momentum):
    layer = tracked.make(**tracked.tracking | {"momentum": momentum})
    expected, counts = [each.double() for each in tracked.running(layer, tracked.x())], tracked.kind != "instance"
    for batch in range(1, 4):
        x = tracked.x(samples=2 * batch + 1, seed=batch)
        with torch.set_grad_enabled(batch != 2):
            tracked.call(layer, x)
        share = momentum if momentum is not None else 1 / batch if counts else 0.0
        batchs = tracked.own.statistics(x.double())
        expected = [(1 - share) * old + share * new for old, new in zip(expected, batchs, strict=True)]
        for buffer, wanted in zip(tracked.running(layer, x), expected, strict=True):
            torch.testing.assert_close(buffer.double(), wanted, rtol=1e-5, atol=1e-6)
        if counts:
            assert (tracked.batches(layer, x) == batch).all()
            assert layer.num_batches_tracked.dtype == torch.int64
    before = copy.deepcopy(layer.state_dict())
    tracked.call(layer.eval(), x)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_defaults_are_torchs(twinned):
    ours = inspect.signature(type(twinned.plain())).parameters
    theirs = inspect.signature(type(twinned.twin())).parameters
    for name, parameter in theirs.items():
        if name in ours and name not in twinned.own.differs:
            assert ours[name].default == parameter.default, name
    named = ("num_features", "num_groups", "num_channels", "normalized_shape", "eps", "momentum", "affine")
    shared = [name for name in theirs if name in named]
    assert [name for name in ours if name in named][: len(shared)] == shared


def test_rms_norms_epsilon_is_the_machines_of_the_computation():
    for dtype, compute in ((torch.float32,) * 2, (torch.bfloat16, torch.float32), (torch.float64,) * 2):
        x = (torch.tensor([[1e-4, -3e-4, 2e-4]], dtype=torch.float64) * (1e-4 if compute is torch.float64 else 1)).to(
            dtype
        )
        layer = make("rms", 3, 0, dtype=dtype)
        wide = x.double()
        expected = wide / (wide.square().mean() + torch.finfo(compute).eps).sqrt()
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=0)


def test_without_running_statistics_evaluation_takes_the_batchs(tracked):
    if not tracked.own.untracked:
        with pytest.raises(InputError, match="running statistics"):
            tracked.plain(track_running_stats=False)
        return
    layer = tracked.make(track_running_stats=False)
    x = tracked.x()
    training = tracked.call(layer, x)
    torch.testing.assert_close(tracked.call(layer.eval(), x), training, rtol=0, atol=0)
    assert layer.running_mean is None
    assert layer.running_var is None
    removed = tracked.make(**tracked.tracking).eval()
    removed.running_mean = removed.running_var = None
    if tracked.kind != "instance":  # torch's goes by its setting there
        torch.testing.assert_close(tracked.call(removed, x), training, **CLOSE)


def test_one_value_a_statistic_raises_as_torchs(twinned):
    if twinned.own.lone is None:
        pytest.skip("takes one value a statistic")
    x = torch.randn((2, 6, *[1] * twinned.dims) if twinned.kind == "instance" else (1, 6, *[1] * twinned.dims))
    with pytest.raises(twinned.own.lone, match="Expected more than 1") as ours:
        twinned.call(twinned.make(), x)
    with pytest.raises(twinned.own.lone) as theirs:
        twinned.twin()(x)
    assert str(ours.value) == str(theirs.value)


def test_a_group_of_one_value_warns_once_or_is_refused(monkeypatch):
    layer = make("group", 6, 0, groups=6)
    monkeypatch.setattr(type(layer), "_warned", False)
    x = torch.randn(4, 6)
    with pytest.warns(UserWarning, match="each of the 6 groups holds one value"):
        y = layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(layer(x), y)
    torch.testing.assert_close(y, nn.GroupNorm(6, 6)(x), rtol=0, atol=0)
    with pytest.raises(InputError, match=r"more than 1 value in a group.*GroupNorm\(3, 6\)"):
        make("group", 6, 0, groups=6, strict=True)(x)
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        make("group", 1, 0, groups=1)(torch.randn(1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_batch_leaves_everything_alone(case, dtype):
    layer = case.make(**case.tracking)
    before = copy.deepcopy(layer.state_dict())
    for training in (True, False):
        x = torch.empty((0, *case.x().shape[1:]), dtype=dtype, requires_grad=True)
        y = case.call(layer.train(training), x)
        assert y.shape == x.shape
        assert y.dtype == dtype
        found = torch.autograd.grad(y.sum(), [x, *layer.parameters()], allow_unused=True)
        assert found[0] is not None
        for each, parameter in zip(found[1:], layer.parameters(), strict=True):
            assert each is None or torch.equal(each, torch.zeros_like(parameter))
    weight = getattr(layer, "weight", None)
    if weight is not None:
        grads = torch.autograd.grad(case.call(layer, x).sum(), weight, allow_unused=True)
        assert grads[0] is not None
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_checkpoints_load_both_ways(twinned):
    for settings in settings_of(twinned):
        ours, theirs = twinned.make(**settings), twinned.twin(**settings)
        twinned.call(ours, twinned.x())
        assert list(ours.state_dict()) == list(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict(), strict=True)
        back = twinned.plain(**settings)
        back.load_state_dict(theirs.state_dict(), strict=True)
        torch.testing.assert_close(dict(back.state_dict()), dict(ours.state_dict()), rtol=0, atol=0)


def test_checkpoints_without_the_counter_load(tracked):
    layer = tracked.make(**tracked.tracking)
    old = {name: each for name, each in layer.state_dict().items() if name != "num_batches_tracked"}
    if hasattr(old, "_metadata"):
        old._metadata = None
    tracked.plain(**tracked.tracking).load_state_dict(old, strict=True)


REFUSED = (ValueError, RuntimeError)


def test_other_channels_are_refused(case):
    x = case.x()
    wrong = torch.cat([x, x[:, :1]], 1)
    if case.kind == "instance":  # torch's takes any number where there is nothing to learn
        torch.testing.assert_close(case.call(case.make(), wrong)[:, :6], case.call(case.make(), x))
    layer = case.make(affine=True) if case.kind == "instance" else case.make()
    for training in (True, False):
        with pytest.raises(REFUSED, match=r"6|\b7\b") as caught:
            case.call(layer.train(training), wrong)
        assert "7" in str(caught.value), "the text names what came"


def test_integers_are_refused(case):
    for training in (True, False):
        with pytest.raises((*REFUSED, NotImplementedError), match=r"float|[Ll]ong|[Ii]nt"):
            case.call(case.make().train(training), case.x().long())


def test_bad_settings_are_refused(case):
    for eps in (-1e-5, float("nan"), float("inf")):
        if case.offers("eps"):
            with pytest.raises(InputError, match="eps"):
                case.make(eps=eps)
    for momentum in (-0.1, 1.1, float("nan")):
        if case.offers("momentum") and case.tracks:
            with pytest.raises(InputError, match="momentum in"):
                case.make(momentum=momentum)


@pytest.mark.parametrize("groups", [0, 4, 7, 12])
def test_groups_that_do_not_divide_are_refused(groups):
    with pytest.raises(InputError, match=r"groups that divide the channels.*type: GroupNorm\([1236], 6\)"):
        make("group", 6, 2, groups=groups)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_mixed_types_are_refused_as_torchs_or_computed_right(case, training, kernel):
    x = case.x(wide=kernel)
    for layer, given in ((case.make().double(), x), (case.make(), x.double())):
        layer = layer.train(training)
        running = None
        if case.tracks and not training and layer.running_mean is not None:
            running = case.running(layer, x)
        expected = case.reference(copy.deepcopy(layer).double(), x.double(), running)
        try:
            y = case.call(layer, given)
        except REFUSED as error:
            if not any(word in str(error).lower() for word in ("type", "float", "double")):
                raise
            continue
        torch.testing.assert_close(y.double(), expected, **CLOSE)
