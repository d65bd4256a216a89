"""Ends in the way that its first argument names, after a few steps of training and with exit handlers of its own."""

import atexit
import os
import signal
import sys

import torch
from report import digest
from torch import nn

atexit.register(print, "registered first, runs last")
torch.manual_seed(0)
net = nn.Linear(3, 1)


def train(steps):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 3)).sum().backward()
        optimizer.step()


def fail(loss):
    try:
        {}["missing"]
    except KeyError as error:
        raise RuntimeError("a mistake of the script's") from error


train(3)
atexit.register(print, "registered last, runs first")
print(sys.argv[1:], __name__, __spec__, sys.excepthook is sys.__excepthook__, digest(net))
ending = sys.argv[1]
if ending == "exit":
    sys.exit(3)
if ending == "message":
    sys.exit("a last word")
if ending == "raise":
    fail(1)
if ending == "optimizer":
    torch.optim.SGD([], lr=0.1)
if ending == "backward":
    torch.ones(1).sum().backward()
if ending == "interrupt":
    os.kill(os.getpid(), signal.SIGINT)
if ending == "kill":
    sys.stdout.flush()
    os._exit(5)
if ending == "hook":
    sys.excepthook = lambda kind, error, trace: print(
        "hook:", kind.__name__, trace.tb_frame.f_code.co_name, trace.tb_lineno
    )
    raise ValueError
