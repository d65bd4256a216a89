import copy
from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import nn

from holdfast.core.errors import SurgeryError
from holdfast.live.surgery import check_model, one_line, operate


def kind_to(kind, make):
    """A policy: every module of exactly this type becomes `make(module)`."""
    return lambda module, path: make(module) if type(module) is kind else None


def wrap(path):
    """A policy: put a LayerNorm in front of one layer."""

    def policy(module, here):
        if here != path:
            return None
        return nn.Sequential(OrderedDict(norm=nn.LayerNorm(module.in_features), layer=module))

    return policy


def network():
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(fc1=nn.Linear(4, 6), act=nn.Tanh(), fc2=nn.Linear(6, 6), fc3=nn.Linear(6, 2)))


def train(model, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, model[0].in_features)).square().sum().backward()
        optimizer.step()


OPTIMISERS = [
    partial(torch.optim.SGD, lr=0.01),
    partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    partial(torch.optim.Adam, lr=0.01),
    partial(torch.optim.AdamW, lr=0.01, foreach=True),
    partial(torch.optim.Adagrad, lr=0.01),
    partial(torch.optim.RMSprop, lr=0.01),
]


def identities(model, optimizer):
    return (
        [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)],
        [(name, id(parameter)) for name, parameter in model.named_parameters(remove_duplicate=False)],
        [(id(group), id(group["params"]), [id(each) for each in group["params"]]) for group in optimizer.param_groups],
        [id(key) for key in optimizer.state],
    )


def test_an_activation_is_exchanged_and_comes_back():
    model = network()
    old = model.act
    surgery = operate(model, None, kind_to(nn.Tanh, lambda _: nn.ReLU()))
    assert type(model.act) is nn.ReLU
    assert list(model._modules) == ["fc1", "act", "fc2", "fc3"]
    assert surgery.changes == ("act: Tanh() → ReLU()",)
    surgery.undo()
    assert model.act is old


def test_a_policy_that_leaves_all_changes_nothing():
    model = network()
    surgery = operate(model, None, lambda module, path: None)
    assert surgery.changes == ()


def test_keys_that_a_wrapping_renames_are_told_and_convert():
    model = network()
    before = copy.deepcopy(model.state_dict())
    surgery = operate(model, None, wrap("fc2"))
    assert surgery.renamed == {"fc2.weight": "fc2.layer.weight", "fc2.bias": "fc2.layer.bias"}
    assert surgery.added == ("fc2.norm.weight", "fc2.norm.bias")
    missing, unexpected = model.load_state_dict(
        {surgery.renamed.get(key, key): value for key, value in before.items()}, strict=False
    )
    assert missing == ["fc2.norm.weight", "fc2.norm.bias"]
    assert unexpected == []
    assert "state_dict key fc2.weight → fc2.layer.weight" in surgery.changes


def test_removed_keys_are_told():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    surgery = operate(model, None, kind_to(nn.BatchNorm1d, lambda _: nn.Identity()))
    assert "1.running_mean" in surgery.removed
    surgery.undo()
    assert isinstance(model[1], nn.BatchNorm1d)


def test_shared_modules_stay_shared():
    act = nn.Tanh()
    model = nn.Sequential(nn.Linear(4, 4), act, nn.Sequential(nn.Linear(4, 4), act))
    asked = []

    def policy(module, path):
        asked.append(path)
        return nn.GELU() if module is act else None

    surgery = operate(model, None, policy)
    assert type(model[1]) is nn.GELU
    assert model[1] is model[2][1]
    assert asked == ["", "0", "1", "2", "2.0"]
    assert surgery.replacements[0].paths == ("1", "2.1")
    surgery.undo()
    assert model[1] is act
    assert model[2][1] is act


def test_the_inside_of_a_replaced_module_is_left_alone():
    model = nn.Sequential(nn.Sequential(nn.Tanh(), nn.Linear(2, 2)))
    surgery = operate(model, None, lambda module, path: nn.Sequential(module) if path else None)
    assert [each.paths for each in surgery.replacements] == [("0",)]


def test_type_mode_and_frozenness_are_copied():
    model = network().double().eval()
    model.fc2.requires_grad_(False)
    operate(model, None, wrap("fc2"))
    norm = model.fc2.norm
    assert norm.weight.dtype == torch.float64
    assert not norm.training
    assert not norm.weight.requires_grad
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh()).double()
    operate(model, None, kind_to(nn.Tanh, lambda _: nn.PReLU()))
    assert model[1].weight.dtype == torch.float64
    assert model[1].weight.requires_grad


def test_namesakes_take_requires_grad_one_by_one():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    model[1].bias.requires_grad_(False)
    operate(model, None, kind_to(nn.LayerNorm, lambda _: nn.GroupNorm(2, 4)))
    assert model[1].weight.requires_grad
    assert not model[1].bias.requires_grad


