"""`holdfast report RUN -o FILE`: a run as one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.console import note


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run; it may still be written.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Where the page goes.")] = Path(
        "report.html"
    ),
) -> None:
    """Write a run's report.

    One HTML file with figures, which needs no network.
    """
    from holdfast.api import Run

    with Run(run) as opened:
        path = opened.report(out)
    note("report written to")
    print(path)
