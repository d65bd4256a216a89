"""What is done to a normaliser from outside: layouts, copies, devices, vmap, checkpointing, accumulation, compilers."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from holdfast.core.protocols import Telemetry
from holdfast.norms.make import MAKERS
from holdfast.norms.running import accumulate

FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


def test_channels_last_in_and_out(case, kernel):
    if case.dims < 2:
        pytest.skip("channels_last is of 2 and 3 axes")
    for samples in (13, 2, 1):
        x = case.x(samples, wide=kernel)[:samples]
        layer = case.make(**case.tracking)
        expected = case.call(copy.deepcopy(layer), x)
        last = x.contiguous(memory_format=FORMATS[case.dims]).requires_grad_()
        for training in (True, False):
            y = case.call(layer.train(training), last)
            assert y.is_contiguous(memory_format=FORMATS[case.dims])
            if training:
                torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        slope = torch.autograd.grad(y.square().sum(), last)[0]  # by a gradient of that layout
        assert slope.is_contiguous(memory_format=FORMATS[case.dims])


def test_strided_inputs_are_read_right(case, kernel):
    layer, x = case.make(), case.x(wide=kernel)
    if case.kind == "ghost":
        x = x[: len(x) // 32 * 32 or len(x)]
    expected = case.call(layer, x)
    views = {
        "every other sample": x.repeat_interleave(2, 0)[::2],
        "a slice of channels": torch.cat([x, x], 1)[:, 6:],
        "samples innermost": x.movedim(0, -1).contiguous().movedim(-1, 0),
        "an offset": torch.cat([x[:1], x])[1:],
    }
    for name, view in views.items():
        leaf = view.detach().requires_grad_()
        y = case.call(layer, leaf)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        (slope,) = torch.autograd.grad((y * expected.detach()).sum(), leaf)
        same = x.clone().requires_grad_()
        (wanted,) = torch.autograd.grad((case.call(layer, same) * expected.detach()).sum(), same)
        torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-4)


def test_copies_pickles_and_checkpoints_are_the_same_layer(case):
    layer, x = case.make(**case.tracking), case.x()
    case.call(layer, x.requires_grad_()).sum().backward()
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(stored, weights_only=False)]
    expected = case.call(copy.deepcopy(layer).eval(), x)
    for each in copies:
        assert repr(each) == repr(layer)
        assert each.telemetry() == {}
        assert torch.equal(case.call(each.eval(), x), expected)
        assert list(each.state_dict()) == list(layer.state_dict())


def test_the_meta_device(case):
    made = case.plain(**case.tracking, device="meta")
    assert all(each.is_meta for each in made.state_dict().values())
    y = case.call(case.make(**case.tracking).to("meta"), case.x().to("meta"))
    assert y.is_meta
    assert y.shape == case.x().shape
    empty = made.to_empty(device="cpu")
    if hasattr(empty, "reset_parameters"):
        empty.reset_parameters()
        expected = case.plain(**case.tracking).state_dict()
        for name, value in empty.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_vmap_where_torchs_layer_has_it(case):
    track = {"track_running_stats": False} if case.tracks and case.own.untracked else {}
    if case.tracks and not track:
        pytest.skip("torch's layers with running statistics cannot be mapped either")
    layer = case.make(**track)
    x = torch.stack([case.x(seed=seed) for seed in range(3)])
    expected = torch.stack([case.call(layer, each) for each in x])
    torch.testing.assert_close(torch.vmap(lambda x: case.call(layer, x))(x), expected, rtol=1e-5, atol=1e-5)
    wide = torch.stack([case.x(wide=True, seed=seed) for seed in range(2)])
    expected = torch.stack([case.call(layer, each) for each in wide])
    torch.testing.assert_close(torch.vmap(lambda x: case.call(layer, x))(wide), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, at the first jvp
def test_gradients_of_torch_func_and_forward_mode(case, kernel):
    track = {"track_running_stats": False} if case.tracks and case.own.untracked else {}
    if case.tracks and not track:
        pytest.skip("keeps running statistics")
    layer, x = case.make(**track), case.x(wide=kernel)
    weights = torch.linspace(-1, 1, x.numel()).view_as(x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad((case.call(layer, leaf) * weights).sum(), leaf)
    found = torch.func.grad(lambda x: (case.call(layer, x) * weights).sum())(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    _, along = torch.func.jvp(lambda x: case.call(layer, x), (x,), (weights,))
    torch.testing.assert_close((along * weights).sum(), (expected * weights).sum(), rtol=1e-3, atol=1e-2)


def test_backward_in_evaluation(case, kernel):
    layer, x = case.make(**case.tracking), case.x(wide=kernel)
    case.call(layer, x)
    layer.eval()
    before = copy.deepcopy(layer.state_dict())
    wide = copy.deepcopy(layer).double()
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = case.call(layer, leaf), case.reference(wide, exact, case.running(layer, x))
    weights = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)
    found = torch.autograd.grad(y, [leaf, *layer.parameters()], weights.float(), allow_unused=True)
    wanted = torch.autograd.grad(expected, [exact, *wide.parameters()], weights, allow_unused=True)
    for got, want in zip(found, wanted, strict=True):
        assert (got is None) is (want is None)
        if want is not None:
            atol = 3e-7 * x.numel() / 6 + 1e-5  # a float32 sum over all cells of a channel, by torch
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=atol)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("reentrant", [False, True], ids=["saved tensors", "reentrant"])
def test_checkpointing_moves_running_statistics_once(case, kernel, reentrant):
    plain, x = case.make(**case.tracking), case.x(wide=kernel)
    again = copy.deepcopy(plain)
    results = []
    for layer, run in ((plain, lambda x: case.call(plain, x)), (again, lambda x: case.call(again, x))):
        leaf = x.clone().requires_grad_()
        y = run(leaf) if layer is plain else checkpoint(run, leaf, use_reentrant=reentrant)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        results.append([y.detach(), leaf.grad, *(each.grad for each in layer.parameters())])
    for one, two in zip(*results, strict=True):
        assert one is two is None or torch.equal(one, two)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_accumulation_pools_and_moves_once(tracked, kernel):
    layer = tracked.make(**tracked.tracking | {"momentum": 0.25})
    alone = copy.deepcopy(layer)
    optimizer = torch.optim.SGD([*layer.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    parts = [tracked.x(samples, wide=False, seed=samples) + samples for samples in (3, 5, 4)]
    if kernel:
        parts = [tracked.x(wide=True, seed=seed) + seed for seed in range(2)]
    if tracked.kind == "instance":
        parts = [part[:3] for part in parts]
    before = {name: layer.state_dict()[name].clone() for name in ("running_mean", "running_var", "num_batches_tracked")}
    with accumulate(layer, optimizer):
        for part in parts:
            leaf = part.clone().requires_grad_()
            y = tracked.call(layer, leaf)
            assert torch.equal(y, tracked.call(copy.deepcopy(alone), part)), "batch statistics stay each batch's"
            y.sum().backward()
            assert all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())
        optimizer.step()
        if tracked.kind != "instance":
            assert (tracked.batches(layer, parts[0]) == 1).all()
        first = tracked.running(layer, parts[0])
        optimizer.step()  # nothing was pooled: nothing moves
        assert all(torch.equal(*each) for each in zip(first, tracked.running(layer, parts[0]), strict=True))
    mean, unbiased = tracked.own.statistics(torch.cat(parts).double())
    if tracked.kind == "ghost" and kernel:
        return  # pooled within chunks, as tests of the layer say
    torch.testing.assert_close(first[0].double(), 0.25 * mean, rtol=1e-5, atol=1e-5)
    if tracked.kind != "instance":
        torch.testing.assert_close(first[1].double(), 0.75 + 0.25 * unbiased, rtol=1e-5, atol=1e-5)
    moved = tracked.running(layer, parts[0])
    tracked.call(layer, parts[0])
    assert not torch.equal(moved[0], tracked.running(layer, parts[0])[0]), "afterwards it moves batch by batch"


def test_telemetry_is_of_the_last_pass_in_training(case, kernel):
    layer, x = case.make(**case.tracking), case.x(wide=kernel)
    assert isinstance(layer, Telemetry)
    assert layer.telemetry() == {}
    case.call(layer, x)
    kept = {name: each.clone() for name, each in layer.telemetry().items()}
    assert all(each.isfinite().all() and not each.requires_grad for each in kept.values())
    case.call(layer.eval(), x + 3)
    assert all(torch.equal(each, kept[name]) for name, each in layer.telemetry().items())
    if case.own.statistics_kept:
        assert {"mean", "variance"} <= set(kept) or any(name.endswith("mean_square") for name in kept)
    if "variance" in kept and case.kind in ("batch", "sync", "renorm", "batch-layer", "switchable"):
        cells = x.double().transpose(0, 1).flatten(1)
        torch.testing.assert_close(kept["mean"].double().flatten(), cells.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            kept["variance"].double().flatten(), cells.var(1, correction=0), rtol=1e-4, atol=1e-5
        )


COMPILES = """
import sys, copy, torch
sys.path.insert(0, "tests/contracts")
import conftest
from torch._dynamo.utils import counters
for case in conftest.CASES:
    if case.kind != sys.argv[1]:
        continue
    torch.compiler.reset()
    for training in (True, False):
        layer, x = case.make(**case.tracking).train(training), case.x()
        case.call(layer, x)  # a reference batch is taken outside
        eager = copy.deepcopy(layer)
        run = torch.compile(lambda x: case.call(layer, x), fullgraph=True, backend="aot_eager")
        for seed in range(2):
            one, two = (case.x(seed=seed).requires_grad_() for _ in range(2))
            y, expected = run(one), case.call(eager, two)
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
            weights = torch.linspace(-1, 1, y.numel()).view_as(y)
            (y * weights).sum().backward()
            (expected * weights).sum().backward()
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-4)
        assert not counters["graph_break"], counters["graph_break"]
        torch.testing.assert_close(dict(layer.state_dict()), dict(eager.state_dict()), rtol=1e-5, atol=1e-6)
        if training:
            ours, theirs = layer.telemetry(), eager.telemetry()
            names = [each for each in theirs if not each.startswith("gradient")]
            assert set(names) <= set(ours), (case, list(ours), names)
            for name in names:
                torch.testing.assert_close(
                    ours[name].double().flatten(), theirs[name].double().flatten(), rtol=1e-4, atol=1e-5
                )
    print(case, "compiles")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_compiles_whole(kind):
    # In a process of its own: the shape checks of the tests cannot be traced.
    made = subprocess.run([sys.executable, "-c", COMPILES, kind], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-3000:]
    assert "compiles" in made.stdout


def test_constructors_take_device_and_dtype(case):
    offered = inspect.signature(type(case.plain())).parameters
    assert {"device", "dtype"} <= set(offered)
    layer = case.plain(dtype=torch.float64)
    assert all(each.dtype is torch.float64 for each in layer.parameters())
    assert case.call(layer, case.x().double()).dtype is torch.float64
