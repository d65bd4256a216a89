"""A small convolutional network on Fashion-MNIST, with batch normalisation and two images a step.

Usage: python examples/fashion_mnist.py DIR, where DIR holds the four IDX files.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import holdfast as hf
from holdfast.lab.images import read_images

BATCH, RATE, STEPS = 2, 0.02, 400


def network() -> nn.Sequential:
    """Three convolutions and a hidden layer, each with a BatchNorm."""
    layers: list[nn.Module] = []
    for entering, leaving in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(entering, leaving, 3, padding=1, bias=False), nn.BatchNorm2d(leaving), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(64 * 9, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers)


def batches(images: Tensor, labels: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Two images at a time, in the order of a seed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        yield images[rows], labels[rows]


def accuracy(output: Tensor, labels: Tensor) -> Tensor:
    """Fraction of the images named rightly."""
    return (output.argmax(1) == labels).double().mean()


def main() -> None:
    """Train, watch, diagnose, treat, prove, report."""
    data = read_images(Path(sys.argv[1]), "fashion-mnist")
    images, probe, judged = (each.view(-1, 1, 28, 28) for each in (data.inputs, data.probe, data.held_out[:2000]))
    held_out = list(zip(judged.split(500), data.held_out_labels[:2000].split(500), strict=True))
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)

    with hf.watch(model, optimizer, run="runs/fashion", probe=probe, every=10) as run:
        for _, (inputs, labels) in zip(range(STEPS), batches(images, data.labels, seed=0), strict=False):
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    diagnosis = hf.diagnose(run)
    print(diagnosis)

    trial = (model, optimizer, lambda seed: batches(images, data.labels, seed), nn.functional.cross_entropy)
    terms = {"eval_batches": held_out, "metric": accuracy, "steps": STEPS, "seeds": 5}
    cure = hf.cure(*trial, **terms, diagnosis=diagnosis)
    print(cure.prescription, *cure.proofs, cure, sep="\n")
    print(run.report("fashion.html", evidence=cure))

    # The cure keeps the first plan that is proved. Is there a better one among the alternatives?
    if cure.receipt is not None:
        cure.receipt.undo()
    for plan in cure.prescription.plans[1:]:
        print(hf.prove(plan, *trial, **terms))


if __name__ == "__main__":
    main()
