"""The compiled normalisers against plain PyTorch in float64: types, layouts, runs, threads, forks."""

from __future__ import annotations

import os
import threading
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from holdfast.kernels import threads
from holdfast.kernels.norm_ref import channel_moments_ref, channel_norm_ref, row_norm_ref
from holdfast.kernels.normalise import Channels, Kept, channel_norm, row_norm, takes

TYPES = (torch.float32, torch.bfloat16)
EPS = 1e-5
# Primes, one position, one channel, uneven pieces of 16,384 positions and of 8,192 columns, enough for two cores.
SHAPES = ((7, 6, 5), (3, 4, 1), (5, 6), (3, 2, 17_011), (1, 1, 40_009), (11, 12, 331), (9_001, 4), (2, 6, 3, 5, 7))
# Rows of 1 and of odd widths; fewer and more than a block of 16; with fewer and more than 64 blocks.
ROWS = ((5, 7), (1, 1), (3, 1), (17, 33), (2_003, 31), (3, 5, 64), (2, 20_011), (1_031, 97))


def parameters(channels, dtype=torch.float32):
    draw = torch.Generator().manual_seed(3)
    return tuple(torch.randn(channels, generator=draw).to(dtype).requires_grad_() for _ in range(2))


def passes(norm, x, dy, *given):
    """Output and all gradients."""
    leaves = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in (x, *given)]
    y = norm(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def gradient(x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).to(x.dtype)


def compare(found, expected, dtype, cells):
    """Output and input gradient to the type's own precision; sums over `cells` to float32's, of float64 sums."""
    half = dtype is torch.bfloat16
    # One value a statistic: all digits cancel, and what is left is multiplied by 1 / √ε = 316.
    for got, want in zip(found[:2], expected[:2], strict=True):
        scale = float(want.abs().max()) if want.shape[-1] > 1 else 50.0
        torch.testing.assert_close(
            got.double(), want, rtol=8e-3 if half else 1e-5, atol=(1e-3 if half else 2e-6) * max(scale, 1)
        )
    for got, want in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6 * cells**0.5)


def layouts(x):
    """Contiguous and, where there are positions, channels side by side; then memory that no kernel reads as it is."""
    found = {"contiguous": x.contiguous(), "every other sample": x.repeat_interleave(2, 0)[::2]}
    if x.ndim > 2:
        found["columns"] = x.movedim(1, -1).contiguous().movedim(-1, 1)
    if x.ndim > 2 and x.numel() < 10_000:  # they are made contiguous first, which needs no large ones
        found["transposed"] = x.movedim(0, -1).contiguous().movedim(-1, 0)
        found["every other position"] = x.repeat_interleave(2, -1)[..., ::2]
    return found


def runs_of(samples):
    """All samples together, each alone, and uneven runs."""
    uneven = [each for each in (0, 1, 3, samples) if each <= samples]
    return {"one": (0, samples), "each": tuple(range(samples + 1)), "uneven": tuple(sorted(set(uneven)))}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("centre", [True, False], ids=["centred", "not centred"])
def test_channels_against_float64(shape, dtype, centre):
    base = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1.5 + 0.7
    channels, values = shape[1], base[0].numel()
    for run, bounds in runs_of(shape[0]).items():
        if base.numel() > 10_000 and (run == "each" or (run != "one" and dtype is torch.bfloat16)):
            continue  # the small shapes have every combination; the large ones are there for their pieces
        for groups in {1, channels, 2 if channels % 2 == 0 else 1}:
            if run != "one" and values // groups < 2:
                continue
            for name, x in layouts(base.to(dtype)).items():
                dy, given = gradient(x), parameters(channels)
                over = Channels(groups, bounds, centre)
                kept = Kept()
                assert takes(x)
                found = passes(
                    lambda x, w, b, over=over, kept=kept: channel_norm(x, w, b, EPS, over, kept), x, dy, *given
                )
                exact = [each.detach().double() for each in given]
                expected = passes(
                    lambda x, w, b, over=over: channel_norm_ref(x, w, b, EPS, over.groups, over.bounds, over.centre),
                    x.double(),
                    dy.double(),
                    *exact,
                )
                if name != "columns":
                    assert found[0].is_contiguous() or found[0].stride() == x.stride()
                assert found[0].dtype == dtype
                compare(found, expected, dtype, x.numel() / channels)
                moments = channel_moments_ref(x.double(), groups, bounds, centre)
                for got, want in zip(kept.moments(), moments, strict=True):
                    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("centre", [True, False], ids=["centred", "not centred"])
