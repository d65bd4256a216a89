"""Writes the page of cards from the docstrings that `holdfast explain` prints."""

from typing import Any

from mkdocs.structure.files import File, Files

from holdfast.api import card_names, explain

_TITLES = {"diagnosis": "Rules", "measures": "Measures", "treatments": "Treatments", "norms": "Normalisers"}


def on_files(files: Files, config: Any) -> Files:
    """Add the page `cards.md`."""
    lines = ["# Cards", "", "What `holdfast explain NAME` prints.", ""]
    for family, names in card_names().items():
        lines += [f"## {_TITLES[family]}", ""]
        for name in names:
            lines += [f"### {name}", "", "```text", explain(name), "```", ""]
    files.append(File.generated(config, "cards.md", content="\n".join(lines)))
    return files
