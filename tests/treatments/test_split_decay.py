import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR

from holdfast.core.errors import SurgeryError
from holdfast.core.site import Site
from holdfast.treatments.split_decay import SplitDecay


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm((3, 4)), nn.Linear(4, 2))


def step(model, optimizer, scheduler=None):
    optimizer.zero_grad()
    model(torch.tensor([[0, 1, 2], [3, 4, 0]])).square().mean().backward()
    optimizer.step()
    if scheduler is not None:
        scheduler.step()


def held(model, optimizer):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [([names[each] for each in group["params"]], group["weight_decay"]) for group in optimizer.param_groups]


def test_vectors_biases_and_gains_of_any_shape_leave_for_a_group_without_decay():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25, betas=(0.8, 0.9), weight_decay=0.1)
    step(model, optimizer)
    moments = {key: id(value["exp_avg"]) for key, value in optimizer.state.items()}
    receipt = SplitDecay().plan(model, optimizer).apply()
    assert held(model, optimizer) == [
        (["0.weight", "1.weight", "3.weight"], 0.1),
        (["1.bias", "2.weight", "2.bias", "3.bias"], 0.0),
    ]
    first, second = optimizer.param_groups
    for key in set(first) - {"params", "weight_decay"}:
        assert first[key] == second[key], key
    assert {key: id(value["exp_avg"]) for key, value in optimizer.state.items()} == moments
    assert receipt.changes[0] == "1.bias: optimiser group 0, weight_decay 0.1 → group 1, weight_decay 0"


def test_the_step_afterwards_is_that_of_groups_split_from_the_start():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    step(model, optimizer)
    other = copy.deepcopy(model)
    matrices = [each for name, each in other.named_parameters() if name in ("0.weight", "1.weight", "3.weight")]
    rest = [each for each in other.parameters() if not any(each is matrix for matrix in matrices)]
    rival = torch.optim.SGD([{"params": matrices, "weight_decay": 0.5}, {"params": rest}], lr=0.1, momentum=0.9)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        rival.state[theirs] = copy.deepcopy(optimizer.state[mine])
    SplitDecay().plan(model, optimizer).apply()
    step(model, optimizer)
    step(other, rival)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_embeddings_leave_when_wanted_unless_tied():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    SplitDecay(embeddings=True).plan(model, optimizer).apply()
    assert "0.weight" in held(model, optimizer)[1][0]
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters())
    SplitDecay(embeddings=True).plan(model, optimizer).apply()
    assert held(model, optimizer)[1][0] == ["1.bias"]


def test_a_group_of_nothing_else_loses_its_decay_and_others_stay():
    model = network()
    vectors = [each for each in model.parameters() if each.ndim == 1]
    matrices = [each for each in model.parameters() if each.ndim > 1]
    optimizer = torch.optim.SGD([{"params": vectors}, {"params": matrices, "weight_decay": 0}], 0.1, weight_decay=0.2)
    plan = SplitDecay().plan(model, optimizer)
    receipt = plan.apply()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0]
    assert receipt.changes == ("optimiser group 0: weight_decay 0.2 → 0",)
    receipt.undo()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0]
    exec(plan.source, {"model": model, "optimizer": optimizer})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0]


SCHEDULERS = {
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda epoch: 1 / (epoch + 1)),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 10),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.3, total_steps=20),
    "sequential": lambda optimizer: SequentialLR(
        optimizer,
        [LinearLR(optimizer, 0.1, total_iters=2), LambdaLR(optimizer, lambda epoch: 1 / (epoch + 2))],
        milestones=[3],
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("pasted", [False, True])
def test_a_scheduler_given_steps_both_groups_alike_and_undo_takes_it_back(kind, pasted):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=0.1)
    scheduler = SCHEDULERS[kind](optimizer)
    step(model, optimizer, scheduler)
    plan = SplitDecay(scheduler=scheduler).plan(model, optimizer)
    if pasted:
        exec(plan.source, {"model": model, "optimizer": optimizer, "scheduler": scheduler})
    else:
        receipt = plan.apply()
    for _ in range(5):
        step(model, optimizer, scheduler)
        assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[1]["lr"]
    assert len(scheduler.get_last_lr()) == 2
    if not pasted:
        receipt.undo()
        step(model, optimizer, scheduler)
        assert len(scheduler.get_last_lr()) == len(optimizer.param_groups) == 1


