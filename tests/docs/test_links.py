import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = {ROOT / "docs" / "cards.md"}
"""Pages that the documentation's build adds."""


def targets(text):
    """Targets of links and images outside of code, those with a scheme or within the page left out."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)", text)
    named = re.findall(r"^\[[^\]]+\]:\s*<?([^\s>]+)", text, flags=re.MULTILINE)
    html = re.findall(r"<(?:img|a)\b[^>]*?\b(?:src|href)=[\"']([^\"']+)", text)
    found = [each.partition("#")[0] for each in (*inline, *named, *html)]
    return [each for each in found if each and not re.match(r"[a-z][a-z+.-]*:", each)]


def missing(page):
    places = {target: (page.parent / target).resolve() for target in targets(page.read_text("utf-8"))}
    return [target for target, place in places.items() if not place.exists() and place not in GENERATED]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_and_image_exists(page):
    assert missing(page) == []


def test_the_readme_shows_the_report():
    assert "docs/report.png" in targets((ROOT / "README.md").read_text("utf-8"))


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "there.md").write_text("")
    page.write_text(
        "[a](there.md#part) [b](gone.md) ![c](gone.png 'title') <img src=\"gone.svg\"> [d](https://example.org) "
        "[e](#here)\n"
        "\n[f]: gone.txt\n\n```python\nx = y[0](z)\n```\n`[g](code.md)`\n"
    )
    assert missing(page) == ["gone.md", "gone.png", "gone.txt", "gone.svg"]
