import copy
import json
import weakref
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from holdfast.core.structure import FunctionalCall, Structure
from holdfast.live.replay import record_call
from holdfast.live.structure import extract, kind_of
from holdfast.live.unseen import compiled_regions


def seen(model, *args, optimizer=None, **kwargs):
    structure = extract(model, optimizer, call=record_call(args, kwargs))
    assert Structure.from_json(structure.to_json()) == structure
    json.loads(structure.to_json(), parse_constant=pytest.fail)  # no NaN and no Infinity, which JSON lacks
    return structure


def test_mlp_shape_changers_and_dropout_are_passed_through():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.5), nn.Sigmoid(), nn.Identity(), nn.Linear(3, 2))
    structure = seen(net, torch.randn(5, 2, 2))
    assert structure.order == ("0", "1", "2", "3", "4", "5")
    assert structure.edges == (("", "1"), ("1", "3"), ("3", "5"))
    assert structure.functional == ()
    assert structure.not_seen == ()
    assert structure.model == "Sequential"
    assert [node.calls for node in structure.modules] == [1] * 7


def test_shapes_that_leaves_are_given_at_their_first_call():
    conv = nn.Conv1d(3, 3, 3)
    structure = seen(nn.Sequential(conv, conv, nn.Flatten(), nn.Linear(12, 2)), torch.randn(5, 3, 8))
    assert [structure.module(path).input_shape for path in ("", "0", "2", "3")] == [None, (5, 3, 8), (5, 3, 4), (5, 12)]
    assert all(node.input_shape is None for node in extract(conv).modules)


def test_a_structure_written_before_shapes_were_recorded_still_loads():
    structure = seen(nn.Sequential(nn.Linear(2, 2)), torch.randn(5, 2))
    old = json.loads(structure.to_json())
    for node in old["modules"]:
        del node["input_shape"]
    assert Structure.from_json(json.dumps(old)).module("0") == replace(structure.module("0"), input_shape=None)


def test_resnet_with_functional_relu_and_residual_add(small_resnet):
    structure = seen(small_resnet, torch.randn(2, 3, 8, 8))
    assert structure.sources("stem") == ("",)
    assert structure.sources("blocks.0.conv2") == ("blocks.0.norm1",)
    assert structure.sources("blocks.1.conv1") == ("stem", "blocks.0.norm2")
    assert structure.sources("head") == ("stem", "blocks.0.norm2", "blocks.1.norm2")
    assert FunctionalCall("relu", "blocks.0", "blocks.0.norm1") in structure.functional
    assert FunctionalCall("add_", "blocks.0", "blocks.0.norm2") in structure.functional
    assert FunctionalCall("relu", "blocks.0", None) in structure.functional
    assert not any(call.name in ("conv2d", "batch_norm", "linear", "flatten") for call in structure.functional)
    assert structure.not_seen == (
        "the output of relu, called as a function, except where a layer takes it as its input: blocks.0, blocks.1",
    )


