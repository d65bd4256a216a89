import re
from pathlib import Path

import torch

from holdfast.norms.examples import examples
from holdfast.norms.make import MAKERS

PAGE = Path(__file__).parents[2] / "docs" / "normalisers.md"
SOURCE = PAGE.read_text("utf-8")


def rows(head):
    """Rows by their name of the table whose head begins so; cells without spaces and backticks."""
    table = SOURCE[SOURCE.index(f"| {head}") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table]
    return {each[0]: each[1:] for each in cells}


def test_the_examples_run_from_top_to_bottom_and_print_what_they_say(capsys):
    torch.manual_seed(0)
    space: dict[str, object] = {"__name__": "page"}
    for block in re.finditer(r"^```python\n(.*?)^```$", SOURCE, re.MULTILINE | re.DOTALL):
        exec(compile("\n" * SOURCE[: block.start(1)].count("\n") + block[1], PAGE.name, "exec"), space)
    said = re.findall(r"^print\(.*?\)  # (.*)$", SOURCE, re.MULTILINE)
    assert len(said) == 3
    assert capsys.readouterr().out.splitlines() == said


def test_every_name_has_a_row_with_its_class_its_formula_and_its_state():
    shown, found = rows("name in `make`"), examples()
    assert list(shown) == list(MAKERS), "docs/normalisers.md needs one row a name, in the order of MAKERS"
    for name, (classes, formula, _, differs) in shown.items():
        spec = found[name].spec
        assert type(found[name]).__name__ in classes.split(", ")
        assert formula == spec.formula
        assert differs == ("yes" if spec.state == "running" else "no")


def test_every_name_has_words_on_when_it_is_right_and_when_wrong():
    shown = rows("name | right for")
    assert list(shown) == list(MAKERS)
    assert all(len(right) > 20 and len(wrong) > 20 for right, wrong in shown.values())
