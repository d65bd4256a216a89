import pytest
import torch
from torch import nn

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.recurrent_batchnorm import RecurrentBatchNorm

SEQUENCES = torch.randn(4, 10, 3)


class Cell(nn.Module):
    def __init__(self, norm_input=nn.Identity, norm_hidden=nn.Identity):
        super().__init__()
        self.wx, self.wh = nn.Linear(3, 6), nn.Linear(6, 6, bias=False)
        self.norm_input, self.norm_hidden = norm_input(6), norm_hidden(6)

    def forward(self, x, hidden):
        return torch.tanh(self.norm_input(self.wx(x)) + self.norm_hidden(self.wh(hidden)))


class Recurrent(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(6, 2)

    def forward(self, x):
        hidden = torch.zeros(len(x), 6)
        for step in range(x.shape[1]):
            hidden = self.cell(x[:, step], hidden)
        return self.head(hidden)


def test_a_batchnorm_in_the_loop_is_a_warning(described):
    model = Recurrent(Cell(norm_hidden=nn.BatchNorm1d))
    (finding,) = RecurrentBatchNorm().check(described(model, SEQUENCES))
    assert finding.severity == "warning"
    assert finding.message == (
        "'cell.norm_hidden' ran 10 times in one forward pass on what came of its own output: one running mean serves "
        "them all, and of its value before the pass 35 % is left after it"
    )
    (reading,) = finding.evidence
    assert (reading.measure, reading.value, reading.unit, reading.n) == ("calls", 10.0, "count", 1)


def test_what_is_left_is_what_torch_leaves(described):
    model = Recurrent(Cell(norm_hidden=nn.BatchNorm1d))
    model.cell.norm_hidden.running_mean.fill_(1e6)
    model(SEQUENCES)
    assert model.cell.norm_hidden.running_mean.mean().item() / 1e6 == pytest.approx(0.9**10, rel=1e-3)


def test_a_batchnorm_of_a_cells_input_is_a_remark(described):
    model = Recurrent(Cell(norm_input=nn.BatchNorm1d))
    (finding,) = RecurrentBatchNorm().check(described(model, SEQUENCES))
    assert finding.severity == "info"
    assert "'cell.norm_input' ran 10 times" in finding.message
    assert "beside layers that work on their own output" in finding.message


def test_one_normaliser_at_several_depths_suffers_alike(described):
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(nn.Linear(3, 3), norm, nn.ReLU(), nn.Linear(3, 3), norm)
    (finding,) = RecurrentBatchNorm().check(described(model, torch.randn(8, 3)))
    assert finding.severity == "warning"
    assert "ran 2 times" in finding.message
    assert "81 % is left" in finding.message


def _untracked(width):
    return nn.BatchNorm1d(width, track_running_stats=False)


@pytest.mark.parametrize(
    "cell",
    [Cell(), Cell(nn.LayerNorm, nn.LayerNorm), Cell(norm_hidden=_untracked)],
    ids=["none", "layer", "no running statistics"],
)
def test_recurrences_without_running_statistics_are_well(described, cell):
    assert RecurrentBatchNorm().check(described(Recurrent(cell), SEQUENCES)) == []


def test_twins_and_a_single_time_step_are_well(described):
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())

        def forward(self, x):
            return (self.body(x) - self.body(-x)).square().sum(1)

    assert RecurrentBatchNorm().check(described(Twins(), torch.randn(8, 3))) == []
    model = Recurrent(Cell(norm_hidden=nn.BatchNorm1d))
    assert RecurrentBatchNorm().check(described(model, SEQUENCES[:, :1])) == []


def test_a_cumulative_average_has_no_share_that_is_left(described):
    model = Recurrent(Cell(norm_hidden=lambda width: nn.BatchNorm1d(width, momentum=None)))
    (finding,) = RecurrentBatchNorm().check(described(model, SEQUENCES))
    assert finding.message.endswith("one running mean serves them all")


def test_without_a_pass_it_is_undecided(described):
    answer = RecurrentBatchNorm().check(described(Recurrent(Cell(norm_hidden=nn.BatchNorm1d))))
    assert isinstance(answer, Inconclusive)
    assert "no forward pass was followed" in answer.reason