@pytest.mark.parametrize("training", [True, False])
def test_transformer_layer(training):
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train(training)
    structure = seen(net, torch.randn(2, 3, 8))
    assert structure.edges == (
        ("", "self_attn"),
        ("", "norm1"),
        ("self_attn", "norm1"),
        ("norm1", "linear1"),
        ("linear1", "linear2"),
        ("norm1", "norm2"),
        ("linear2", "norm2"),
    )
    assert FunctionalCall("relu", "", "linear1") in structure.functional
    assert structure.not_seen[0] == (
        "the output projection and, but for the measure attention-saturation, the attention scores inside "
        "nn.MultiheadAttention: self_attn"
    )
    assert structure.module("self_attn").leaf
    assert not structure.module("self_attn.out_proj").leaf
    assert structure.module("self_attn").settings["num_heads"] == 2
    assert structure.module("").settings["activation"] == "relu"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_say_what_is_hidden(kind):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = kind(3, 4, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    structure = seen(Tagger(), torch.randn(2, 5, 3))
    assert structure.edges == (("", "rnn"), ("rnn", "head"))
    assert structure.not_seen == (
        "the steps in time and, but for the measure gate-saturation, the gates inside nn.LSTM, nn.GRU or nn.RNN: rnn",
    )
    assert structure.module("rnn").settings["hidden_size"] == 4


def test_shared_modules_tied_weights_unused_parts_and_literal_forward():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 4, max_norm=1.0)
            self.bypassed = nn.Linear(4, 4)
            self.act = nn.Tanh()
            self.decoder = nn.Linear(4, 5, bias=False)
            self.decoder.weight = self.embedding.weight
            self.idle = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
            self.position = nn.Parameter(torch.zeros(4))

        def forward(self, tokens):
            x = self.act(self.bypassed.forward(self.embedding(tokens) + self.position))
            x = self.act(x)
            x = F.scaled_dot_product_attention(x, x, x)
            return {"logits": self.decoder(x), "nothing": None}

    net = Odd()
    structure = seen(net, torch.tensor([[1, 2]]))
    assert structure.order == ("embedding", "act", "decoder")
    assert structure.edges == (("", "embedding"), ("embedding", "act"), ("act", "act"), ("act", "decoder"))
    assert structure.aliases == (("embedding.weight", "decoder.weight"),)
    calls = {node.path: node.calls for node in structure.modules}
    assert calls == {
        **{"": 1, "embedding": 1, "bypassed": 0, "act": 2, "decoder": 1},
        **{"idle": 0, "idle.0": 0, "idle.1": 0},
    }
    assert structure.not_seen == (
        "the attention scores inside scaled_dot_product_attention, which is one fused operation, but for the measure "
        "attention-saturation: (model)",
        "what flows through bypassed: its parameters are used by (model) without calling the module (by its "
        ".forward(), or directly), so no hook fires",
        "the output of linear, called as a function, except where a layer takes it as its input: (model)",
        "parts with parameters that did not run on this batch: idle",
    )


def test_a_shared_layer_is_one_node_and_its_parameters_are_aliases():
    shared = nn.Linear(2, 2)
    structure = seen(nn.Sequential(shared, nn.ReLU(), shared), torch.randn(1, 2))
    assert [node.path for node in structure.modules] == ["", "0", "1"]
    assert structure.module("0").calls == 2
    assert structure.edges == (("", "0"), ("0", "1"), ("1", "0"))
    assert structure.aliases == (("0.weight", "2.weight"), ("0.bias", "2.bias"))


def test_optimiser_groups():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [{"params": [net[0].weight], "lr": torch.tensor(0.5)}, {"params": [net[0].bias, net[1].weight]}], lr=0.1
    )
    structure = extract(net, optimizer, stream="generator")
    assert structure.stream == "generator"
    assert structure.optimiser == "AdamW"
    assert [group.parameters for group in structure.groups] == [("0.weight",), ("0.bias", "1.weight")]
    assert [group.settings["lr"] for group in structure.groups] == [0.5, 0.1]
    assert structure.groups[0].settings["betas"] == [0.9, 0.999]
    parameters = {each.name: each for node in structure.modules for each in node.parameters}
    assert [each.group for each in parameters.values()] == [0, 1, 1, None]
    assert [each.requires_grad for each in parameters.values()] == [True, True, True, False]
    assert parameters["0.weight"].shape == (2, 2)
    assert parameters["0.weight"].dtype == "float32"
    assert structure.order == structure.edges == ()
    assert all(node.calls is None for node in structure.modules)
    assert structure.not_seen == (
        "no forward pass was followed: order, data flow and functional operations are unknown",
    )


