import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from holdfast.core.errors import InputError
from holdfast.norms import accumulate, in_domain, make
from holdfast.norms.domain_batch_norm import DomainBatchNorm

LABELS = torch.tensor([2, 0, 2, 0, 0, 2, 2])  # none of domain 1
SHAPES = [(), (5,), (3, 4), (2, 3, 2)]


def shaken(domains=3, **settings):
    norm = DomainBatchNorm(4, domains, **settings)
    for each in norm.parameters():
        nn.init.normal_(each)
    return norm


def batch(positions=(), dtype=torch.float32):
    """Domains far from each other."""
    x = torch.randn(len(LABELS), 4, *positions) * (1 + LABELS.view(-1, 1, *[1] * len(positions)))
    return (x + 10 * LABELS.view(-1, 1, *[1] * len(positions))).to(dtype)


def formula(norm, x, labels):
    """BatchNorm of each domain's samples in float64; means and unbiased variances by domain."""
    out, moments = torch.zeros_like(x, dtype=torch.float64), {}
    for d in labels.unique().tolist():
        cells = x[labels == d].double()
        axes, shape = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
        mean, biased = cells.mean(axes).view(shape), cells.var(axes, correction=0).view(shape)
        gain, level = (each if each.dim() == 1 else each[d] for each in (norm.weight, norm.bias))
        hat = (cells - mean) / (biased + norm.eps).sqrt()
        out[labels == d] = hat * gain.double().view(shape) + level.double().view(shape)
        moments[d] = (cells.mean(axes), cells.var(axes, correction=1))
    return out, moments


@pytest.mark.parametrize("positions", SHAPES)
@pytest.mark.parametrize("own_affine", [False, True])
def test_a_mixed_batch_is_a_batch_norm_of_each_domain(positions, own_affine):
    norm, x = shaken(own_affine=own_affine, momentum=0.25), batch(positions)
    expected, moments = formula(norm, x, LABELS)
    torch.testing.assert_close(norm(x, LABELS).double(), expected, rtol=1e-4, atol=1e-5)
    for d, (mean, variance) in moments.items():
        torch.testing.assert_close(norm.running_mean[d].double(), 0.25 * mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var[d].double(), 0.75 + 0.25 * variance, rtol=1e-4, atol=1e-5)
    assert torch.equal(norm.running_mean[1], torch.zeros(4))
    assert torch.equal(norm.running_var[1], torch.ones(4))
    assert norm.num_batches_tracked.tolist() == [1, 0, 1]


@pytest.mark.parametrize("positions", SHAPES)
@pytest.mark.parametrize("own_affine", [False, True])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_a_batch_of_one_domain_is_the_same_by_its_label_or_by_labels(positions, own_affine, momentum):
    norm = shaken(own_affine=own_affine, momentum=momentum)
    other, x = copy.deepcopy(norm), batch(positions)
    for training in (True, True, False):
        one, mixed = norm.train(training)(x, 1), other.train(training)(x, torch.ones(len(x), dtype=torch.long))
        torch.testing.assert_close(one, mixed, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dict(norm.state_dict()), dict(other.state_dict()), rtol=1e-5, atol=1e-5)
    assert norm.num_batches_tracked.tolist() == [0, 2, 0]


def test_one_domain_is_torchs_batch_norm():
    ours, theirs = shaken(1), nn.BatchNorm2d(4)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)
        theirs.bias.copy_(ours.bias)
    for _ in range(3):
        x = batch((3, 3))
        torch.testing.assert_close(ours(x, 0), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.running_mean[0], theirs.running_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.running_var[0], theirs.running_var, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.eval()(x, 0), theirs.eval()(x), rtol=1e-5, atol=1e-5)


def test_evaluation_takes_the_running_statistics_of_each_samples_domain():
    norm, x = shaken(own_affine=True), batch((3,))
    for _ in range(3):
        norm(batch((3,)), LABELS)
    before = copy.deepcopy(norm.eval().state_dict())
    y = norm(x, LABELS)
    for i, d in enumerate(LABELS.tolist()):
        torch.testing.assert_close(y[i : i + 1], norm(x[i : i + 1], d))
        hat = (x[i].T - norm.running_mean[d]) / (norm.running_var[d] + norm.eps).sqrt()
        torch.testing.assert_close(y[i].T, hat * norm.weight[d] + norm.bias[d], rtol=1e-5, atol=1e-5)
    assert all(torch.equal(each, before[name]) for name, each in norm.state_dict().items())


