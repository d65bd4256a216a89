import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from holdfast.live.merges import Merges
from holdfast.live.replay import record_call


class Function(nn.Module):
    """A model whose forward is given, with its leaves."""

    def __init__(self, function, **leaves):
        super().__init__()
        self.function = function
        for name, leaf in leaves.items():
            setattr(self, name, leaf)

    def forward(self, *args):
        return self.function(self, *args)


def merges(function, *args, **leaves):
    model = Function(function, **leaves)
    found = Merges(model)
    found.follow(model, record_call(args, {}))
    return found


def origins(merge):
    """The leaves that each operand went through."""
    return [sorted({each.leaf for each in operand.value.ancestors()} - {""}) for operand in merge.operands]


@pytest.mark.parametrize(
    "add",
    [
        lambda x, y: x + y,
        lambda x, y: torch.add(x, y, alpha=0.5),
        lambda x, y: x.add(y),
        lambda x, y: x.clone().add_(y),
        lambda x, y: x.clone().__iadd__(y),
        lambda x, y: y + x,
    ],
)
def test_additions_in_every_spelling(add):
    found = merges(lambda m, x: m.c(add(m.a(x), m.b(x))), torch.randn(4, 3), **{n: nn.Linear(3, 3) for n in "abc"})
    (merge,) = found.found
    assert merge.kind == "add"
    assert merge.owner == ""
    assert sorted(origins(merge)) == [["a"], ["b"]]
    assert found.calls == {"a": 1, "b": 1, "c": 1}
    assert [each.leaf for each in found.uses[merge.value]] == ["c"]
    assert [each.leaf for each in found.outputs] == ["c"]


@pytest.mark.parametrize("join", [torch.cat, torch.concat, torch.concatenate])
def test_concatenations(join):
    found = merges(
        lambda m, x: join([m.a(x), x, m.b(x).sigmoid()], dim=1), torch.randn(4, 3), a=nn.Linear(3, 2), b=nn.Linear(3, 1)
    )
    (merge,) = found.found
    assert merge.kind == "cat"
    assert origins(merge) == [["a"], [], ["b"]]
    assert [operand.shape for operand in merge.operands] == [(4, 2), (4, 3), (4, 1)]
    assert merge.operands[2].value.operation == "sigmoid"


def test_operands_are_measured_before_they_are_overwritten():
    x = torch.tensor([[3.0, -3.0], [3.0, 3.0]])

    def forward(m, x):
        y = m.twice(x)
        y += x
        return y

    doubling = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        doubling.weight.copy_(2 * torch.eye(2))
    (merge,) = merges(forward, x, twice=doubling).found
    assert [operand.rms for operand in merge.operands] == [6.0, 3.0]
    assert merge.operands[1].spread == pytest.approx(4.5**0.5)  # ±0 in the first column, ±3 in the second
    assert merge.value.shape == (2, 2)


def test_shortcuts_and_what_hands_on_keep_their_origin():
    def forward(m, x):
        x = m.stem(x)
        return m.shortcut(x) + m.drop(m.act(m.fc(x)).view(4, 3)).to(torch.float32)

    leaves = {"stem": nn.Linear(3, 3), "fc": nn.Linear(3, 3), "drop": nn.Dropout(0.5)}
    (merge,) = merges(forward, torch.randn(4, 3), **leaves, act=nn.ReLU(inplace=True), shortcut=nn.Identity()).found
    shortcut, branch = (operand.value for operand in merge.operands)
    assert shortcut.leaf == "stem"
    assert shortcut in branch.ancestors()
    assert branch not in shortcut.ancestors()
    assert origins(merge) == [["stem"], ["act", "fc", "stem"]]


def test_what_is_no_merge_of_streams():
    def forward(m, x):
        y = m.a(x)
        y = y + y  # with itself
        y = y + m.shift  # a parameter
        y = y + 1.0
        y = y + torch.arange(3.0)  # a constant
        return y, torch.cat([torch.ones(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)])

    found = merges(forward, torch.randn(4, 3), a=nn.Linear(3, 3), shift=nn.Parameter(torch.ones(3)))
    assert found.found == []


def test_a_leaf_that_adds_inside_is_one_step():
    class Leaf(nn.Module):
        def forward(self, x):
            return x + x.relu()

    assert merges(lambda m, x: m.leaf(x), torch.randn(2), leaf=Leaf()).found == []


def test_attention_is_a_leaf_and_encoder_layers_are_read_through():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    (first, second) = merges(lambda m, x: m.layer(x), torch.randn(2, 3, 4), layer=layer).found
    assert first.owner == second.owner == "layer"
    assert origins(first) == [[], ["layer.self_attn"]]
    # in eval mode dropout hands on the very tensor
    assert [operand.value.leaf for operand in second.operands] == ["layer.norm1", "layer.linear2"]


def test_checkpointed_blocks_and_repeated_layers():
    def forward(m, x):
        x = m.a(x)
        for _ in range(3):
            x = x + checkpoint(m.a, x, use_reentrant=False)
        return checkpoint(lambda each: F.relu(each + m.a(each)), x, use_reentrant=False)

    found = merges(forward, torch.randn(4, 3), a=nn.Linear(3, 3))
    assert found.calls == {"a": 5}
    assert len(found.found) == 4
    assert all(merge.operands[0].value in merge.operands[1].value.ancestors() for merge in found.found)


def test_no_trace_is_left():
    model = Function(lambda m, x: x + m.norm(x), norm=nn.BatchNorm1d(3))
    before = copy.deepcopy(model.state_dict())
    Merges(model).follow(model, record_call((torch.randn(4, 3),), {}))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not model.norm._forward_hooks
