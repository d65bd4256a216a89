"""Undo takes back exactly what was done, whatever was done, in whatever order, and whatever else the model is."""

import copy
import itertools
from collections import OrderedDict

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_map

from holdfast.core.errors import SurgeryError
from holdfast.core.site import Site
from holdfast.treatments import (
    InsertNorm,
    NormaliseStreams,
    Reinitialise,
    ReorderNorm,
    ReplaceActivation,
    ScaleRate,
    ScaleResidual,
    SwapNorm,
)

ACTIVATIONS = (nn.Sigmoid, nn.Tanh, nn.ReLU, nn.PReLU, nn.Identity)
OPTIMISERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.01),
}
# Chosen to meet each other on the same layers.
TREATMENTS = (
    InsertNorm(),
    InsertNorm(kind="layer"),
    Reinitialise(),
    Reinitialise("orthogonal", seed=3),
    ReplaceActivation("gelu"),
    ScaleRate(0.5),
    SwapNorm("group"),
    SwapNorm("ghost"),
    ReorderNorm("before"),
    ReorderNorm("after"),
)


# Those that measure on a batch first.
ON_A_BATCH = (
    lambda batch: InsertNorm("batch", "identity", batch=batch),
    lambda batch: ScaleResidual("depth", batch=batch),
    lambda batch: ScaleResidual("zero", batch=batch),
    lambda batch: NormaliseStreams(batch=batch),
)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.branch = nn.Linear(width, width)

    def forward(self, x):
        return x + self.branch(x)


class Streams(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.wide, self.deep = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return self.wide(100 * x) + self.deep(x)


@st.composite
def networks(draw, branched=False):
    """A network of random depth, widths, activations, branches, streams, sharing, freezing and names."""
    widths = draw(st.lists(st.integers(2, 5), min_size=2, max_size=5))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    shared = draw(st.sampled_from(ACTIVATIONS))()
    for number, (into, out) in enumerate(itertools.pairwise(widths)):
        layers[f"fc{number}"] = nn.Linear(into, out, bias=draw(st.booleans()))
        layers[f"act{number}"] = shared if draw(st.booleans()) else draw(st.sampled_from(ACTIVATIONS))()
        if draw(st.booleans()):
            layers[f"norm{number}"] = nn.BatchNorm1d(out)
    if branched:
        layers["streams"] = Streams(widths[-1])
        layers |= {f"branch{number}": Residual(widths[-1]) for number in range(draw(st.integers(1, 3)))}
    layers["out"] = nn.Linear(widths[-1], 1)
    model = nn.Sequential(layers)
    if draw(st.booleans()):
        model.fc0.requires_grad_(False)
    return model.train(draw(st.booleans())), widths[0]


def everything(model, optimizer):
    """Every value, tensors as their bytes: equal means equal bit for bit."""
    values = (model.state_dict(), optimizer.state_dict(), [each.requires_grad for each in model.parameters()])
    return tree_map(lambda each: contents(each) if isinstance(each, torch.Tensor) else each, values)


def contents(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.detach().numpy().tobytes()


def objects(model, optimizer):
    return (
        [(name, id(each)) for name, each in model.named_modules(remove_duplicate=False)],
        [(name, id(each)) for name, each in model.named_parameters(remove_duplicate=False)],
        [[id(each) for each in group["params"]] for group in optimizer.param_groups],
        [group.get("param_names") for group in copy.deepcopy([dict(g, params=[]) for g in optimizer.param_groups])],
        [id(each) for each in optimizer.state],
    )


@settings(max_examples=30, deadline=None)
@given(
    networks(),
    st.sampled_from(sorted(OPTIMISERS)),
    st.booleans(),
    st.integers(0, 2),
    st.lists(st.sampled_from(TREATMENTS), min_size=1, max_size=4),
    st.booleans(),
)
def test_undo_in_reverse_order_restores_bit_for_bit(network, optimiser, names, steps, treatments, on_one_site):
    torch.manual_seed(0)
    model, width = network
    optimizer = OPTIMISERS[optimiser](model.named_parameters() if names else model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, width)).square().mean().backward()
        optimizer.step()
    sites = [Site("out", "input")] if on_one_site else []
    check(model, optimizer, treatments, sites)


@settings(max_examples=30, deadline=None)
@given(
    networks(branched=True),
    st.sampled_from(sorted(OPTIMISERS)),
    st.lists(st.sampled_from((*ON_A_BATCH, *TREATMENTS[:3])), min_size=1, max_size=4),
)
def test_undo_of_what_was_measured_on_a_batch(network, optimiser, treatments):
    torch.manual_seed(0)
    model, width = network
    batch = torch.randn(16, width)
    optimizer = OPTIMISERS[optimiser](model.parameters())
    check(model, optimizer, [each(batch) if callable(each) else each for each in treatments], [])


def check(model, optimizer, treatments, sites):
    """Apply one after the other, undo in reverse order; each time all is as it was."""
    states, identities, receipts = [], [], []
    for treatment in treatments:
        states.append(everything(model, optimizer))
        identities.append(objects(model, optimizer))
        try:
            receipts.append(treatment.plan(model, optimizer, sites).apply())
        except SurgeryError:  # nothing qualifies: then nothing has changed
            assert everything(model, optimizer) == states.pop()
            assert objects(model, optimizer) == identities.pop()
    for receipt in reversed(receipts):
        receipt.undo()
        assert everything(model, optimizer) == states.pop()
        assert objects(model, optimizer) == identities.pop()