def test_settings_are_plain_and_kinds_are_the_users():
    class MyLinear(nn.Linear):
        pass

    net = nn.Sequential(
        MyLinear(2, 3), nn.Conv2d(1, 1, (3, 1)), nn.Hardtanh(max_val=float("inf")), spectral_norm(nn.Linear(2, 2))
    )
    structure = extract(net)
    node = structure.module("0")
    assert (node.kind, node.bases) == ("MyLinear", ("Linear",))
    assert node.settings == {"in_features": 2, "out_features": 3}
    assert structure.module("1").settings["kernel_size"] == [3, 1]
    assert structure.module("2").settings["max_val"] == "inf"
    assert structure.module("3").kind == kind_of(net[3]) == "Linear"
    assert structure.module("3").leaf
    assert structure.module("1").bases == ("Conv2d", "_ConvNd")
    assert Structure.from_json(structure.to_json()) == structure


def test_extraction_leaves_no_trace(hard, everything):
    x = torch.randn(16, 6)
    hard(x).sum().backward()
    call = record_call((x,), {})
    before, hooks = everything(hard), copy.copy(hard.body[0]._forward_hooks)
    extract(hard, call=call)
    hard.fail = True
    failed = extract(hard, call=call)
    hard.fail = False
    assert everything(hard) == before
    assert hard.body[0]._forward_hooks == hooks
    assert failed.order == ()
    assert failed.not_seen[0].endswith("are unknown (RuntimeError: planted)")
    assert failed.module("head").calls is None


def test_compiled_and_distributed_models_are_looked_into():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    expected = seen(net, torch.ones(1, 2))
    assert seen(nn.DataParallel(net), torch.ones(1, 2)) == expected
    compiled = torch.compile(net, backend="eager")
    assert seen(compiled, torch.ones(1, 2)) == expected
    assert compiled_regions(compiled) == compiled_regions(nn.DataParallel(compiled)) == [("", net)]
    assert compiled_regions(nn.DataParallel(net)) == []
    net.compile(backend="eager")
    assert compiled_regions(net) == [("", net)]


def test_compiled_regions_are_named():
    net = nn.Sequential(
        nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.compile(nn.Linear(2, 2), backend="eager")
    )
    net[1].compile(backend="eager")
    structure = seen(net, torch.ones(1, 2))
    assert compiled_regions(net) == [("1", net[1]), ("2", net[2])]
    assert structure.edges == (("", "0"), ("0", "1.0"), ("1.0", "1.1"), ("1.1", "2._orig_mod"))


def test_custom_leaves_dataclasses_functions_and_identity_leaves():
    @dataclass
    class Output:
        hidden: torch.Tensor
        rest: tuple

    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return Output(torch.sigmoid(x) * self.scale, (None, {"x": x}))

    class DropPath(nn.Module):
        def forward(self, x):
            return x

    class Negate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return -x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.gate, self.path, self.last = nn.Linear(2, 2), Gate(), DropPath(), nn.Linear(4, 2)

        def forward(self, *, x):
            h = self.path(self.first(x))
            output = self.gate(h)
            state = torch.zeros_like(h)
            state[:, 0] = output.hidden[:, 0]
            return self.last(torch.cat([Negate.apply(state), output.rest[1]["x"]], 1))

    structure = seen(Net(), x=torch.randn(3, 2))
    assert structure.order == ("first", "path", "gate", "last")
    assert structure.edges == (("", "first"), ("first", "path"), ("first", "gate"), ("first", "last"), ("gate", "last"))
    assert FunctionalCall("sigmoid", "gate", "first") in structure.functional
    assert FunctionalCall("neg", "", None) in structure.functional


def test_in_place_activation_owns_the_memory_it_wrote():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.last = nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Linear(2, 2)

        def forward(self, x):
            h = self.first(x)
            self.act(h)
            return self.last(h)

    assert seen(Net(), torch.randn(3, 2)).edges == (("", "first"), ("first", "act"), ("act", "last"))


