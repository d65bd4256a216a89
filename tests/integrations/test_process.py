"""In a process of its own: what is wrapped is PyTorch itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from holdfast.store.reader import RunReader

CODE = """
import copy, gc, os, sys
from pathlib import Path
import torch
from torch import nn
from holdfast.integrations.options import Options
from holdfast.integrations.process import WatchedProcess, rank

process = WatchedProcess(Options(Path("run").absolute(), every=1, probe=4))
process.install()

def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()

class Hidden(nn.Linear):
    "Copied, and then kept from the collector: nobody hears of it."

hidden = copy.deepcopy(Hidden(3, 1))
gc.freeze()
seen = nn.Sequential(nn.Linear(3, 3))
optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (hidden, seen)]
for model, optimizer in zip((hidden, seen), optimizers):
    step(model, optimizer)
unknown = copy.deepcopy(optimizers[1])  # has not been through a constructor, and steps copies
step(seen, optimizers[1])

if os.fork() == 0:  # a forked child is not watched
    own = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    step(own, optimizer)
    os._exit(0)
os.wait()
os.environ["RANK"] = "3"
process.close()
outcome = process.outcome()
print(outcome.attempts, outcome.built, outcome.unfound, process.leads, rank())
"""


def test_what_a_process_does_is_watched_and_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env={**os.environ, "HOLDFAST_KERNELS": "reference"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stderr == ""
    assert done.stdout == "(1,) 2 SGD True 3\n"
    with RunReader(tmp_path / "run") as run:
        assert run.streams() == ["net"]
        assert run.steps == 2
