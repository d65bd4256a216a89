"""Run with -m: relative imports work."""

import hashlib
import sys

import torch

from .layers import network

torch.manual_seed(0)
model = network()
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(10):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
weights = torch.cat([each.detach().flatten() for each in model.parameters()])
print(__name__, __package__, __spec__.name, sys.argv[1:], hashlib.sha256(weights.numpy().tobytes()).hexdigest())
if "--fail" in sys.argv:
    model(torch.zeros(8, 5))
