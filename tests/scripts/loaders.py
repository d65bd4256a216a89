"""argparse, a DataLoader with workers, a scheduler, evaluation, a checkpoint, all under a main function."""

import argparse
import os

import torch
import torch.nn.functional as F
from report import digest
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Noisy(Dataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(1, 12, 12, generator=generator)
        return image, int(image.mean() > 0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.dropout = nn.Dropout(0.25)
        self.fc1 = nn.Linear(100, 2)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return F.log_softmax(self.fc1(torch.flatten(self.dropout(x), 1)), dim=1)


def train(args, model, loader, optimizer, epoch):
    model.train()
    for batch, (data, target) in enumerate(loader):
        optimizer.zero_grad()
        loss = F.nll_loss(model(data), target)
        loss.backward()
        optimizer.step()
        if batch % args.log_interval == 0:
            print(f"Train Epoch: {epoch} [{batch * len(data)}/{len(loader.dataset)}]\tLoss: {loss.item():.6f}")


def test(model, loader):
    model.eval()
    correct = 0
    with torch.no_grad():
        for data, target in loader:
            correct += model(data).argmax(dim=1).eq(target).sum().item()
    print(f"\nTest set: Accuracy: {correct}/{len(loader.dataset)}\n")


def main():
    parser = argparse.ArgumentParser(description="PyTorch example")
    parser.add_argument("--epochs", type=int, default=2, metavar="N", help="number of epochs")
    parser.add_argument("--log-interval", type=int, default=2)
    parser.add_argument("--out", default="net.pt", help="where the checkpoint goes")
    parser.add_argument("--start-method", default="fork")
    args = parser.parse_args()

    torch.manual_seed(1)
    options = {"num_workers": 2, "multiprocessing_context": args.start_method}
    train_loader = DataLoader(Noisy(96), batch_size=32, shuffle=True, **options)
    test_loader = DataLoader(Noisy(40), batch_size=20, **options)
    model = Net()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    for epoch in range(1, args.epochs + 1):
        train(args, model, train_loader, optimizer, epoch)
        test(model, test_loader)
        scheduler.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, args.out)
    torch.save(model, "whole.pt")
    print(os.path.getsize(args.out), torch.load("whole.pt", weights_only=False).fc1.weight.equal(model.fc1.weight))
    print(digest(model))


if __name__ == "__main__":
    main()