def test_buffers_of_what_is_new_take_the_type_but_counters_stay_integers():
    model = network().double()
    operate(model, None, lambda m, p: nn.Sequential(nn.BatchNorm1d(6), m) if p == "fc2" else None)
    assert model.fc2[0].running_var.dtype == torch.float64
    assert model.fc2[0].num_batches_tracked.dtype == torch.int64


def test_hooks_stay_and_their_handles_still_remove():
    model = network()
    seen = []
    handle = model.act.register_forward_hook(lambda *_, **__: seen.append("post"), with_kwargs=True)
    model.act.register_forward_pre_hook(lambda *_: seen.append("pre"))
    surgery = operate(model, None, kind_to(nn.Tanh, lambda _: nn.ReLU()))
    model(torch.randn(2, 4))
    assert seen == ["pre", "post"]
    handle.remove()
    model(torch.randn(2, 4))
    assert seen == ["pre", "post", "pre"]
    surgery.undo()
    model(torch.randn(2, 4))
    assert seen == ["pre", "post", "pre", "pre"]


def test_hooks_of_a_wrapped_layer_fire_once():
    model = network()
    seen = []
    model.fc2.register_forward_hook(lambda *_: seen.append(1))
    operate(model, None, wrap("fc2"))
    model(torch.randn(2, 4))
    assert seen == [1]


def test_full_backward_hooks_go_with_the_place():
    model = network()
    seen = []
    model.act.register_full_backward_hook(lambda module, into, out: seen.append(out[0].shape))
    operate(model, None, kind_to(nn.Tanh, lambda _: nn.ReLU()))
    model(torch.randn(2, 4)).sum().backward()
    assert seen == [(2, 6)]


@pytest.mark.parametrize("make", OPTIMISERS)
@pytest.mark.parametrize("trained", [False, True])
def test_a_training_step_runs_after_surgery_and_undo_is_exact(make, trained):
    model = network()
    optimizer = make(model.parameters())
    if trained:
        train(model, optimizer)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    ids = identities(model, optimizer)
    surgery = operate(model, optimizer, wrap("fc2"))
    held = optimizer.param_groups[0]["params"]
    assert [id(each) for each in held] == [id(each) for each in model.parameters()]
    surgery.undo()
    assert identities(model, optimizer) == ids
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)

    surgery = operate(model, optimizer, wrap("fc2"))
    weight = model.fc2.norm.weight.detach().clone()
    train(model, optimizer)
    assert not torch.equal(model.fc2.norm.weight, weight)
    surgery.undo()
    assert identities(model, optimizer)[:3] == ids[:3]
    assert {id(key) for key in optimizer.state} <= {id(each) for each in model.parameters()}
    train(model, optimizer)


def test_the_optimiser_forgets_what_left_and_remembers_it_at_undo():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    old = list(model[1].parameters())
    moments = copy.deepcopy([optimizer.state[each] for each in old])
    surgery = operate(model, optimizer, kind_to(nn.LayerNorm, lambda _: nn.BatchNorm1d(4)))
    assert [id(each) for each in optimizer.param_groups[0]["params"]] == [id(each) for each in model.parameters()]
    assert not any(each in optimizer.state for each in old)
    assert "optimiser group 0: 1.weight → none" in surgery.changes
    assert "optimiser group 0: none → 1.weight" in surgery.changes
    train(model, optimizer)
    surgery.undo()
    torch.testing.assert_close([optimizer.state[each] for each in old], moments, rtol=0, atol=0)


def test_tied_parameters_stay_with_the_layer_that_keeps_them():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    operate(model, optimizer, lambda m, p: nn.Linear(4, 4, bias=False) if p == "1" else None)
    assert [id(each) for each in optimizer.param_groups[0]["params"]] == [id(model[0].weight), id(model[1].weight)]


def test_vectors_join_the_group_of_vectors():
    model = network()
    matrices = [each for each in model.parameters() if each.ndim > 1]
    vectors = [each for each in model.parameters() if each.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=0.1
    )
    surgery = operate(model, optimizer, wrap("fc2"))
    assert len(optimizer.param_groups[0]["params"]) == 3
    assert any(each is model.fc2.norm.weight for each in optimizer.param_groups[1]["params"])
    assert "optimiser group 1: none → fc2.norm.weight" in surgery.changes


def test_a_layer_without_parameters_takes_the_group_of_the_one_before_it():
    model = network()
    optimizer = torch.optim.SGD(
        [{"params": model.fc1.parameters(), "lr": 1.0}, {"params": [*model.fc2.parameters(), *model.fc3.parameters()]}],
        lr=0.1,
    )
    operate(model, optimizer, kind_to(nn.Tanh, lambda _: nn.PReLU()))
    assert any(each is model.act.weight for each in optimizer.param_groups[0]["params"])


