import copy
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from holdfast.core.errors import WatchError
from holdfast.live.hooks import HookSet, on_gradient


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))


def hook_counts(model):
    names = [name for name in nn.Module().__dict__ if "hooks" in name and name.startswith("_forward")]
    return [len(getattr(module, name)) for module in model.modules() for name in names]


def watched(model, seen):
    hooks = HookSet()
    for path, module in model.named_modules():
        hooks.pre(module, lambda module, args, kwargs, path=path: seen.append(("pre", path)))
        hooks.post(module, lambda module, args, kwargs, output, path=path: seen.append(("post", path)))
    return hooks


def test_hooks_see_arguments_keywords_and_output_and_change_nothing(net):
    class Scaled(nn.Module):
        def forward(self, x, *, scale):
            return {"scaled": x * scale}

    scaled, seen = Scaled(), []
    hooks = HookSet()
    hooks.pre(scaled, lambda module, args, kwargs: seen.append((module, args, kwargs)) or "ignored")
    hooks.post(scaled, lambda module, args, kwargs, output: seen.append((args, kwargs, output)) or "ignored")
    with hooks:
        output = scaled(torch.ones(2), scale=3.0)
    assert output["scaled"].tolist() == [3, 3]
    assert seen[0][0] is scaled
    assert seen[0][1][0].tolist() == [1, 1]
    assert seen[0][2] == {"scale": 3.0}
    assert seen[1][2] is output


def test_attach_and_detach_are_exact_and_idempotent(net):
    theirs = net[0].register_forward_hook(lambda *_: None)
    before, seen = hook_counts(net), []
    hooks = watched(net, seen)
    assert hook_counts(net) == before
    for _ in range(2):
        hooks.attach()
        hooks.attach()
        assert hooks.attached
        net(torch.zeros(1, 4))
        assert len(seen) == 8
        hooks.detach()
        hooks.detach()
        assert hook_counts(net) == before
        net(torch.zeros(1, 4))
        assert len(seen) == 8
        seen.clear()
    theirs.remove()
    assert sum(hook_counts(net)) == 0


def test_a_hook_added_while_attached_is_attached(net):
    hooks, seen = HookSet(), []
    hooks.attach()
    hooks.post(net[0], lambda *_: seen.append(1))
    net(torch.zeros(1, 4))
    hooks.close()
    assert seen == [1]


def test_hooks_vanish_when_the_block_raises(net):
    with pytest.raises(KeyboardInterrupt), watched(net, []):
        raise KeyboardInterrupt
    assert sum(hook_counts(net)) == 0


def test_a_closed_set_refuses_and_says_what_to_do(net):
    hooks = watched(net, [])
    hooks.close()
    hooks.close()
    assert len(hooks) == 0
    for use in (hooks.attach, lambda: hooks.pre(net, print), lambda: hooks.post(net, print)):
        with pytest.raises(WatchError, match=r"expected a set of hooks in use; got one that was closed; make a new"):
            use()


def test_post_hooks_run_after_a_forward_that_raised(net):
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("planted")

    net.append(Broken())
    seen = []
    with watched(net, seen) as _, pytest.raises(ValueError, match="planted"):
        net(torch.zeros(1, 4))
    assert [each for each in seen if each[0] == "pre"][-1] == ("pre", "3")
    assert seen[-2:] == [("post", "3"), ("post", "")]


def test_deep_copies_report_to_nobody_and_work(net):
    seen = []
    with watched(net, seen):
        twin = copy.deepcopy(net)
        average = torch.optim.swa_utils.AveragedModel(net)
        seen.clear()
        x = torch.randn(5, 4)
        expected = twin(x)
        average(x)
        assert seen == []
        assert torch.equal(net(x), expected)
        assert len(seen) == 8
    assert "holdfast" not in repr([list(module._forward_hooks.values()) for module in twin.modules()])


