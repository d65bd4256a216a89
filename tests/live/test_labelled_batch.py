import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.live.labelled_batch import LabelledBatch, gradients_of


def test_parts_are_disjoint_and_leave_whole_what_serves_every_sample():
    x, mask = torch.arange(22.0).reshape(11, 2), torch.ones(3, 2)
    batch = LabelledBatch.of(((x, mask, "text"), torch.arange(11)), F.mse_loss)
    parts = batch.parts(2, "")
    assert [part.samples for part in parts] == [5, 5]
    assert torch.equal(torch.cat([part.inputs[0] for part in parts]), x[:10])
    assert torch.cat([part.targets for part in parts]).tolist() == list(range(10))
    assert all(part.inputs[1] is mask and part.inputs[2] == "text" for part in parts)


def test_a_batch_whose_first_axis_is_not_the_samples_is_not_cut():
    sequence = LabelledBatch.of((torch.zeros(24, 16, 3), torch.zeros(16)), F.mse_loss)  # time first
    assert not sequence.can_be_cut(2)
    with pytest.raises(InputError, match="along the first axis of inputs and targets; got lengths 16, 24"):
        sequence.parts(2, "")


def test_targets_that_are_missing_and_losses_without_a_graph_are_told():
    batch = LabelledBatch.of((torch.ones(4, 2), None), F.cross_entropy)
    with pytest.raises(InputError, match="targets for the loss; got None, with which it fails"):
        batch.loss(torch.ones(4, 2))
    plain = LabelledBatch.of((torch.ones(4, 2), None), lambda output, _: output.sum())
    assert plain.loss(torch.ones(4, 2)).shape == ()
    with pytest.raises(InputError, match="got one without a graph"):
        plain.traced_loss(torch.ones(4, 2))


class OneWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()


def test_operations_without_a_gradient_are_told():
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(InputError, match="a forward pass that can be differentiated; got NotImplementedError"):
        gradients_of(OneWay.apply(w).sum(), [w])
    assert gradients_of((w * 3).sum(), [w, nn.Parameter(torch.ones(1))])[1] is None