def test_what_wraps_an_unstepped_layer_is_not_stepped():
    model = network()
    optimizer = torch.optim.SGD(model.fc3.parameters(), lr=0.1)
    surgery = operate(model, optimizer, wrap("fc2"))
    assert len(optimizer.param_groups[0]["params"]) == 2
    assert surgery.optimiser == ()


def test_names_in_the_optimiser_follow():
    model = network()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    before = list(optimizer.param_groups[0]["param_names"])
    surgery = operate(model, optimizer, wrap("fc2"))
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    surgery.undo()
    assert optimizer.param_groups[0]["param_names"] == before


def test_a_scheduler_goes_on():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    surgery = operate(model, optimizer, wrap("fc2"))
    train(model, optimizer, 1)
    scheduler.step()
    surgery.undo()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_all_or_nothing_when_the_policy_raises_or_the_user_interrupts(monkeypatch):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    ids = identities(model, optimizer)

    def policy(module, path):
        if path == "fc3":
            raise KeyboardInterrupt
        return nn.ReLU() if type(module) is nn.Tanh else None

    with pytest.raises(KeyboardInterrupt):
        operate(model, optimizer, policy)
    assert identities(model, optimizer) == ids

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.live.optimiser._begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        operate(model, optimizer, wrap("fc2"))
    assert identities(model, optimizer) == ids
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)


def test_two_surgeries_on_one_place_are_undone_last_first():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = operate(model, optimizer, wrap("fc2"))
    second = operate(model, optimizer, lambda m, p: nn.Sequential(m, nn.LayerNorm(6)) if p == "fc2" else None)
    with pytest.raises(SurgeryError, match="undo the later change first"):
        first.undo()
    second.undo()
    first.undo()
    assert type(model.fc2) is nn.Linear
    assert len(optimizer.param_groups[0]["params"]) == 6


class Sub(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.kept = [self.fc]

    def forward(self, x):
        return self.kept[0](x)


class FullyShardedDataParallel(nn.Module):
    """Named as torch's wrapper, which needs a process group."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: nn.DataParallel(nn.Linear(2, 2)), "not wrapped for distribution"),
        (lambda: FullyShardedDataParallel(nn.Linear(2, 2)), "not wrapped for distribution"),
        (lambda: torch.compile(nn.Linear(2, 2), backend="eager"), "not compiled"),
        (lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))), "not scripted or traced"),
        (lambda: nn.Sequential(nn.LazyLinear(2)), "has no shape yet"),
    ],
    ids=["data parallel", "fsdp", "compiled", "traced", "lazy"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_is_not_safe_is_refused(model, reason):
    model = model()
    with pytest.raises(SurgeryError, match=reason):
        check_model(model)
    with pytest.raises(SurgeryError, match=reason):
        operate(model, None, kind_to(nn.Linear, lambda _: nn.Identity()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models_are_refused():
    with pytest.raises(SurgeryError, match="not scripted or traced"):
        check_model(torch.jit.script(nn.Linear(2, 2)))


def test_a_model_compiled_in_place_is_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    model.compile(backend="eager")
    with pytest.raises(SurgeryError, match="not compiled"):
        check_model(model)


def test_a_module_kept_in_a_plain_list_is_refused():
    with pytest.raises(SurgeryError, match="plain attribute 'kept'"):
        operate(Sub(), None, kind_to(nn.Linear, lambda _: nn.Identity()))


def test_the_inside_of_torchs_own_composites_is_refused():
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    with pytest.raises(SurgeryError, match="TransformerEncoderLayer reads by its attribute 'linear1'"):
        operate(model, None, lambda m, p: nn.Sequential(m) if p == "0.linear1" else None)


def test_the_root_is_refused():
    with pytest.raises(SurgeryError, match="wrap it first"):
        operate(nn.Linear(2, 2), None, kind_to(nn.Linear, lambda _: nn.Identity()))


def test_a_module_that_the_model_holds_already_is_refused():
    model = network()
    with pytest.raises(SurgeryError, match="holds elsewhere"):
        operate(model, None, kind_to(nn.Tanh, lambda _: model.fc2))


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (lambda model: torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), "holds none of its parameters"),
        (lambda model: torch.optim.LBFGS(model.parameters()), "state of all parameters together"),
    ],
)
def test_an_optimiser_that_cannot_be_mended_is_refused(optimizer, reason):
    model = network()
    with pytest.raises(SurgeryError, match=reason):
        operate(model, optimizer(model), wrap("fc2"))
    assert type(model.fc2) is nn.Linear


def test_one_line_tells_settings_and_children():
    assert (
        one_line(nn.Sequential(OrderedDict(a=nn.Tanh(), b=nn.PReLU())))
        == "Sequential(a=Tanh(), b=PReLU(num_parameters=1))"
    )
