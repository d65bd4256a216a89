import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
TUTORIALS = ["first-run.md"]


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorials_blocks_run_from_top_to_bottom(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = (DOCS / name).read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", source, re.MULTILINE | re.DOTALL))
    assert blocks
    space: dict[str, object] = {"__name__": "tutorial"}
    for block in blocks:
        # Blank lines in front give an error the line number that it has on the page.
        exec(compile("\n" * source[: block.start(1)].count("\n") + block[1], name, "exec"), space)
    printed = capsys.readouterr().out
    assert "shifting-input" in printed or "saturated-units" in printed
    assert (tmp_path / "report.html").stat().st_size > 100_000
