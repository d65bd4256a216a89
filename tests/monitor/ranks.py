"""One rank of a distributed run that tests start and kill. Run as a script: `ranks.py RANK FOLDER JOB…`."""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import holdfast as hf
from holdfast.monitor import cadence, ranks
from holdfast.norms import SyncBatchNorm

WORLD = 2
STEPS = 6


class Block(nn.Module):
    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.norm = norm or nn.Identity()
        self.act = nn.Tanh()

    def forward(self, x):
        return x + self.act(self.norm(self.fc(x)))


class Net(nn.Module):
    """The last layer has one output: its bias is sharded into one element and none."""

    def __init__(self, norm=None) -> None:
        super().__init__()
        self.into = nn.Linear(6, 8)
        self.blocks = nn.Sequential(*(Block(norm(8) if norm else None) for _ in range(2)))
        self.out = nn.Linear(8, 1)

    def forward(self, x):
        return self.out(self.blocks(torch.relu(self.into(x))))


def fresh(kind: str, norm=None):
    torch.manual_seed(0)
    model: nn.Module = Net(norm)
    if kind == "ddp":
        model = DistributedDataParallel(model)
    elif kind == "fsdp":
        from torch.distributed.fsdp import fully_shard  # which takes seconds to import

        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def batch(step: int, rank: int | None = None):
    """The union's batch of a step, or this rank's half of it."""
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(32, 6, generator=generator)
    y = x.sum(1, keepdim=True).sin()
    return (x, y) if rank is None else (x.chunk(WORLD)[rank], y.chunk(WORLD)[rank])


def train(model, optimizer, rank, steps, *, slow=0.0, broken=0, start=1, average=False):
    for step in range(start, start + steps):
        x, y = batch(step, rank)
        time.sleep(slow)
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        if step == broken:
            loss = loss + torch.tensor(float("inf"))  # its gradient is finite
        loss.backward()
        for each in model.parameters() if average else ():
            dist.all_reduce(each.grad)
            each.grad /= WORLD
        optimizer.step()


def weights(model) -> list[torch.Tensor]:
    return [
        each.to_local().clone() if hasattr(each, "to_local") else each.detach().clone() for each in model.parameters()
    ]


def probe():
    return torch.linspace(-1, 1, 48).reshape(8, 6)


def same_weights(kind, rank, folder, norm=None, **options) -> bool:
    """Train bare and watched from the same start: are the weights the same, to the last bit?"""
    found = []
    for watched in (False, True):
        model, optimizer = fresh(kind, norm)
        run = hf.watch(model, optimizer, run=folder, strict=True, **options) if watched else None
        train(model, optimizer, rank, STEPS, average=kind == "plain")
        if run:
            run.close()
        found.append([*weights(model), *(each.clone() for each in model.buffers())])
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# jobs


def ddp(rank, folder):
    return same_weights("ddp", rank, folder, every=1, mode="exact", probe=probe())


def fsdp(rank, folder):
    return same_weights("fsdp", rank, folder, every=1, mode="exact", probe=probe())


def batchnorm(rank, folder):
    return same_weights("ddp", rank, folder, nn.BatchNorm1d, every=2, probe=probe())


def syncbatchnorm(rank, folder):
    # DistributedDataParallel refuses it on CPUs.
    return same_weights("plain", rank, folder, SyncBatchNorm, every=2, probe=probe())


def auto(rank, folder, kind):
    """By the clock, which differs: one rank is slower, the other dearer."""
    model, optimizer = fresh(kind)
    cadence.SETTLED, cadence.SETTLING, cadence.GAP, ranks.GAP = 5, frozenset({1, 2, 5}), 10, 10
    with hf.watch(model, optimizer, run=folder, strict=True, budget=1.0, probe=probe()) as run:
        train(model, optimizer, rank, 120, slow=0.03 * rank)
        return run._watch._ranks.together


def auto_ddp(rank, folder):
    return auto(rank, folder, "ddp")


def auto_fsdp(rank, folder):
    return auto(rank, folder, "fsdp")


def alarm(rank, folder, kind):
    ranks.GAP = 20
    model, optimizer = fresh(kind)
    with hf.watch(model, optimizer, run=folder, strict=True, every=50, probe=probe()):
        train(model, optimizer, rank, 90, broken=10 if rank == 1 else 0)
    return sorted(path.name for path in Path(folder).glob("*.npz"))


def alarm_ddp(rank, folder):
    return alarm(rank, folder, "ddp")


def alarm_fsdp(rank, folder):
    return alarm(rank, folder, "fsdp")


def only_first(rank, folder, kind):
    model, optimizer = fresh(kind)
    run = hf.watch(model, optimizer, run=folder, strict=True, every=2, probe=probe()) if rank == 0 else None
    train(model, optimizer, rank, STEPS)
    if run:
        run.close()


def only_first_ddp(rank, folder):
    return only_first(rank, folder, "ddp")


def only_first_fsdp(rank, folder):
    return only_first(rank, folder, "fsdp")


def failing(rank, folder):
    """A part of the monitor fails on one rank, in the middle of an observed step."""
    model, optimizer = fresh("fsdp")
    with hf.watch(model, optimizer, run=folder, every=1, probe=probe()) as run:
        train(model, optimizer, rank, 2)
        if rank == 1:
            run._watch._values = None  # what is called first
        train(model, optimizer, rank, 4, start=3)
        return run._watch._ranks.together


def two(rank, folder):
    """Two models, each with a watch of the same name, as in a GAN."""
    pairs = [fresh("ddp"), fresh("fsdp")]
    runs = [hf.watch(*pair, run=f"{folder}/{k}", strict=True, every=1, probe=probe()) for k, pair in enumerate(pairs)]
    for step in range(1, STEPS + 1):
        for pair in pairs:
            train(*pair, rank, 1, start=step)
    found = [run._watch._ranks.together for run in runs]
    for run in runs:
        run.close()
    return found


def unlike(rank, folder):
    model, optimizer = fresh("fsdp")
    with hf.watch(model, optimizer, run=folder, strict=True, every=1, probe=probe() if rank == 0 else None):
        train(model, optimizer, rank, STEPS)


def destroyed(rank, folder):
    """The process group goes before the watch does."""
    model, optimizer = fresh("ddp")
    run = hf.watch(model, optimizer, run=folder, strict=True, every=1, probe=probe())
    train(model, optimizer, rank, 3)
    dist.destroy_process_group()
    train(model.module, optimizer, rank, 70, start=4)
    run.close()
    return run.steps


def dies(rank, folder):
    """One rank is gone without a word; the other goes on with the model inside."""
    model, optimizer = fresh("ddp")
    run = hf.watch(model, optimizer, run=folder, strict=True, every=1, probe=probe())
    train(model, optimizer, rank, 10)
    if rank == 1:
        while run.durable_step < 5:
            time.sleep(0.01)
        os._exit(0)
    train(model.module, optimizer, rank, 70, start=11)
    run.close()
    return run.steps


def main(rank: int, folder: Path, jobs: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for number, job in enumerate(jobs):
        if not dist.is_initialized():
            dist.init_process_group(
                "gloo",
                rank=rank,
                world_size=WORLD,
                init_method=f"file://{folder}/meet{number}",
                timeout=datetime.timedelta(seconds=60),
            )
        begin = time.perf_counter()
        answer = globals()[job](rank, str(folder / job))
        (folder / f"{job}.{rank}.json").write_text(json.dumps(answer))
        print(job, rank, round(time.perf_counter() - begin, 2), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
