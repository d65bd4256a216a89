from __future__ import annotations

import copy
import gc
import pickle

import torch
from torch import nn

from holdfast.live.discover import Registry, models_of, own_part


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def found(parameters: object, registry: object = ()) -> list[nn.Module]:
    return models_of(torch.optim.SGD(parameters, lr=0.1), registry)  # type: ignore[arg-type]


def test_the_outermost_module_is_the_model_also_when_only_a_part_is_stepped() -> None:
    net = Net()
    assert found(net.parameters()) == [net]
    assert found(net.head.parameters()) == [net]
    assert found([net.body[0].bias]) == [net]


def test_wrappers_are_looked_into() -> None:
    net = Net()
    wrapped = nn.DataParallel(net)
    compiled = torch.compile(net, backend="eager")
    assert found(wrapped.parameters()) == [net]
    del wrapped
    assert found(compiled.parameters()) == [net]


def test_a_container_without_a_forward_is_no_model() -> None:
    holder = nn.ModuleDict({"small": nn.Linear(2, 2), "large": Net()})
    assert found(holder.parameters()) == [holder["large"], holder["small"]]


def test_models_without_a_common_parent_come_largest_first() -> None:
    small, large = nn.Linear(2, 2), nn.Linear(20, 20)
    assert found([*small.parameters(), *large.parameters()]) == [large, small]


def test_who_only_keeps_a_reference_to_the_model_is_not_the_model() -> None:
    class Penalty(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, loss: torch.Tensor) -> torch.Tensor:
            return loss + sum(each.square().sum() for each in self.model.parameters())

    net = Net()
    penalty, wrapped = Penalty(net), nn.DataParallel(net)
    assert found(net.parameters()) == [net]
    assert penalty.model is wrapped.module


def test_copies_with_parameters_of_their_own_are_others() -> None:
    net = Net()
    average = copy.deepcopy(net)
    loaded = pickle.loads(pickle.dumps(net))
    for each in (net, average, loaded):
        assert found(each.parameters()) == [each]


def test_loose_tensors_have_no_model() -> None:
    assert found([nn.Parameter(torch.ones(2))]) == []
    assert found([torch.ones(2, requires_grad=True)]) == []


def test_a_frozen_collector_hides_a_model_but_not_from_the_registry() -> None:
    registry = Registry()
    try:
        net, single = Net(), nn.Linear(5, 5)
        gc.freeze()
        assert found(net.parameters()) == []
        assert found(net.parameters(), registry) == [net]
        assert found(single.parameters(), registry) == [single]
    finally:
        gc.unfreeze()
        registry.close()
    later = Net()
    assert all(each is not later for each in registry)


def test_the_registry_keeps_nothing_alive_and_needs_no_hash() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Odd)

    registry = Registry()
    odd = Odd()
    assert any(each is odd for each in registry)
    del odd
    gc.collect()
    assert not any(isinstance(each, Odd) for each in registry)
    registry.close()


def test_proxies_are_not_woken_and_overridden_methods_not_called() -> None:
    class Proxy:
        @property  # type: ignore[misc]
        def __class__(self) -> type:
            raise AssertionError("a lazy object was woken")

    class Shy(Net):
        def parameters(self, recurse: bool = True) -> object:  # type: ignore[override]
            raise AssertionError("a method of the user's was called")

    proxies = [Proxy()]
    shy = Shy()
    gc.collect()
    assert found([shy.head.weight]) == [shy]
    assert len(proxies) == 1


def test_the_part_that_an_optimiser_has_to_itself() -> None:
    net = Net()
    body, head = (frozenset(map(id, each.parameters())) for each in (net.body, net.head))
    assert own_part(net, body, head) == ("body", net.body)
    assert own_part(net, frozenset({id(net.body[0].weight)}), head) == ("body", net.body)
    assert own_part(net, frozenset({id(net.body[0].weight)}), frozenset({id(net.body[0].bias)})) is None
    assert own_part(net, body | head, frozenset()) is None
