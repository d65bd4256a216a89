"""Runs a page that is a program, and writes what it printed and drew back into it.

    python docs/_pictures.py docs/is-it-covariate-shift.md

A `text` block behind a `python` block is what that block printed. A picture `shift-NAME.png` is the Plotly figure that
the page calls `NAME_figure`. Needs Chromium, and playwright, as the report's tests do.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

CHROMIUM = "/usr/bin/chromium"
WIDTH = 900
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?P<between>\s*^```text\n(?P<said>.*?)^```$)?", re.MULTILINE | re.DOTALL
)
PICTURE = re.compile(r"!\[[^\]]*\]\((?P<file>[\w-]+-(?P<name>\w+)\.png)\)")


def run(page: Path) -> tuple[dict[str, Any], list[str]]:
    """Run a page's blocks from top to bottom.

    Args:
        page: Markdown.

    Returns:
        The names that the blocks leave, and what each block printed.
    """
    source = page.read_text("utf-8")
    space: dict[str, Any] = {"__name__": "page"}
    printed = []
    for block in BLOCK.finditer(source):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            # Blank lines in front give an error the line number that it has on the page.
            exec(compile("\n" * source[: block.start("code")].count("\n") + block["code"], page.name, "exec"), space)
        printed.append(said.getvalue())
    return space, printed


def with_output(source: str, printed: list[str]) -> str:
    """The page with its `text` blocks filled.

    Args:
        source: Markdown.
        printed: what each block printed.
    """
    said = iter(printed)

    def fill(block: re.Match[str]) -> str:
        text = next(said)
        return f"```python\n{block['code']}```" + (f"\n\n```text\n{text}```" if block["between"] else "")

    return BLOCK.sub(fill, source)


def draw(figures: dict[Path, Any]) -> None:
    """Take a picture of each Plotly figure.

    Args:
        figures: by the file to write.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for file, figure in figures.items():
            page = browser.new_page(viewport={"width": WIDTH, "height": int(figure.layout.height)})
            page.set_content(figure.to_html(include_plotlyjs=True, config={"staticPlot": True}))
            page.wait_for_selector(".main-svg")
            page.locator(".plotly-graph-div").screenshot(path=str(file))
        browser.close()


def main() -> None:
    """Rewrite the page named on the command line."""
    page = Path(sys.argv[1]).resolve()
    start = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the runs are of no use afterwards
        try:
            space, printed = run(page)
        finally:
            os.chdir(start)
    source = page.read_text("utf-8")
    page.write_text(with_output(source, printed), "utf-8")
    draw({page.parent / found["file"]: space[f"{found['name']}_figure"] for found in PICTURE.finditer(source)})


if __name__ == "__main__":
    main()
