from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from holdfast.core.errors import InputError
from holdfast.core.finding import Diagnosis, Finding
from holdfast.core.reading import Reading, Table
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.report.write import render, write
from holdfast.store.memory import MemoryRun

NASTY = """<script>alert(1)</script>"'/x"""


class _Text(HTMLParser):
    """The words of a page, and its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._inside = ""
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


@pytest.fixture(scope="module")
def page(run, diagnose) -> str:
    return render(run, diagnose(run))


def test_the_page_says_what_the_diagnosis_says(page, run, diagnose):
    text = _Text(page).text
    for words in (
        "Internal covariate shift holds this run back.",
        "1. shifting-input critical The <b>inputs</b> move.",
        "the 8 strongest of 10 readings",
        "Many inputs lie in the flat part. Where layers.19 What answers it",  # a capital; each place once
        "holdfast explain insert-norm",
        "dead-units : no rectifier was observed",
        "sigmoid in layers.3 runs outside every module",
        "1 × critical 1 × warning 1 × info 1 inconclusive",
    ):
        assert words in text
    strongest = diagnose(run).findings[0].evidence[0]
    assert f"{strongest.value:.3g}" in text
    assert f"{strongest.noise_floor:.3g}" in text


def test_the_severity_is_a_word_and_a_shape_and_not_only_a_colour(page):
    icons = re.findall(r'class="badge (\w+)"><svg.*?<path d="([^"]+)"', page, re.S)
    assert len({path for _, path in icons}) == len({severity for severity, _ in icons}) == 3


def test_the_json_of_every_figure_is_strict(page):
    blocks = re.findall(r'<script type="application/json" id="figure-\d+-data">(.*?)</script>', page, re.S)
    assert len(blocks) == 5 + 3  # three ridgelines

    def refuse(word: str) -> None:
        raise AssertionError(word)

    for block in blocks:
        figure = json.loads(block, parse_constant=refuse)
        assert figure["data"]
        assert "template" not in figure["layout"]


def test_tables_have_scoped_heads_and_figures_have_words(page):
    elements = _Text(page).elements
    heads = [attributes for tag, attributes in elements if tag == "th"]
    assert heads
    assert all(attributes.get("scope") in ("col", "row") for attributes in heads)
    plots = [attributes for _, attributes in elements if attributes.get("class") == "plot"]
    assert all(attributes["role"] == "img" and len(attributes["aria-label"] or "") > 60 for attributes in plots)
    levels = [int(tag[1]) for tag, _ in elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_table_of_layers_tells_the_lag_of_every_drift():
    def readings(lags):
        for module, lag in zip("ab", lags, strict=True):
            yield Reading("parameter-drift", Site(module, "input"), 20, 0.2, "reference SD", 64, 0.1, lag=1)
            yield Reading("observed-drift", Site(module, "input"), 20, 0.5, "reference SD", 64, 0.4, lag=lag)

    same, mixed = MemoryRun("same"), MemoryRun("mixed")
    same.write(StepRecord(20, readings=tuple(readings((10, 10)))))
    mixed.write(StepRecord(20, readings=tuple(readings((10, 1)))))
    text = _Text(render(same, Diagnosis("same", 20, "Fine.", ()))).text
    assert "parameter drift, 1 step reference SD over 1 step n = 64" in text
    assert "observed drift reference SD over 10 steps n = 64" in text
    text = _Text(render(mixed, Diagnosis("mixed", 20, "Fine.", ()))).text
    assert "observed drift reference SD n = 64" in text
    assert re.search(r"0\.5\S* floor 0\.4\S* over 10 steps", text)
    assert re.search(r"0\.5\S* floor 0\.4\S* over 1 step ", text)


def test_the_glossary_says_what_each_floor_and_lag_is(page):
    text = _Text(page).text
    floor, lag = (
        text[text.index(f"{term} {start}") :] for term, start in (("Noise floor", "The 95th"), ("Lag", "The"))
    )
    assert "each sample's difference, after minus before, is given a random sign" in floor
    assert "whole samples of the two batches change places at random" in floor
    assert "when nothing has moved" not in text
    assert "Observed drift is measured between the training batches of two consecutive observed steps" in lag


def test_identifiers_are_unique(page):
    names = [attributes["id"] for _, attributes in _Text(page).elements if "id" in attributes]
    assert len(names) == len(set(names))


def test_nothing_of_a_name_is_markup(nasty_run, diagnose):
    page = render(nasty_run, diagnose(nasty_run))
    assert "<script>alert" not in page
    assert NASTY in _Text(page).text
    # A script element ends at `</script`, wherever it stands: no JSON may hold the sign at all.
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    assert len(blocks) >= 5
    assert all("alert(1)" not in block or "<" not in block for block in blocks)
    assert any("alert(1)" in block for block in blocks)


def test_a_run_without_anything():
    page = _Text(render(MemoryRun("x"), Diagnosis("x", 0, "", ())))
    assert "No verdict." in page.text
    assert "No rule fired." in page.text
    assert "No layer was observed." in page.text
    assert page.text.count("no readings") >= 4


def test_the_file_is_written_whole_and_replaces_the_old_one(tmp_path, run, diagnose):
    target = tmp_path / "report.html"
    target.write_text("old")
    assert write(run, diagnose(run), target) == target
    assert target.read_text(encoding="utf-8").endswith("</html>")
    assert list(tmp_path.iterdir()) == [target]
    assert target.stat().st_size < 8e6
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_relative_path_is_taken_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write(MemoryRun("x"), Diagnosis("x", 0, "", ()), "r.html") == tmp_path / "r.html"


@pytest.mark.parametrize(
    ("name", "got"), [("missing/report.html", "No such file or directory"), ("folder", "Is a directory")]
)
def test_a_path_that_cannot_be_written(tmp_path, name, got):
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        write(MemoryRun("x"), Diagnosis("x", 0, "", ()), tmp_path / name)
    assert str(caught.value) == (
        f"expected a path where the report can be written; got {str(tmp_path / name)!r} ({got}); give a file in a"
        " folder that exists and that you may write to, such as: report.html"
    )
    assert sorted(tmp_path.rglob("*")) == before  # no half-written file stays


@pytest.mark.slow
def test_a_thousand_layers_still_make_a_page_that_can_be_sent(run_of, diagnose):
    deep = run_of([(f"encoder.blocks.{at}.output.dense", "Sigmoid") for at in range(1000)], steps=120, every=40)
    assert len(render(deep, diagnose(deep)).encode()) < 8e6


def test_without_a_proof_there_is_no_section_for_one(page):
    assert 'id="proof"' not in page
    assert "Cure and proof" not in page


def test_a_cure_is_told_with_its_change_its_proof_and_its_receipt(run, diagnose, proof, cure_of):
    page = render(run, diagnose(run), cure_of(diagnose(run), (proof,), kept=True))
    text = _Text(page).text
    for words in (
        "Kept: insert-norm",
        "1 change, which receipt.undo() takes back bit for bit",
        "1×10⁻⁷ in eval mode, 0.500 in train mode",
        "1 keys of the state_dict",
        "+ fc: Sequential<br>",  # as text: an element would not be among the words
        "model.fc = '<script>'",
        "chosen: insert-norm, for shifting-input (finding 1): it answers <b>",
        "recipe: warm-up",
        "insert-norm: helps Accuracy, treated − untreated: +0.4 <b>.",
        "2 seeds an arm, 30 steps each",
        "untreated 0.505 2.00 0 of 2 2.00 0.250 n = 40 readings 3 collapsed inputs left out 0.750 <i>",
        "learning rate × 3 0.455 2.20 0 of 2 2.00 – –",
        "Proof: insert-norm, helps Left: mean over the seeds",
    ):
        assert words in text, words


@pytest.mark.parametrize(("tried", "says"), [(True, "Nothing was kept"), (False, "Nothing was tried")])
def test_a_cure_that_keeps_nothing_says_so(run, diagnose, proof, cure_of, tried, says):
    text = _Text(render(run, diagnose(run), cure_of(diagnose(run), (proof,) if tried else (), kept=False))).text
    assert says in text
    assert "The model is as it was." in text


def test_a_proof_alone_is_enough(run, diagnose, proof, tmp_path):
    page = write(run, diagnose(run), tmp_path / "page.html", evidence=proof).read_text(encoding="utf-8")
    assert "insert-norm: helps" in _Text(page).text
    assert "What was weighed" not in page
    assert 'data-figure="proof-figure-1-data"' in page
    assert 'id="proof-figure-1-data"' in page


def test_an_update_taken_apart_is_shown_without_the_rows_of_collapsed_layers():
    run = MemoryRun("runs/apart")
    sites = Site("fc", "input"), Site("dead", "input")
    cells = {"attribution": (0.5, 0.5, 0.0), "attribution-drift": (0.5, 0.5, 0.0), "attribution-floor": (0.1, 0.1, 0.1)}
    columns = ("stem", "all", "interaction")
    for name, row in cells.items():
        table = Table(name, 3, "reference SD", tuple(map(str, sites)), columns, (row, row), 64)
        run.write(StepRecord(3, tables=(table,)))
    dead = Finding("collapsed-signal", "warning", sites[1:], "Samples cannot be told apart.", (), ())
    page = render(run, Diagnosis(run.name, 3, "", (dead,)))
    assert "Whose update moved each layer&#39;s input (update of step 3)" in page
    assert "1 sites by 1 layers. The most moved is fc (0.500 reference SD), 100 % of it by the update of stem" in page
    assert "Whose update moved" not in render(run, Diagnosis(run.name, 3, "", (replace(dead, sites=sites),)))
