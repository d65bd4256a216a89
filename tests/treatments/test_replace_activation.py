import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.treatments.replace_activation import ReplaceActivation


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid())


@pytest.mark.parametrize(("to", "kind"), [("auto", nn.ReLU), ("relu", nn.ReLU), ("gelu", nn.GELU)])
def test_hidden_activations_change_and_the_output_stays(to, kind):
    model = network()
    keys = list(model.state_dict())
    receipt = ReplaceActivation(to, batch=torch.randn(8, 3)).plan(model, None).apply()
    assert [type(model[i]) for i in (1, 3, 5)] == [kind, kind, nn.Sigmoid]
    assert list(model.state_dict()) == keys
    assert receipt.renamed == {}
    assert receipt.error_eval == receipt.error_train > 0.0


def test_a_named_output_activation_changes():
    model = network()
    ReplaceActivation().plan(model, None, [Site("5", "input")]).apply()
    assert [type(model[i]) for i in (1, 3, 5)] == [nn.Sigmoid, nn.Tanh, nn.ReLU]


def test_on_a_batch_order_is_that_of_execution():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.gate, self.head, self.act = nn.Linear(4, 1), nn.Sigmoid(), nn.Linear(3, 4), nn.Tanh()

        def forward(self, x):
            return self.gate(self.out(self.act(self.head(x))))

    model = Model()
    ReplaceActivation(batch=torch.randn(8, 3)).plan(model, None).apply()
    assert (type(model.gate), type(model.act)) == (nn.Sigmoid, nn.ReLU)


def test_nothing_to_replace_is_told():
    with pytest.raises(SurgeryError, match="called as functions are changed in the script"):
        ReplaceActivation().plan(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), None)
    with pytest.raises(SurgeryError, match="none among 0"):
        ReplaceActivation().plan(network(), None, [Site("0", "input")])


def test_subclasses_are_left():
    class Gate(nn.Sigmoid):
        pass

    with pytest.raises(SurgeryError, match="a sigmoid or tanh module"):
        ReplaceActivation().plan(nn.Sequential(nn.Linear(2, 2), Gate(), nn.Linear(2, 2)), None)


def test_a_relu_becomes_a_gelu_only_when_named():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    receipt = ReplaceActivation().plan(model, None).apply()
    assert [type(model[i]) for i in (1, 3)] == [nn.ReLU, nn.ReLU]
    receipt.undo()
    ReplaceActivation().plan(model, None, [Site("1", "output"), Site("3", "input")]).apply()
    assert [type(model[i]) for i in (1, 3)] == [nn.GELU, nn.ReLU]
    with pytest.raises(SurgeryError, match="a sigmoid or tanh module"):
        ReplaceActivation("relu").plan(model, None, [Site("3", "output")])


def test_an_activation_that_is_not_offered_is_refused():
    with pytest.raises(InputError, match='"relu" or "gelu"; got \'selu\''):
        ReplaceActivation(to="selu")
