import torch
from torch import nn

from holdfast.live.inner import compiled_model, inner_model


def test_a_plain_model_is_itself():
    net = nn.Linear(1, 1)
    assert inner_model(net) is compiled_model(net) is net


def test_compiled_distributed_and_both_are_looked_into(tmp_path):
    net = nn.Linear(1, 1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        assert inner_model(wrapped) is net
        assert inner_model(torch.compile(wrapped, backend="eager")) is net
        assert inner_model(nn.DataParallel(torch.compile(net, backend="eager"))) is net
        assert compiled_model(wrapped) is compiled_model(torch.compile(wrapped, backend="eager")) is net
        compiled = torch.compile(net, backend="eager")
        assert compiled_model(compiled) is compiled_model(nn.DataParallel(compiled)) is compiled
    finally:
        torch.distributed.destroy_process_group()
