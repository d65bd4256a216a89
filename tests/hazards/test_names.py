"""Names are the user's: whatever stands in them is kept in the run and escaped on the page."""

import pytest
import torch
from torch import nn

import holdfast as hf
from holdfast.core.site import Site

NAMES = ["a/b:c", "\"quoted\" & 'so'", "<script>alert(1)</script>", "ünïcode ☃", "with space", "[0]#1@eval"]


@pytest.mark.usefixtures("shapes_unchecked")
def test_names_with_slashes_quotes_and_markup(tmp_path):
    layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in NAMES})

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            for layer in self.layers.values():
                x = torch.tanh(layer(x))
            return x

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with hf.watch(model, optimizer, run=tmp_path / "run", every=1, probe=torch.randn(16, 4)):
        for _ in range(3):
            optimizer.zero_grad()
            (100 * model(torch.randn(16, 4) + 5)).square().sum().backward()
            optimizer.step()
    with hf.Run(tmp_path / "run") as run:
        assert not run.history.events("monitor-error")
        for name in NAMES:
            assert len(run.history.summaries(Site(f"layers.{name}", "input"))) == 3
        assert {node.path for node in run.history.structure().modules if node.leaf} == {
            f"layers.{each}" for each in NAMES
        }
        page = run.report(tmp_path / "report.html").read_text()
        run.diagnose()
    assert "<script>alert(1)</script>" not in page
    assert "alert(1)" in page
