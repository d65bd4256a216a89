"""The tutorial runs, prints what stands on the page, and what it says of its figures is so."""

import importlib.util
import math
import re
from pathlib import Path

import jaxtyping
import pytest

from holdfast.core.reading import Table
from holdfast.core.site import Site
from holdfast.measures import OFFLINE, QUANTITIES, WATCHABLE

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "is-it-covariate-shift.md"
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")

_spec = importlib.util.spec_from_file_location("pictures", DOCS / "_pictures.py")
pictures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pictures)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    # Shapes are checked by the tests of what the page uses; here the checks would take most of the time.
    jaxtyping.config.update("jaxtyping_disable", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tutorial"))
        yield pictures.run(PAGE)
    jaxtyping.config.update("jaxtyping_disable", False)


def words(text):
    """Text without its numbers and without how far columns are apart."""
    return NUMBER.sub("#", text).split()


def numbers(text):
    return [float(each) for each in NUMBER.findall(text)]


def test_each_block_prints_what_stands_below_it(ran):
    _, printed = ran
    blocks = list(pictures.BLOCK.finditer(PAGE.read_text("utf-8")))
    assert sum(bool(block["between"]) for block in blocks) == 9
    for block, now in zip(blocks, printed, strict=True):
        assert bool(block["between"]) == bool(now), f"type: make pictures (behind {block['code'][:60]!r})"
        if now:
            assert words(now) == words(block["said"]), "type: make pictures"
            # Another processor rounds otherwise, and twenty steps at a rate of 1 carry that far.
            assert numbers(now) == pytest.approx(numbers(block["said"]), rel=0.3, abs=0.05)


def test_the_calm_network_is_mostly_sampling_by_its_intervals(ran):
    calm = ran[0]["calm"].history
    shares = calm.readings("parameter-share")
    assert len({reading.site for reading in shares}) == 9
    assert all(reading.interval[1] < 0.25 for reading in shares)
    pixels, readout = (calm.readings("observed-drift", ran[0][name])[-1].value for name in ("pixels", "readout"))
    assert 0.5 < readout / pixels < 2
    assert not any(reading.value for reading in calm.readings("parameter-drift", ran[0]["pixels"]))


def test_the_steep_network_is_sampling_below_and_parameters_above(ran):
    share = {
        layer: ran[0]["steep"].history.readings("parameter-share", Site(layer, "input"))[-1] for layer in ("4", "20")
    }
    assert share["4"].interval[1] < 0.01
    assert share["20"].interval[0] > 0.9
    drifts = [
        ran[0]["steep"].history.readings("parameter-drift", Site(str(layer), "input"))[-1].value
        for layer in range(2, 21, 2)
    ]
    assert drifts == sorted(drifts)
    # The one in twenty of which the page speaks: the images of these batches, whatever the processor.
    assert ran[0]["steep"].history.readings("observed-drift", ran[0]["pixels"])[-1].above_noise


def test_attribution_adds_up_and_names_the_layers_right_before(ran):
    found = ran[0]["found"]
    cells = dict(zip(found.effect.columns, found.cells(Site("20", "input")), strict=True))
    together = cells.pop("all")
    assert math.fsum(cell.effect for cell in cells.values()) == pytest.approx(together.effect, rel=1e-6)
    assert max(cells, key=lambda layer: cells[layer].effect) == "18"
    assert cells["18"].above_noise


def test_gradients_hardly_move_at_the_real_steps_and_far_at_equal_ones(ran):
    table = ran[0]["gradients"]
    relative, cosine, matched = (column(table, name) for name in ("relative", "cosine", "relative at ρ=0.01"))
    assert max(relative) < 0.1
    assert min(cosine) > 0.99
    assert max(matched) > 0.3
    assert [table.step for table in ran[0]["apart"].measure("gradient-ics")] == [1, 2, 3]


def test_one_travels_hundreds_of_times_as_far_as_the_other(ran):
    calm, steep = (
        [each for each in ran[0][run].measure("path-length") if each.site == Site(layer, "input", phase="probe")][-1]
        for run, layer in (("calm", "8"), ("steep", "20"))
    )
    assert calm.lag == steep.lag == 10
    assert steep.interval[0] > 200 * calm.interval[1]


def test_the_verdicts_and_the_proof(ran):
    assert "is not what holds this run back" in ran[0]["calm"].diagnose().verdict
    assert "Internal covariate shift is large here" in ran[0]["steep"].diagnose().verdict
    assert ran[0]["proof"].verdict == "helps"


def test_the_pictures_are_of_figures_of_the_run_and_small(ran):
    found = list(pictures.PICTURE.finditer(PAGE.read_text("utf-8")))
    assert len(found) == 3
    for each in found:
        assert (DOCS / each["file"]).stat().st_size < 150_000
        figure = ran[0][f"{each['name']}_figure"]
        assert figure.data
        assert "blank" not in figure.layout.meta


def test_the_table_of_measures_says_what_they_declare():
    rows = re.findall(r"^\| `([\w-]+)` \|(.*)\|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(rows) > 10
    for name, cells in rows:
        _, unit, cost, _, how = (cell.strip() for cell in cells.split("|"))
        assert (unit, cost) == (QUANTITIES[name].unit, QUANTITIES[name].cost)
        assert how == ("asked" if name in WATCHABLE else "stored" if name in OFFLINE else "always")


def column(table: Table, name: str) -> list[float]:
    return list(table.column(name))
