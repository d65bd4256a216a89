"""Training in children of torch.multiprocessing.spawn; the parent trains nothing."""

import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from report import digest
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Net(nn.Sequential):
    """Defined where the children find it only by importing this file again."""


def worker(rank, world, file):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = DistributedDataParallel(Net(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(8):
        inputs = torch.randn(12, 5, generator=generator)
        optimizer.zero_grad()
        (model(inputs) - inputs.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    if rank == 0:
        print(digest(model), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 1 and "fail" in sys.argv:
        raise ValueError("rank 1 gives up")


if __name__ == "__main__":
    mp.spawn(worker, args=(2, os.path.abspath("rendezvous")), nprocs=2)
    print("done")
