from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.reading import Table
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.figures.attribution import CELLS
from holdfast.figures.attribution import attribution as draw
from holdfast.live.replay import record_call
from holdfast.live.structure import extract
from holdfast.measures.attribution import TABLES, attribution
from holdfast.store.memory import MemoryRun

NASTY = """<script>alert(1)</script>"'/x"""


@pytest.fixture(scope="module")
def net_and_tables():
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)), nn.Linear(8, 2))
    x = torch.randn(32, 8) + 1
    update = {name: 0.1 * torch.randn_like(each) for name, each in net.named_parameters()}
    update["1.0.weight"] *= 0
    update["1.0.bias"] *= 0
    run = MemoryRun()
    run.describe(extract(net, call=record_call((x,), {})))
    tables = attribution(net, x, update, step=4)
    run.write(StepRecord(4, tables=tuple(tables)))
    return run, tables


def written(rows: dict[str, list[tuple[float, float, float]]], columns: tuple[str, ...], step: int = 1) -> MemoryRun:
    """A run with one attribution: (effect, drift, floor) of each column."""
    run = MemoryRun()
    sites = tuple(str(Site(module, "input")) for module in rows)
    for which, name in enumerate(TABLES):
        values = tuple(tuple(cell[which] for cell in row) for row in rows.values())
        table = Table(name, step, Unit.REFERENCE_SD, sites, (*columns, "all", "interaction"), values, 64)
        run.write(StepRecord(step, tables=(table,)))
    return run


def trace(figure, name):
    return next((each for each in figure.data if each.type == "heatmap" and each.name == name), None)


def test_the_cells_are_shares_of_the_joint_drift(net_and_tables):
    run, tables = net_and_tables
    figure = draw(run)
    shares, noise = trace(figure, "share"), trace(figure, "within noise")
    assert list(shares.y) == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1", "3"]
    assert list(shares.x) == ["0.0", "2.0", "interaction"]
    shown = 0
    for row, module in enumerate(shares.y):
        *_, together, _ = tables.cells(Site(module, "input"))
        for column, layer in enumerate(shares.x):
            cell = tables.cells(Site(module, "input"))[tables.effect.columns.index(layer)]
            drawn = shares.z[row, column]
            if cell.drift == cell.floor == 0:
                assert math.isnan(drawn)  # does not feed it
                assert noise is None or math.isnan(noise.z[row, column])
            elif cell.above_noise and together.above_noise:
                assert drawn == pytest.approx(cell.effect / together.effect, rel=1e-5)
                assert shares.customdata[row, column] == pytest.approx([drawn, *cell, together.drift], rel=1e-5)
                shown += 1
            else:
                assert math.isnan(drawn)
                assert noise.z[row, column] == 1
    assert shown >= 6
    assert "step 4" in figure.layout.title.text


def test_outputs_and_another_step_and_what_is_missing(net_and_tables):
    run, _ = net_and_tables
    figure = draw(run, port="output")
    assert list(trace(figure, "share").x)[-2:] == ["3", "interaction"]
    for nothing in (draw(run, step=5), draw(run, stream="other"), draw(MemoryRun())):
        assert nothing.layout.meta["blank"]
        assert nothing.layout.annotations[0].text == "no attribution was taken"


def test_the_last_update_is_shown_unless_another_is_asked_for():
    run = written({"a": [(0.5, 0.5, 0.1), (0.5, 0.5, 0.1), (0.0, 0.0, 0.0)]}, ("w",), step=1)
    late = written({"a": [(0.2, 0.3, 0.1), (0.4, 0.4, 0.1), (0.2, 0.3, 0.1)]}, ("w",), step=9)
    for record in late._records:
        run.write(record)
    assert trace(draw(run), "share").z.tolist() == [pytest.approx([0.5, 0.5])]
    assert np.array(trace(draw(run, step=1), "share").z)[0, 0] == 1


def test_noise_of_a_cell_and_noise_of_a_site_are_grey_and_no_figure_is_blank():
    nothing = (math.nan,) * 3
    run = written(
        {
            "quiet": [(0.1, 0.3, 0.2), (0.1, 0.1, 0.2), (0.0, 0.0, 0.0)],
            "loud": [(0.1, 0.1, 0.2), (1.0, 1.0, 0.2), (0.9, 0.9, 0.2)],
            "dead": [nothing, nothing, nothing],
            "against": [(-0.6, 0.9, 0.2), (0.3, 0.3, 0.2), (0.9, 1.2, 0.2)],
        },
        ("w",),
    )
    figure = draw(run)
    shares, noise = np.array(trace(figure, "share").z), np.array(trace(figure, "within noise").z)
    np.testing.assert_array_equal(noise, [[1, np.nan], [1, np.nan], [np.nan] * 2, [np.nan] * 2])
    np.testing.assert_allclose(shares, [[np.nan] * 2, [np.nan, 0.9], [np.nan] * 2, [-2, 3]], rtol=1e-6, equal_nan=True)
    assert (trace(figure, "share").zmin, trace(figure, "share").zmax) == (-1, 1)
    assert "The most moved is loud (1.00 reference SD), 90 % of it by interaction." in figure.layout.meta["alt"]
    assert "2 of 4 sites lie within noise" in figure.layout.meta["alt"]
    dots = {label for each in figure.data if each.type == "scatter" for label in each.y}
    assert dots - {None} == {"quiet", "loud", "against"}


def test_a_name_cannot_become_markup():
    cells = [(1.0, 1.0, 0.1)] * 3
    figure = draw(written({NASTY: cells, "$x^2$": cells}, (NASTY,)))
    names = [*trace(figure, "share").y, *trace(figure, "share").x, *figure.layout.xaxis.ticktext]
    assert not any("<" in name or "$" in name for name in names)


def test_of_very_many_layers_the_strongest_are_kept():
    layers = tuple(f"w{index}" for index in range(150))
    rows = {
        f"l{row}": [*((0.001 * (index + 1), 1.0, 0.1) for index in range(150)), (1.0, 1.0, 0.1), (0.0, 0.0, 0.1)]
        for row in range(150)
    }
    figure = draw(written(rows, layers))
    shares = trace(figure, "share")
    assert np.array(shares.z).size <= CELLS
    assert list(shares.x)[-2:] == ["w149", "interaction"]
    assert "weaker ones left out" in figure.layout.xaxis.title.text
    assert len(figure.layout.xaxis.tickvals) <= 51