def test_masks_draw_no_edges():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.last = nn.Embedding(4, 2), nn.Linear(2, 2)

        def forward(self, tokens):
            return self.last(self.embedding(tokens).masked_fill((tokens == 0).unsqueeze(-1), 0.0))

    assert seen(Net(), torch.tensor([[0, 1]])).edges == (("", "embedding"), ("embedding", "last"))


def test_a_scalar_model_without_parameters():
    structure = seen(nn.Sigmoid(), torch.zeros(()))
    assert structure.order == ("",)
    assert structure.edges == (("", ""),)
    assert structure.aliases == structure.groups == ()


def test_lazy_model_is_told_and_not_run():
    structure = extract(nn.Sequential(nn.LazyLinear(2)), call=record_call((torch.ones(1, 2),), {}))
    assert structure.module("0").parameters[0].shape == ()
    assert "InputError" in structure.not_seen[0]


def test_parts_that_cannot_be_repeated_are_still_described():
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        traced = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    structure = extract(nn.Sequential(traced, nn.ReLU()), call=record_call((torch.ones(1, 2),), {}))
    assert [node.path for node in structure.modules] == ["", "0", "1"]
    assert "got a TorchScript part (Linear); watch the model before torch.jit.script" in structure.not_seen[0]


def test_checkpoints_sparse_buffers_and_meta_tensors_are_followed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
            self.register_buffer("adjacency", torch.eye(3).to_sparse())

        def forward(self, x):
            x = checkpoint(self.first, x, use_reentrant=True)
            return self.last(torch.sparse.mm(self.adjacency, x))

    x = torch.randn(3, 2, requires_grad=True)
    assert seen(Net(), x).edges == (("", "first"), ("first", "last"))
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert seen(net, torch.ones(1, 2, device="meta")).edges == (("", "0"), ("0", "1"))


def test_only_the_outermost_idle_parts_are_named():
    net = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})
    net["deep"] = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 2)), nn.ReLU())

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = net

        def forward(self, x):
            return self.parts["deep"][0](self.parts["used"](x))

    assert seen(Net(), torch.ones(1, 2)).not_seen == (
        "parts with parameters that did not run on this batch: parts.idle, parts.deep.1",
    )


def joined(function):
    """Edges into `last`, where `function(first, second, x)` makes its input."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(function(self.first, self.second, x))

    return seen(Net(), torch.randn(3, 2)).sources("last")


def test_a_tensor_made_in_the_likeness_of_another_carries_nothing_of_it():
    assert joined(lambda first, second, x: torch.zeros_like(first(x)) + second(x)) == ("second",)


def test_what_is_written_through_a_view_reaches_the_whole():
    def through_view(first, second, x):
        whole = first(x)
        whole[:, :1].add_(second(x)[:, :1])
        return whole

    assert joined(through_view) == ("first", "second")


def test_a_view_made_out_of_sight_is_known_by_its_memory():
    def out_of_sight(first, second, x):
        h = first(x)
        with torch._C.DisableTorchFunction():
            return h.view(3, 2)

    assert joined(out_of_sight) == ("first",)


def test_a_tied_weight_used_without_its_second_owner_hides_nothing():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.decoder = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.decoder.weight = self.embedding.weight

        def forward(self, tokens):
            return self.embedding(tokens) @ self.decoder.weight.t()

    assert seen(Tied(), torch.tensor([1])).not_seen == ()


def test_activations_are_let_go_while_the_data_is_followed():
    class Kept(nn.Linear):
        def forward(self, x):
            alive.append(sum(each() is not None for each in outputs))
            output = super().forward(x)
            outputs.append(weakref.ref(output))
            return output

    outputs, alive = [], []
    model = nn.Sequential(*[Kept(4, 4) for _ in range(8)])
    structure = seen(model, torch.randn(3, 4))
    assert structure.edges == (("", "0"), *((str(k), str(k + 1)) for k in range(7)))
    assert max(alive) == 1  # a layer's input
