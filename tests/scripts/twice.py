"""Trains one model after another, and the last one with a second optimiser."""

import torch
from report import digest
from torch import nn


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return torch.relu(self.layer(x))


def fit(model, optimizer, steps):
    for _ in range(steps):
        inputs = torch.randn(16, 6)
        optimizer.zero_grad()
        loss = (model(inputs) - inputs).square().mean()
        loss.backward()
        optimizer.step()
    print(f"{loss.item():.6f}")


torch.manual_seed(0)
first = Encoder()
fit(first, torch.optim.SGD(first.parameters(), lr=0.1), 12)
print(digest(first))
second = Encoder()
fit(second, torch.optim.SGD(second.parameters(), lr=0.1), 7)
fit(second, torch.optim.Adam(second.parameters(), lr=0.01), 5)
print(digest(second))
