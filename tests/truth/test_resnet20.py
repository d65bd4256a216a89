"""A trained ResNet-20: measuring its running statistics anew leaves its accuracy, folding leaves its logits.

On handwritten digits shifted to nine positions; on Fashion-MNIST, halved to 14 × 14 pixels, where the environment
variable HOLDFAST_FASHION_MNIST names the folder with its four files. `pytest -s` prints the figures.
"""

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.lab.digits import read_digits
from holdfast.lab.images import read_images
from holdfast.treatments.fold import Fold
from holdfast.treatments.re_estimate import ReEstimate

pytestmark = pytest.mark.slow


class Block(nn.Module):
    def __init__(self, before, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    """He et al. 2015, arXiv:1512.03385, section 4.2, with n = 3; shortcuts with a projection where the width grows."""

    def __init__(self, classes=10):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [(16, 16, 1), *[(16, 16, 1)] * 2, (16, 32, 2), *[(32, 32, 1)] * 2, (32, 64, 2), *[(64, 64, 1)] * 2]
        self.blocks = nn.Sequential(*(Block(*each) for each in widths))
        self.head = nn.Linear(64, classes)

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


def shifted(images, down, right):
    """Moved by up to one pixel, what comes in at the border being 0."""
    return F.pad(images, (1, 1, 1, 1))[..., 1 + down : 9 + down, 1 + right : 9 + right]


def digits():
    """All positions of each digit, to train on and held out: 11,790 and 3,231 pictures."""
    data = read_digits()
    moves = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]

    def every(inputs, labels):
        images = inputs.view(-1, 1, 8, 8)
        return torch.cat([shifted(images, *move) for move in moves]), labels.repeat(len(moves))

    return *every(data.inputs, data.labels), *every(data.held_out, data.held_out_labels)


def fashion(folder):
    """10,000 pictures to train on and the 10,000 held out."""
    data = read_images(Path(folder), "fashion-mnist")

    def halved(inputs):
        return F.avg_pool2d(inputs.view(-1, 1, 28, 28), 2)

    return halved(data.inputs[:10000]), data.labels[:10000], halved(data.held_out), data.held_out_labels


def outputs(model, images):
    with torch.no_grad():
        return torch.cat([model(each) for each in images.split(500)])


@pytest.fixture(scope="module")
def trained():
    """In eval mode, with its training pictures and the held-out ones and their labels."""
    folder = os.environ.get("HOLDFAST_FASHION_MNIST")
    images, labels, held_out, answers = fashion(folder) if folder else digits()
    torch.manual_seed(0)
    model, steps = ResNet20(), 3 * (len(images) // 128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for step in range(steps):
        if step % (len(images) // 128) == 0:
            order = torch.randperm(len(images)).split(128)
        chosen = order[step % (len(images) // 128)]
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    return model.eval(), images, held_out, answers


def percent(model, images, labels):
    return 100 * (outputs(model, images).argmax(1) == labels).double().mean().item()


def test_statistics_of_its_own_training_data_keep_its_accuracy(trained):
    model, images, held_out, answers = copy.deepcopy(trained)
    before = percent(model, held_out, answers)
    receipt = ReEstimate(batches=list(images.split(250))).plan(model, None).apply()
    after = percent(model, held_out, answers)
    print(f"\n{before:.2f} % → {after:.2f} % of {len(answers):,} held out; {len(receipt.changes)} layers")
    assert len(receipt.changes) == 21
    assert before > 80
    assert abs(after - before) <= 0.3
    receipt.undo()
    assert percent(model, held_out, answers) == before


def test_statistics_forgotten_are_found_again(trained):
    model, images, held_out, answers = copy.deepcopy(trained)
    before = percent(model, held_out, answers)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    lost = percent(model, held_out, answers)
    ReEstimate(batches=list(images.split(250))).plan(model, None).apply()
    found = percent(model, held_out, answers)
    print(f"\nwithout its statistics {lost:.2f} %, measured anew {found:.2f} %, trained {before:.2f} %")
    assert lost < before - 20
    assert abs(found - before) <= 0.3


def test_folding_keeps_the_logits(trained):
    model, _, held_out, _ = copy.deepcopy(trained)
    before = outputs(model, held_out)
    receipt = Fold(batch=held_out[:100]).plan(model, None).apply()
    after = outputs(model, held_out)
    gap, largest = (after - before).abs().max().item(), before.abs().max().item()
    flips = (after.argmax(1) != before.argmax(1)).sum().item()
    print(
        f"\nlogits up to {largest:.1f} differ by up to {gap:.2g}, {gap / largest:.2g} of that; {flips} answers differ"
    )
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert gap <= 1e-5 * largest
    receipt.undo()
    assert torch.equal(outputs(model, held_out), before)
