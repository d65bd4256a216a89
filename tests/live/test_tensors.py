from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pack_sequence

from holdfast.live.tensors import tensors_in


def test_tensors_of_nested_values_in_their_order():
    @dataclass
    class Output:
        logits: Any
        extra: Any = None

    pair = namedtuple("pair", "a b")
    value = Output({"x": torch.tensor(1)}, [pair(torch.tensor(2), 3), (Output(torch.tensor(4)),), "text", Output])
    assert [tensor.item() for tensor in tensors_in(value)] == [1, 2, 4]
    assert tensors_in(None) == tensors_in(7) == []


def test_packed_sequences_are_looked_into():
    packed = pack_sequence([torch.ones(2), torch.ones(1)])
    assert tensors_in(packed)[0] is packed.data
