"""What a training loop can be watched with, ours and others': each as its users write it.

Each is a context manager that is given the model, its optimiser, a probe and a folder, and yields an `Attached`.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

PATIENCE = 1.0
"""Seconds without anything written after which nothing more is expected."""


@dataclass(frozen=True, slots=True)
class Attached:
    """What a loop does for its monitor.

    Args:
        after: called after every step with its loss.
        settle: called between blocks, off the clock; waits until what is written late is written.
        records: whether the folder is a run of ours.
    """

    after: Callable[[Tensor], None] = lambda loss: None
    settle: Callable[[], None] = lambda: None
    records: bool = False


Monitor = Callable[[nn.Module, Optimizer, Tensor, Path], AbstractContextManager[Attached]]


@contextmanager
def bare(model: nn.Module, optimizer: Optimizer, probe: Tensor, folder: Path) -> Iterator[Attached]:
    """The loop alone."""
    yield Attached()


@contextmanager
def libraries(model: nn.Module, optimizer: Optimizer, probe: Tensor, folder: Path) -> Iterator[Attached]:
    """Ours imported and its kernels compiled, nothing watched: the one-off cost in memory."""
    import holdfast as hf
    from holdfast.kernels import compiler

    assert hf.watch  # loads with its first use
    compiler.wait(120)
    yield Attached()


@contextmanager
def ours(model: nn.Module, optimizer: Optimizer, probe: Tensor, folder: Path, **options: Any) -> Iterator[Attached]:
    """A watch that records into a folder."""
    import holdfast as hf
    from holdfast.kernels import compiler

    compiler.wait(120)
    with hf.watch(model, optimizer, run=folder, probe=probe, **options) as run:

        def settle() -> None:
            # Until all is written but what the watch still holds, that is, until nothing more comes.
            last, since = run.durable_step, time.monotonic()
            while run.durable_step < run.steps - 1 and time.monotonic() - since < PATIENCE:
                time.sleep(0.01)
                if run.durable_step != last:
                    last, since = run.durable_step, time.monotonic()

        yield Attached(settle=settle, records=True)


def leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(path, module) for path, module in model.named_modules() if not list(module.children())]


@contextmanager
def by_hand(
    model: nn.Module,
    optimizer: Optimizer,
    probe: Tensor,
    folder: Path,
    told: Callable[[dict[str, tuple[float, ...]]], None] = lambda seen: None,
) -> Iterator[Attached]:
    """Mean, variance, greatest absolute value and share of zeros of every leaf's output, and two of every gradient."""
    seen: dict[str, tuple[float, ...]] = {}

    def read(path: str, module: nn.Module, args: Any, output: Tensor) -> None:
        x = output.detach()
        zeros = (x == 0).float().mean()
        seen[path] = (x.mean().item(), x.var().item(), x.abs().max().item(), zeros.item())

    def after(loss: Tensor) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                seen[f"{name}.grad"] = (parameter.grad.mean().item(), parameter.grad.var().item())
        told(dict(seen, loss=(loss.item(),)))

    handles = [module.register_forward_hook(functools.partial(read, path)) for path, module in leaves(model)]
    yield Attached(after)
    for handle in handles:
        handle.remove()


@contextmanager
def tensorboard(model: nn.Module, optimizer: Optimizer, probe: Tensor, folder: Path) -> Iterator[Attached]:
    """A histogram of every leaf's output and of every gradient."""
    from torch.utils.tensorboard import SummaryWriter

    writer, step = SummaryWriter(str(folder)), 0

    def read(path: str, module: nn.Module, args: Any, output: Tensor) -> None:
        writer.add_histogram(f"{path}/output", output.detach(), step)

    def after(loss: Tensor) -> None:
        nonlocal step
        writer.add_scalar("loss", loss.item(), step)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                writer.add_histogram(f"{name}/gradient", parameter.grad, step)
        step += 1

    handles = [module.register_forward_hook(functools.partial(read, path)) for path, module in leaves(model)]
    yield Attached(after, writer.flush)
    for handle in handles:
        handle.remove()
    writer.close()


@contextmanager
def wandb(model: nn.Module, optimizer: Optimizer, probe: Tensor, folder: Path) -> Iterator[Attached]:
    """Histograms of every parameter and of its gradient, and the loss; offline."""
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    import wandb as library

    folder.mkdir(parents=True, exist_ok=True)
    run = library.init(project="overhead", mode="offline", dir=str(folder))
    run.watch(model, log="all", log_freq=1)
    yield Attached(lambda loss: run.log({"loss": loss.item()}))
    run.finish()


MONITORS: dict[str, Monitor] = {
    "bare": bare,
    "bare, again": bare,
    "libraries only": libraries,
    "auto": functools.partial(ours, every="auto"),
    "every step": functools.partial(ours, every=1, probe_every="auto"),
    "every step, exact": functools.partial(ours, every=1, mode="exact", probe_every="auto"),
    "every step with probes": functools.partial(ours, every=1, probe_every=None),
    "every step with probes, exact": functools.partial(ours, every=1, mode="exact", probe_every=None),
    "statistics at every step": functools.partial(ours, every=1, probe_every=1_000_000),
    "by hand": by_hand,
    "TensorBoard": tensorboard,
    "wandb": wandb,
}
NEEDS = {"TensorBoard": "tensorboard", "wandb": "wandb"}
"""Packages that are not ours, by the monitor that needs them."""