def test_rows_against_float64(shape, dtype, centre):
    base = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 1.5 + 0.7
    views = {
        "contiguous": base,
        "every other row": base.repeat_interleave(2, 0)[::2],
        "transposed": base.mT.contiguous().mT,
    }
    for x in (each.to(dtype) for each in views.values()):
        dy, given, kept = gradient(x), parameters(shape[-1]), Kept()
        found = passes(lambda x, w, b, kept=kept: row_norm(x, w, b, EPS, centre, kept), x, dy, *given)
        exact = [each.detach().double() for each in given]
        expected = passes(lambda x, w, b: row_norm_ref(x, w, b, EPS, centre), x.double(), dy.double(), *exact)
        compare(found, expected, dtype, x.numel() / shape[-1])
        wide = x.double().reshape(-1, shape[-1])
        mean, variance = kept.moments()
        centred = wide - wide.mean(1, keepdim=True) if centre else wide
        torch.testing.assert_close(variance, centred.square().mean(1), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(mean, wide.mean(1) * float(centre), rtol=1e-6, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    channels=st.sampled_from([1, 2, 6]),
    positions=st.integers(2, 9),
    columns=st.booleans(),
    groups=st.sampled_from([1, 2, 6]),
    centre=st.booleans(),
)
def test_any_runs_and_groups(sizes, channels, positions, columns, groups, centre):
    if channels % groups:
        groups = 1
    x = torch.randn(sum(sizes), channels, positions)
    if columns:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    over = Channels(groups, tuple(accumulate([0, *sizes])), centre)
    given, dy = parameters(channels), gradient(x)
    found = passes(lambda x, w, b: channel_norm(x, w, b, EPS, over, Kept()), x, dy, *given)
    expected = passes(
        lambda x, w, b: channel_norm_ref(x, w, b, EPS, over.groups, over.bounds, over.centre),
        x.double(),
        dy.double(),
        *[each.detach().double() for each in given],
    )
    assert found[0].stride() == x.stride() or x.shape[1] == 1
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize("affine", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_without_parameters_and_without_their_gradients(affine):
    x = torch.randn(5, 6, 77).requires_grad_()
    weight, bias = (each if wanted else None for each, wanted in zip(parameters(6), affine, strict=True))
    y = channel_norm(x, weight, bias, EPS, Channels(6, (0, 5)), Kept())
    expected = channel_norm_ref(x.double(), *(e if e is None else e.double() for e in (weight, bias)), EPS, 6, (0, 5))
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    wanted = [each for each in (weight, bias) if each is not None]
    for each in torch.autograd.grad(y.sum(), wanted, retain_graph=True) if wanted else ():
        assert each.shape == (6,)
    frozen = weight if weight is None else weight.detach()
    with torch.no_grad():
        assert not channel_norm(x, frozen, None, EPS, Channels(6, (0, 5)), Kept()).requires_grad
    only = channel_norm(x.detach(), weight, bias, EPS, Channels(6, (0, 5)), Kept())
    assert only.requires_grad is bool(wanted)


@pytest.mark.parametrize("columns", [False, True])
def test_gradients_without_memory_of_their_own(columns):
    """`sum()` hands back one value for all elements, and other operations other strides."""
    x = torch.randn(4, 6, 5, 7)
    x = (x.contiguous(memory_format=torch.channels_last) if columns else x).requires_grad_()
    gradients = {
        "one value": torch.ones(()).expand(4, 6, 5, 7),
        "one a channel": torch.randn(6, 1, 1).expand(4, 6, 5, 7),
        "other layout": torch.randn(4, 5, 7, 6).movedim(-1, 1) if not columns else torch.randn(4, 6, 5, 7),
        "every other": torch.randn(8, 6, 5, 7)[::2],
    }
    weight, bias = parameters(6)
    for dy in gradients.values():
        for run in ((6, (0, 4)), (2, (0, 1, 2, 3, 4))):
            y = channel_norm(x, weight, bias, EPS, Channels(*run), Kept())
            found = torch.autograd.grad(y, [x, weight, bias], dy)
            again = torch.autograd.grad(
                channel_norm(x, weight, bias, EPS, Channels(*run), Kept()), [x, weight, bias], dy.clone()
            )
            wide = [each.detach().double().requires_grad_() for each in (x, weight, bias)]
            expected = torch.autograd.grad(channel_norm_ref(*wide, EPS, *run), wide, dy.double())
            for one, two, want in zip(found, again, expected, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
                torch.testing.assert_close(one.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strided", [False, True])
def test_second_derivatives(strided):
    x = torch.randn(6, 4, 9)
    x = x[::2] if strided else x[:3]
    for kernel, plain in (
        (
            lambda x, w, b: channel_norm(x, w, b, EPS, Channels(2, (0, 1, 3)), Kept()),
            lambda x, w, b: channel_norm_ref(x, w, b, EPS, 2, (0, 1, 3)),
        ),
        (
            lambda x, w, b: row_norm(x.movedim(1, 2), w, b, EPS, True, Kept()),
            lambda x, w, b: row_norm_ref(x.movedim(1, 2), w, b, EPS, True),
        ),
    ):
        results = []
        for norm, dtype in ((kernel, torch.float32), (plain, torch.float64)):
            leaves = [each.detach().to(dtype).requires_grad_() for each in (x, *parameters(4))]
            slopes = torch.autograd.grad(norm(*leaves).tanh().sum(), leaves, create_graph=True)
            total = sum(each.square().sum() for each in slopes)
            results.append(torch.autograd.grad(total, leaves))
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4)


def together():
    """A step large enough for several threads, in both kernels; the sums of everything it computes."""
    x = torch.randn(13, 6, 31, 23, generator=torch.Generator().manual_seed(7)).requires_grad_()
    weight, bias = parameters(6)
    y = channel_norm(x, weight, bias, EPS, Channels(6, (0, 13)), Kept())
    flat, gain, level = y.movedim(1, -1).reshape(-1, 23 * 6), *parameters(23 * 6)
    z = row_norm(flat, gain, level, EPS, True, Kept())
    found = torch.autograd.grad((z * z.detach().tanh()).sum(), [x, weight, bias, gain, level])
    return [z.detach(), *found]


@pytest.fixture
def many():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def same(one, two):
    assert all(torch.equal(*each) for each in zip(one, two, strict=True))


def test_from_several_python_threads_at_once(many):
    expected, found, errors = together(), [], []

    def work():
        try:
            found.extend(together() for _ in range(5))
        except BaseException as error:
            errors.append(error)

    hands = [threading.Thread(target=work) for _ in range(4)]
    for each in hands:
        each.start()
    for each in hands:
        each.join(60)
    assert not errors
    assert len(found) == 20
    for each in found:
        same(each, expected)


def test_backward_in_another_thread(many):
    x = torch.randn(13, 6, 713).requires_grad_()
    weight, bias = parameters(6)

    def step():
        y = channel_norm(x, weight, bias, EPS, Channels(6, (0, 13)), Kept())
        return y, torch.linspace(-1, 1, y.numel()).view_as(y)

    y, dy = step()
    expected, found = torch.autograd.grad(y, [x, weight, bias], dy), []
    y, dy = step()
    hand = threading.Thread(target=lambda: found.append(torch.autograd.grad(y, [x, weight, bias], dy)))
    hand.start()
    hand.join(60)
    same(found[0], expected)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_forked_child(many):
    """Threads do not survive a fork: a child whose parent has used them must not wait for them."""
    # torch's own operations on large tensors would wait for its threads: here are none but the kernels.
    x, weight, bias = torch.randn(13, 6, 713).requires_grad_(), *parameters(6)
    dy, rows = torch.randn(13, 6, 713), torch.randn(713, 78).requires_grad_()

    def step():
        y = channel_norm(x, weight, bias, EPS, Channels(6, (0, 13)), Kept())
        z = row_norm(rows, None, None, EPS, True, Kept())
        return [each.detach().numpy().tobytes() for each in (y, z, *torch.autograd.grad(y, [x, weight, bias], dy))]

    expected = step()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if step() == expected else 2
        finally:
            os._exit(status)
    done, status = 0, 0
    waited = threading.Event()
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        waited.wait(0.1)
    if not done:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done == child, "the child hung"
    assert os.waitstatus_to_exitcode(status) == 0


class Steps(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return together()[0]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_data_loaders_worker(many):
    expected = together()[0]
    loader = DataLoader(Steps(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60)
    assert all(torch.equal(each, expected) for each in loader)


def test_by_a_pool_of_ours_where_torchs_threads_cannot_be_had(many, monkeypatch):
    expected = together()
    monkeypatch.setattr(threads, "_team", lambda: None)
    calls, before = [], threads._run_on_pool
    monkeypatch.setattr(threads, "_run_on_pool", lambda *given: (calls.append(given[2]), before(*given)))
    same(together(), expected)
    assert calls
    assert max(calls) == 3


def test_the_reference_is_taken_when_it_is_asked_for(monkeypatch):
    x = torch.randn(13, 6, 713)
    assert takes(x)
    monkeypatch.setenv("HOLDFAST_KERNELS", "reference")
    assert not takes(x)


def test_what_the_kernels_leave_to_others():
    x = torch.randn(13, 6, 713)
    assert not takes(x, floor=x.nbytes + 1)
    assert takes(x, floor=x.nbytes)
    for other in (x.double(), x.half(), x.to("meta"), x[:0], torch.view_as_complex(x[..., :2].contiguous())):
        assert not takes(other)
    seen = []
    torch.vmap(lambda each: seen.append(takes(each)) or each)(x)
    assert seen == [False]