def test_a_scheduler_not_given_is_asked_for_where_a_group_is_split():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=0.1)
    SplitDecay().plan(model, optimizer)
    LambdaLR(optimizer, lambda epoch: 1.0)
    with pytest.raises(SurgeryError, match=r"type: SplitDecay\(scheduler=scheduler\)"):
        SplitDecay().plan(model, optimizer)
    vectors = nn.LayerNorm(4)
    alone = torch.optim.SGD(vectors.parameters(), lr=0.2, weight_decay=0.1)
    LambdaLR(alone, lambda epoch: 1.0)
    assert SplitDecay().plan(vectors, alone).apply().changes == ("optimiser group 0: weight_decay 0.1 → 0",)


def test_undo_reaches_the_groups_that_a_checkpoint_brought():
    model = network()
    vectors = [each for each in model.parameters() if each.ndim == 1]
    rest = [each for each in model.parameters() if each.ndim > 1]
    optimizer = torch.optim.SGD([{"params": rest}, {"params": vectors}], lr=0.2, momentum=0.9, weight_decay=0.1)
    scheduler = LambdaLR(optimizer, lambda epoch: 1.0)
    before = held(model, optimizer)
    receipt = SplitDecay(scheduler=scheduler).plan(model, optimizer).apply()
    assert [decay for _, decay in held(model, optimizer)] == [0.1, 0.0, 0.0]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    receipt.undo()
    assert held(model, optimizer) == before
    step(model, optimizer, scheduler)


def test_undo_is_refused_where_groups_were_exchanged_and_nothing_changes():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    receipt = SplitDecay().plan(model, optimizer).apply()
    group = optimizer.param_groups[1]
    optimizer.param_groups[1] = {**group, "params": list(group["params"])}
    with pytest.raises(SurgeryError, match="groups that were exchanged for others since"):
        receipt.undo()
    assert len(optimizer.param_groups) == 2


def test_names_in_groups_go_along_and_come_back():
    model = network()
    optimizer = torch.optim.AdamW(model.named_parameters())
    plan = SplitDecay().plan(model, optimizer)
    receipt = plan.apply()
    named = [group["param_names"] for group in optimizer.param_groups]
    assert named == [names for names, _ in held(model, optimizer)]
    receipt.undo()
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    exec(plan.source, {"model": model, "optimizer": optimizer})
    assert [group["param_names"] for group in optimizer.param_groups] == named


def test_a_rate_that_is_a_tensor_is_one_of_its_own():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.5), foreach=False)
    SplitDecay().plan(model, optimizer).apply()
    optimizer.param_groups[0]["lr"].fill_(0.25)
    assert optimizer.param_groups[1]["lr"].item() == 0.5


def test_only_the_named_layers():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    SplitDecay().plan(model, optimizer, [Site("2", "output")]).apply()
    assert held(model, optimizer)[1][0] == ["2.weight", "2.bias"]


def test_undo_is_refused_after_a_later_change_and_nothing_changes():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    receipt = SplitDecay().plan(model, optimizer).apply()
    moved = optimizer.param_groups[1]["params"].pop()
    with pytest.raises(SurgeryError, match="undo the later change first"):
        receipt.undo()
    assert len(optimizer.param_groups) == 2
    optimizer.param_groups[1]["params"].append(moved)
    receipt.undo()
    assert len(optimizer.param_groups) == 1


def test_a_group_that_cannot_be_added_leaves_all_as_it_was(monkeypatch):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    before = held(model, optimizer)
    plan = SplitDecay().plan(model, optimizer)
    monkeypatch.setattr(optimizer, "add_param_group", lambda group: (_ for _ in ()).throw(RuntimeError("full")))
    with pytest.raises(RuntimeError, match="full"):
        plan.apply()
    assert held(model, optimizer) == before


def test_nothing_to_split_is_told():
    model = network()
    with pytest.raises(SurgeryError, match="none among the 1 groups of the SGD"):
        SplitDecay().plan(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(SurgeryError, match="expected an optimiser; got None"):
        SplitDecay().plan(model, None)