def test_adaptation_by_statistics_alone():
    """The method of the paper: a network carried to a new domain whose inputs are shifted and scaled."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), shaken(2, momentum=None))
    x = torch.randn(512, 3)
    with torch.no_grad():
        for domain, given in enumerate((x, 3 * x)):
            with in_domain(model, domain):
                model(given)
        model.eval()
        outputs = []
        for domain, given in enumerate((x, 3 * x)):
            with model[1].domain(domain):
                outputs.append(model(given))
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)


def test_a_broken_sample_stays_in_its_domain():
    norm, x = shaken(), batch((3,))
    clean = copy.deepcopy(norm)
    spoilt = x.clone()
    spoilt[0] = torch.nan
    y, want = norm(spoilt, LABELS), clean(x, LABELS)
    assert torch.equal(y[LABELS == 0], want[LABELS == 0])
    assert torch.equal(norm.running_mean[:2], clean.running_mean[:2])


def test_labels_for_models_that_do_not_pass_them_on():
    model = nn.Sequential(nn.Linear(4, 4), shaken(), nn.ReLU(), nn.Sequential(shaken()))
    x = torch.randn(len(LABELS), 4)
    with in_domain(model, 2):
        model(x)
        with in_domain(model, LABELS):
            model(x)
        with pytest.raises(RuntimeError), model[1].domain(0):
            model(torch.randn(2, 9))
        model(x)
    assert model[1].num_batches_tracked.tolist() == model[3][0].num_batches_tracked.tolist() == [1, 0, 3]
    with pytest.raises(InputError, match="the domain of the batch"):
        model(x)
    with pytest.raises(InputError, match="a model with a DomainBatchNorm"), in_domain(nn.Linear(1, 1), 0):
        pass
    with pytest.raises(InputError, match="domain=3"), in_domain(model, 3):
        pass
    with model[1].domain(1):  # what is said with the call is stronger
        model[1](x, 0)
    assert model[1].num_batches_tracked.tolist() == [2, 0, 3]


@pytest.mark.parametrize("own_affine", [False, True])
@pytest.mark.parametrize("labels", [1, torch.tensor([0, 2, 2, 0, 2])], ids=["one", "mixed"])
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training, labels, own_affine):
    norm = shaken(own_affine=own_affine).double().train(training)
    x = torch.randn(5, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: norm(x, labels), (x, *norm.parameters()))
    assert torch.autograd.gradgradcheck(lambda x, *_: norm(x, labels), (x, *norm.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("labels", [1, LABELS], ids=["one", "mixed"])
@pytest.mark.parametrize("training", [True, False])
def test_halves_are_computed_in_float32(dtype, labels, training):
    norm = shaken(own_affine=True).to(dtype)
    wide, x = copy.deepcopy(norm).float().train(training), batch((3,), dtype)
    assert norm.running_var.dtype == DomainBatchNorm(4, dtype=dtype).running_mean.dtype == torch.float32
    y = norm.train(training)(x, labels)
    assert y.dtype == dtype
    torch.testing.assert_close(y, wide(x.float(), labels).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(norm.running_mean, wide.running_mean)


@pytest.mark.parametrize("labels", [0, torch.zeros(0, dtype=torch.long)], ids=["one", "mixed"])
@pytest.mark.parametrize("own_affine", [False, True])
def test_an_empty_batch_leaves_everything_alone(labels, own_affine):
    norm, x = shaken(own_affine=own_affine), torch.empty(0, 4, 3, requires_grad=True)
    before = copy.deepcopy(norm.state_dict())
    y = norm(x, labels)
    y.sum().backward()
    assert y.shape == x.shape
    assert not norm.weight.grad.any()
    assert not norm.bias.grad.any()
    assert all(torch.equal(each, before[name]) for name, each in norm.state_dict().items())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda norm, x: norm(x), "the domain of the batch"),
        (lambda norm, x: norm(x, 3), r"domains of 0 to 2; got domain=3; type: DomainBatchNorm\(4, 4\)"),
        (lambda norm, x: norm(x, -1), "domain=-1"),
        (lambda norm, x: norm(x, True), "got True"),
        (lambda norm, x: norm(x, 1.0), "got 1.0"),
        (lambda norm, x: norm(x, "sketch"), "got 'sketch'"),
        (lambda norm, x: norm(x, LABELS + 1), "labels from 1 to 3"),
        (lambda norm, x: norm(x, LABELS - 1), "labels from -1 to 1"),
        (lambda norm, x: norm(x, LABELS[:3]), "7 labels, one a sample; got 3"),
        (lambda norm, x: norm(x, LABELS.float()), "torch.float32"),
        (lambda norm, x: norm(x, LABELS.view(1, -1)), r"of shape \(1, 7\)"),
        (lambda norm, x: norm(x, torch.tensor([0, 0, 0, 1, 2, 2, 2])), "more than 1 value per channel"),
        (lambda norm, x: norm(x[:1], 0), "more than 1 value per channel"),
        (lambda norm, x: norm(x[:, :2], 0), r"4 channels.*DomainBatchNorm\(2\)"),
        (lambda norm, x: norm(x[0], 0), "at least 2 axes"),
        (lambda norm, x: norm(x.long(), 0), "a floating input"),
        (lambda norm, x: DomainBatchNorm(0), "1 channel"),
        (lambda norm, x: DomainBatchNorm(4, 0), "1 domain"),
        (lambda norm, x: DomainBatchNorm(4, momentum=2.0), "momentum"),
        (lambda norm, x: DomainBatchNorm(4, eps=-1.0), "eps"),
    ],
)
def test_bad_inputs(call, match):
    norm = shaken()
    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(InputError, match=match):
        call(norm, batch())
    assert all(torch.equal(each, before[name]) for name, each in norm.state_dict().items())


def test_one_sample_is_fine_in_evaluation():
    norm = shaken().eval()
    assert norm(torch.randn(1, 4), 0).shape == norm(torch.randn(1, 4), torch.tensor([2])).shape == (1, 4)


@pytest.mark.parametrize("settings", [{"affine": False}, {"track_running_stats": False}, {"own_affine": True}])
def test_copies_and_checkpoints(settings):
    norm, x = shaken(**settings), batch()
    with norm.domain(1):
        norm(x, LABELS)
        copies = [copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), shaken(**settings)]
    copies[2].load_state_dict(norm.state_dict(), strict=True)
    want = norm.eval()(x, LABELS)
    for other in copies:
        assert other.telemetry() == {}
        assert torch.equal(other.eval()(x, LABELS), want)
        with pytest.raises(InputError, match="the domain of the batch"):
            other(x)
    if "track_running_stats" in settings:
        assert list(norm.state_dict()) == ["weight", "bias"]
        torch.testing.assert_close(want, norm.train()(x, LABELS))


@pytest.mark.parametrize("labels", [1, LABELS], ids=["one", "mixed"])
def test_activation_checkpointing_moves_statistics_once(labels):
    norm, x = shaken(), batch((3,))
    plain, gradients = copy.deepcopy(norm), []
    for layer in (norm, plain):
        given = x.clone().requires_grad_()
        with layer.domain(labels):
            out = checkpoint(layer, given, use_reentrant=False) if layer is norm else layer(given)
            gradients.append(torch.autograd.grad(out.square().sum(), [given, *layer.parameters()]))
    torch.testing.assert_close(*gradients)
    assert norm.num_batches_tracked.max() == 1
    torch.testing.assert_close(dict(norm.state_dict()), dict(plain.state_dict()))


@pytest.mark.parametrize("momentum", [0.3, None])
def test_accumulated_micro_batches_are_one_batch(momentum):
    pooled, whole = (DomainBatchNorm(4, 3, momentum=momentum) for _ in range(2))
    sgd = torch.optim.SGD(pooled.parameters(), lr=0.0)
    with accumulate(pooled, sgd):
        for _ in range(2):
            x, more = batch((3,)), batch((3,))
            pooled(x, LABELS).sum().backward()
            pooled(more, 1).sum().backward()
            pooled(more, LABELS).sum().backward()
            assert torch.equal(pooled.num_batches_tracked, whole.num_batches_tracked)
            sgd.step()
            whole(torch.cat([x, more, more]), torch.cat([LABELS, torch.ones_like(LABELS), LABELS]))
    torch.testing.assert_close(dict(pooled.state_dict()), dict(whole.state_dict()), rtol=1e-5, atol=1e-5)


def test_telemetry_is_of_each_domain():
    norm, x = shaken(), batch()
    norm(x, LABELS)
    _, moments = formula(norm, x, LABELS)
    torch.testing.assert_close(norm.telemetry()["mean"][2].double(), moments[2][0], rtol=1e-5, atol=1e-5)
    norm(x, 1)
    torch.testing.assert_close(norm.telemetry()["mean"].flatten().float(), x.mean(0), rtol=1e-5, atol=1e-5)


def test_layout_and_the_specification():
    norm = make("domain-batch", 4, dims=2, domains=5).eval()
    assert norm.domains == 5
    x = batch((3, 5)).to(memory_format=torch.channels_last)
    for labels in (0, LABELS):
        assert norm.eval()(x, labels).stride() == norm.train()(x, labels).stride() == x.stride()
    assert norm.spec.formula == "y = γ_c · (x − μ_c) / √(σ²_c + ε) + β_c"


def test_reset_as_the_constructor_left_it():
    norm, fresh = shaken(own_affine=True), DomainBatchNorm(4, 3, own_affine=True)
    norm(batch(), LABELS)
    norm.reset_parameters()
    torch.testing.assert_close(dict(norm.state_dict()), dict(fresh.state_dict()), rtol=0, atol=0)


@pytest.mark.slow
def test_compiles_whole():
    # In a process of its own: the shape checks of the tests cannot be traced.
    script = """
import copy, torch
from holdfast.norms.domain_batch_norm import DomainBatchNorm
norm, x = DomainBatchNorm(4, 3, own_affine=True), torch.randn(6, 4, 3)
for labels in (1, torch.tensor([0, 2, 2, 0, 0, 2])):
    for training in (True, False):
        eager = copy.deepcopy(norm.train(training))
        compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, labels), eager(x, labels))
        torch.testing.assert_close(dict(norm.state_dict()), dict(eager.state_dict()))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
