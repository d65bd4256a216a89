"""The page in a real browser: what only a browser can tell."""

from __future__ import annotations

import pytest

from holdfast.core.finding import Diagnosis
from holdfast.report.write import write
from holdfast.store.memory import MemoryRun

pytestmark = pytest.mark.browser

NASTY = """<script>alert(1)</script>"'/x"""
PLOTS = "document.querySelectorAll('.plot')"


@pytest.fixture(scope="module")
def report(run, diagnose, tmp_path_factory):
    return write(run, diagnose(run), tmp_path_factory.mktemp("report") / "report.html")


def test_the_figures_are_drawn_without_a_complaint_and_without_the_network(report, open_page):
    opened = open_page(report)
    assert opened.complaints == []
    assert opened.requests == [report.as_uri()]
    boxes = opened.page.evaluate(
        f"[...{PLOTS}].map((plot) => {{ const box = plot.querySelector('svg.main-svg').getBoundingClientRect();"
        " return [box.width, box.height, plot.querySelectorAll('.trace, .hm, image').length]; })"
    )
    assert len(boxes) == 8
    for width, height, traces in boxes:
        assert width > 800
        assert height >= 280
        assert traces > 0


def test_the_network_is_shut_off_even_for_what_is_injected(report, open_page):
    opened = open_page(report)
    failed = opened.page.evaluate(
        "new Promise((done) => { const image = new Image(); image.onerror = () => done(true);"
        " image.onload = () => done(false); image.src = 'http://127.0.0.1:9/x.png'; })"
    )
    assert failed
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)


def test_a_name_that_is_an_attack_is_only_text(nasty_run, diagnose, tmp_path, open_page):
    opened = open_page(write(nasty_run, diagnose(nasty_run), tmp_path / "r.html"))
    assert opened.complaints == []  # a dialog would be one
    assert opened.page.locator("table.layers th[scope=row] .path").first.inner_text() == NASTY
    labels = opened.page.evaluate("[...document.querySelectorAll('.ytick text')].map((each) => each.textContent)")
    assert "<script>aler…</script>\"'/x" in labels
    assert "$x^2$" in labels


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_system_and_the_button_turns_it_over(report, open_page, scheme):
    page = open_page(report, color_scheme=scheme).page
    colours = {"light": ("rgb(244, 246, 248)", "rgb(255, 255, 255)"), "dark": ("rgb(16, 21, 26)", "rgb(23, 29, 36)")}
    other = "dark" if scheme == "light" else "light"

    def look() -> tuple[str, str]:
        return tuple(
            page.evaluate(
                "[getComputedStyle(document.body).backgroundColor,"
                f" getComputedStyle({PLOTS}[0].querySelector('svg.main-svg')).backgroundColor]"
            )
        )

    assert look() == colours[scheme]
    button = page.get_by_role("button", name=f"{other} theme")
    button.click()
    page.wait_for_function(
        f"getComputedStyle({PLOTS}[7].querySelector('svg.main-svg')).backgroundColor === '{colours[other][1]}'"
    )
    assert look() == colours[other]
    page.get_by_role("button", name=f"{scheme} theme").click()
    assert look()[0] == colours[scheme][0]


def test_a_phone_shows_it_without_scrolling_sideways(report, open_page):
    page = open_page(report, viewport={"width": 360, "height": 740}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    widths = page.evaluate(
        f"[...{PLOTS}].map((plot) => plot.querySelector('svg.main-svg').getBoundingClientRect().width)"
    )
    assert max(widths) <= 360


def test_a_sheet_of_paper_is_white(report, open_page):
    page = open_page(report, color_scheme="dark").page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(f"getComputedStyle({PLOTS}[0].querySelector('svg.main-svg')).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    assert not page.get_by_role("button").first.is_visible()


def test_pointing_at_a_cell_tells_its_figures(report, open_page):
    page = open_page(report, viewport={"width": 1200, "height": 1000}).page
    heat = page.locator(".plot").nth(2)
    heat.scroll_into_view_if_needed()
    box = heat.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.97)
    hover = heat.locator(".hoverlayer .hovertext")
    hover.wait_for()
    words = hover.text_content()
    for part in ("layers.19", "reference SD", "95\u00a0% interval", "noise floor", "n = 64"):
        assert part in words


def test_a_run_without_anything_is_still_a_page(open_page, tmp_path):
    opened = open_page(write(MemoryRun("x"), Diagnosis("x", 0, "Nothing was observed.", ()), tmp_path / "r.html"))
    assert opened.complaints == []