def test_shallow_copies_report_to_nobody(net):
    seen = []
    with watched(net, seen):
        copy.copy(net[0])(torch.zeros(1, 4))
    assert seen == []


def test_state_dict_is_unchanged(net):
    before = list(net.state_dict())
    with watched(net, []):
        assert list(net.state_dict()) == before


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_saved_model_names_no_class_of_ours_and_loads_without_us(net, tmp_path, how):
    path = tmp_path / "model.bin"
    with watched(net, []):
        if how == "pickle":
            path.write_bytes(pickle.dumps(net))
        else:
            torch.save(net, path)
        expected = net(torch.ones(1, 4)).tolist()
    assert b"holdfast" not in path.read_bytes()
    load = (
        f"pickle.load(open({str(path)!r}, 'rb'))"
        if how == "pickle"
        else f"torch.load({str(path)!r}, weights_only=False)"
    )
    # A module that cannot be imported stands where ours would be.
    code = (
        "import sys, pickle; sys.modules['holdfast'] = None; import torch; "
        f"net = {load}; print(net(torch.ones(1, 4)).tolist())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(expected)


def test_another_process_reports_nothing(net):
    seen = []
    gradients = []
    x = torch.ones(1, 4, requires_grad=True)
    with watched(net, seen), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads
        on_gradient(x, gradients.append)
        child = os.fork()
        if child == 0:
            net(x).sum().backward()
            os._exit(7 if seen or gradients else 0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        net(x).sum().backward()
    assert len(seen) == 8
    assert len(gradients) == 1


def test_nothing_is_traced_into_a_compiled_region(net):
    seen = []
    with watched(net, seen):
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        compiled(torch.zeros(2, 4))
    assert seen == []


def test_attaching_costs_microseconds(net):
    # Not a timed test: attaching must touch nothing but the dictionaries of the modules.
    hooks = watched(net, [])
    keys = [dict(module.__dict__) for module in net.modules()]
    hooks.attach()
    assert [list(module.__dict__) for module in net.modules()] == [list(each) for each in keys]
    assert all(
        module.__dict__[name] is value
        for module, each in zip(net.modules(), keys, strict=True)
        for name, value in each.items()
    )
    hooks.close()


@pytest.mark.parametrize("change", ["none", "relu", "add", "view", "slice"])
def test_gradients_are_exact_under_in_place_operations(change):
    def forward(x, listen):
        h = x * 2
        listen(h)
        if change == "relu":
            h = h.relu_()
        elif change == "add":
            h += 1
        elif change == "view":
            h.view(-1).mul_(3)
        elif change == "slice":
            h[:1].mul_(5)
        return (h * torch.arange(6.0).view(2, 3)).sum()

    # The gradient of h before the change is that of x over 2.
    x = torch.randn(2, 3, requires_grad=True)
    seen = []
    forward(x, lambda h: on_gradient(h, lambda gradient: seen.append(gradient.clone()))).backward()
    assert len(seen) == 1
    assert torch.allclose(seen[0], x.grad / 2)


def test_a_gradient_hook_changes_nothing_and_goes():
    x = torch.ones(2, requires_grad=True)
    seen = []
    handle = on_gradient(x, lambda gradient: seen.append((gradient.tolist(), torch.is_grad_enabled())) or gradient * 0)
    (gradient,) = torch.autograd.grad((x**2).sum(), x, create_graph=True)
    assert gradient.tolist() == [2, 2]
    assert gradient.requires_grad
    handle.remove()
    (x**2).sum().backward()
    assert seen == [([2.0, 2.0], False)]
    assert on_gradient(torch.ones(2), print) is None


def test_a_tensor_with_a_gradient_hook_saves_without_a_warning(tmp_path):
    x = torch.ones(2, requires_grad=True)
    on_gradient(x, print)
    torch.save(x, tmp_path / "x.pt")
    assert b"holdfast" not in (tmp_path / "x.pt").read_bytes()
    assert torch.equal(copy.deepcopy(x), x)
