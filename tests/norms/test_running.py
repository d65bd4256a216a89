import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from holdfast.core.errors import InputError
from holdfast.norms import BatchNorm1d, BatchNorm2d, GhostBatchNorm, InstanceNorm2d, SyncBatchNorm, accumulate, make

KINDS = ["batch", "ghost", "renorm", "batch-layer", "switchable", "sync"]


def batches(count=3, size=4, shape=(2, 5, 3)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, *shape, generator=generator) * (k + 1) + 10 * k for k in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", ["auto", "compiled"])
def test_micro_batches_move_once_by_their_union(monkeypatch, kind, kernels):
    monkeypatch.setenv("HOLDFAST_KERNELS", kernels)
    norm = make(kind, 2, momentum=0.25)
    optimizer = torch.optim.SGD(norm.parameters(), lr=0.0)
    parts = [*batches(3), batches(1, size=2)[0] - 7]
    with accumulate(norm, optimizer):
        for x in parts:
            norm(x).sum().backward()
        assert norm.num_batches_tracked == 0
        assert torch.equal(norm.running_mean, torch.zeros(2))
        optimizer.step()
    union = torch.cat(parts).double()
    mean, variance = union.mean((0, 2, 3)), union.var((0, 2, 3), correction=1)
    if kind == "ghost":  # of 4 samples at most: one chunk each, pooled as whole batches are
        assert norm.chunk_size > 4
    torch.testing.assert_close(norm.running_mean.double(), 0.25 * mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), 0.75 + 0.25 * variance, rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked == 1


def test_each_micro_batch_is_normalised_by_its_own_statistics():
    pooled, plain = BatchNorm2d(2), BatchNorm2d(2)
    optimizer = torch.optim.SGD(pooled.parameters(), lr=0.1)
    with accumulate(pooled, optimizer):
        for x in batches():
            assert torch.equal(pooled(x), plain(x))


def test_two_steps_and_the_rest_at_the_end():
    norm = BatchNorm1d(1, momentum=None)
    optimizer = torch.optim.SGD(norm.parameters(), lr=0.1)
    pooled = accumulate(norm, optimizer)
    for value in (0.0, 10.0, 20.0):
        norm(torch.tensor([[value - 1], [value + 1]]))
        if value < 20:
            optimizer.step()
    assert norm.running_mean == 5.0
    optimizer.zero_grad()
    pooled.close()
    assert norm.running_mean == 10.0  # the last micro-batch was not lost
    assert norm.num_batches_tracked == 3
    pooled.close()
    norm(torch.tensor([[29.0], [31.0]]))
    assert norm.running_mean == 15.0  # batch by batch again


def test_a_step_without_a_forward_moves_nothing():
    norm = BatchNorm1d(2)
    optimizer = torch.optim.SGD(norm.parameters(), lr=0.1)
    with accumulate(norm, optimizer):
        optimizer.step()
    assert norm.num_batches_tracked == 0


def test_what_cannot_be_pooled_is_refused():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(InputError, match=r"a model with a normaliser of holdfast.norms .* got a Sequential without"):
        accumulate(nn.Sequential(nn.BatchNorm1d(2), InstanceNorm2d(2)), optimizer)
    norm = BatchNorm1d(2)
    with accumulate(norm, optimizer), pytest.raises(InputError, match=r"pooled already; close the first"):
        accumulate(norm, optimizer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kernels", ["auto", "compiled"])
def test_checkpointing_moves_once(monkeypatch, kind, reentrant, kernels):
    monkeypatch.setenv("HOLDFAST_KERNELS", kernels)
    torch.manual_seed(0)
    norm, plain = make(kind, 2), make(kind, 2)
    plain.load_state_dict(norm.state_dict())
    x = batches(1)[0].requires_grad_()
    checkpoint(norm, x, use_reentrant=reentrant).square().sum().backward()
    through = x.grad.clone()
    x.grad = None
    plain(x).square().sum().backward()
    assert norm.num_batches_tracked == 1
    for name, value in plain.state_dict().items():
        assert torch.equal(value, norm.state_dict()[name]), name
    torch.testing.assert_close(through, x.grad)


@pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("kind", [BatchNorm1d, BatchNorm2d, GhostBatchNorm, SyncBatchNorm, InstanceNorm2d])
def test_momentum_outside_its_range_is_refused(kind, momentum):
    with pytest.raises(InputError, match=r"momentum in \[0, 1\], or None; got momentum="):
        kind(3, momentum=momentum)


def test_a_copy_and_a_pickle_pool_nothing():
    import copy
    import pickle

    norm = BatchNorm1d(2)
    with accumulate(norm, torch.optim.SGD(norm.parameters(), lr=0.1)):
        copies = [copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))]
    for each in copies:
        each(torch.randn(4, 2))
        assert each.num_batches_tracked == 1
