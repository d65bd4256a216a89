"""A curve fitted with LBFGS, whose step evaluates a closure several times."""

import torch
import torch.nn as nn
import torch.optim as optim
from report import digest


class Curve(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin1 = nn.Linear(1, 12)
        self.lin2 = nn.Linear(12, 1)

    def forward(self, x):
        return self.lin2(torch.tanh(self.lin1(x)))


if __name__ == "__main__":
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 64).unsqueeze(1).double()
    y = torch.sin(3 * x)
    net = Curve().double()
    criterion = nn.MSELoss()
    warm = optim.Adam(net.parameters(), lr=0.01)
    for i in range(5):
        warm.zero_grad()
        criterion(net(x), y).backward()
        warm.step()
    optimizer = optim.LBFGS(net.parameters(), lr=0.8)
    for i in range(6):

        def closure():
            optimizer.zero_grad()
            loss = criterion(net(x), y)
            loss.backward()
            return loss

        print("STEP", i, optimizer.step(closure).item())
    print(digest(net))
