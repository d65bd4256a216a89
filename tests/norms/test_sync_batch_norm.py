import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from holdfast.norms import BatchNorm2d, SyncBatchNorm

SLOW = pytest.mark.slow  # two fresh processes each: one case of them in the fast part, the hardest
BATCHES = [
    pytest.param((4, 4), id="even", marks=SLOW),
    pytest.param((6, 2), id="uneven", marks=SLOW),
    pytest.param((7, 1), id="one of one sample", marks=SLOW),
    pytest.param((8, 0), id="one empty"),
]


def whole(samples=8):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 3, 4, 5, generator=generator) * 2 + torch.arange(3.0).view(1, 3, 1, 1)
    return x, torch.randn(samples, 3, 4, 5, generator=generator)


def fresh(kind):
    torch.manual_seed(1)
    norm = kind(3, momentum=0.25)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def work(rank, sizes, folder, track):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=len(sizes), init_method=f"file://{folder}/meet")
    torch.set_num_threads(1)
    norm = fresh(SyncBatchNorm)
    if not track:
        norm.running_mean = norm.running_var = None
        norm.track_running_stats = False
    start = sum(sizes[:rank])
    x, dy = (each[start : start + sizes[rank]] for each in whole())
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(dy)
    found = {"y": y.detach(), "dx": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    torch.save({**found, "state": norm.state_dict(), "telemetry": dict(norm.telemetry())}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("sizes", BATCHES)
def test_two_processes_are_one_with_the_whole_batch(tmp_path, sizes):
    mp.spawn(work, (sizes, str(tmp_path), True), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    norm, (x, dy) = fresh(BatchNorm2d), whole()
    x.requires_grad_()
    y = norm(x)
    y.backward(dy)
    torch.testing.assert_close(torch.cat([each["y"] for each in found]), y.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat([each["dx"] for each in found]), x.grad, rtol=1e-4, atol=1e-6)
    # The gradients of γ and β are of each process's own samples; DDP averages them.
    torch.testing.assert_close(sum(each["weight"] for each in found), norm.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sum(each["bias"] for each in found), norm.bias.grad, rtol=1e-4, atol=1e-5)
    for each in found:
        torch.testing.assert_close(dict(each["state"]), dict(norm.state_dict()), rtol=1e-5, atol=1e-6)
        mean = x.detach().double().mean((0, 2, 3))
        torch.testing.assert_close(each["telemetry"]["mean"].flatten(), mean, rtol=1e-6, atol=1e-7)


def test_alone_it_is_batch_norm():
    x, _ = whole()
    ours, theirs = fresh(SyncBatchNorm), fresh(BatchNorm2d)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_converting_a_model_shares_parameters_and_buffers():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3, momentum=None), nn.Sequential(BatchNorm2d(4)))
    before = dict(net.named_parameters())
    made = SyncBatchNorm.convert_sync_batchnorm(net.eval())
    assert made is net
    assert [type(net[1]), type(net[2][0])] == [SyncBatchNorm] * 2
    assert all(parameter is before[name] for name, parameter in made.named_parameters())
    assert (net[1].eps, net[1].momentum, net[1].training) == (1e-3, None, False)
    x = torch.randn(2, 3, 5, 5)
    assert torch.isfinite(net(x)).all()
    assert type(SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm1d(2))) is SyncBatchNorm
