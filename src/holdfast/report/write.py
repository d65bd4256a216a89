"""`write`: a run's report, one HTML file that needs nothing else."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from holdfast.clinic.cure import Cure
from holdfast.clinic.proof import Proof
from holdfast.core.errors import InputError
from holdfast.core.finding import SEVERITIES, Diagnosis
from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.figures.attribution import attribution
from holdfast.figures.drift_by_depth import drift_by_depth
from holdfast.figures.drift_heatmap import drift_heatmap
from holdfast.figures.gain_by_depth import gain_by_depth
from holdfast.figures.loss import loss
from holdfast.figures.norm_axes import norm_axes
from holdfast.figures.proof_curves import proof_curves
from holdfast.figures.ridgeline import ridgeline
from holdfast.figures.theme import THEMES, template
from holdfast.figures.wording import number, verdict
from holdfast.live.leaves import saturation_threshold
from holdfast.measures.attribution import attributions
from holdfast.norms.sketch import sketch
from holdfast.report.arms import arm_rows
from holdfast.report.believable import Believable
from holdfast.report.facts import run_facts
from holdfast.report.layers import LayerRow, layer_rows
from holdfast.report.normalisers import normaliser_rows

_HERE = Path(__file__).parent

MOST_EVIDENCE = 8
MOST_SITES = 12
MOST_EVENTS = 100
RIDGELINES = 3

_COLUMNS = {
    "drift": "parameter drift, 1 step",
    "drift_100": "parameter drift, 100 steps or more",
    "observed_drift": "observed drift",
    "saturated": "saturated",
    "dead": "dead units",
    "backward_gain": "backward gain",
    "drift_gain": "drift gain",
    "collapsed": "collapsed",
}

_PROOF_CAPTION = (
    "Left: mean over the seeds of the training loss, smoothed, with the 95\u00a0% interval of that mean. Right: the"
    " paired difference on the eval batches, seed by seed, and its mean with the interval that decides."
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the layer table: field of `LayerRow`, head, unit; `n` and `lag` where all readings have the same."""

    field: str
    head: str
    unit: str
    n: int | None
    lag: int | None


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure on the page: heading, caption, alternative text, height in pixels, Plotly's JSON (none when blank)."""

    title: str
    caption: str
    alt: str
    height: int
    json: str


def write(history: History, diagnosis: Diagnosis, path: str | Path, *, evidence: Cure | Proof | None = None) -> Path:
    """Write a run's report as one self-contained HTML file.

    The file appears whole or not at all: it is written beside its place and moved there.

    Args:
        history: the run.
        diagnosis: of the same run.
        path: of the file; an existing one is replaced.
        evidence: what was tried against the findings: a proof, or a whole cure.

    Returns:
        The path, absolute.

    Raises:
        InputError: the file cannot be written there.
    """
    target = Path(path).expanduser().absolute()
    page = render(history, diagnosis, evidence)
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".part", dir=target.parent)
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(page)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's own 0600 would keep others from reading the report
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise InputError(
            "a path where the report can be written",
            f"{str(path)!r} ({error.strerror or error})",
            "give a file in a folder that exists and that you may write to, such as: report.html",
        ) from error
    return target


def render(history: History, diagnosis: Diagnosis, evidence: Cure | Proof | None = None) -> str:
    """The page as text.

    Args:
        history: the run.
        diagnosis: of the same run.
        evidence: see `write`.

    Returns:
        A complete HTML document without references to anything outside it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    counts = Counter(finding.severity for finding in diagnosis.findings)
    tally = [(severity, counts[severity]) for severity in reversed(SEVERITIES) if counts[severity]]
    history = Believable(history, diagnosis)
    streams = list(history.streams()) or ["net"]
    events = list(history.events())
    cure = evidence if isinstance(evidence, Cure) else None
    proofs = (evidence,) if isinstance(evidence, Proof) else cure.proofs if cure is not None else ()
    return environment.get_template("report.html.jinja").render(
        diagnosis=diagnosis,
        tally=tally,
        worst=tally[0][0] if tally else None,
        models=[_model(stream, layer_rows(history, stream)) for stream in streams],
        cure=cure,
        trials=[(proof, arm_rows(proof), _drawing(proof_curves(proof), _PROOF_CAPTION, "")) for proof in proofs],
        normalisers=[each for stream in streams if (each := _normalisers(history, stream)) is not None],
        figures=[drawing for stream in streams for drawing in _drawings(history, diagnosis, stream, len(streams) > 1)],
        facts=run_facts(history),
        events=events[:MOST_EVENTS],
        event_count=len(events),
        most_evidence=MOST_EVIDENCE,
        most_sites=MOST_SITES,
        number=number,
        sentence=_sentence,
        verdict=verdict,
        version=_version(),
        css=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        js=Markup((_HERE / "report.js").read_text(encoding="utf-8")),
        library=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        templates=_json({theme: template(theme).to_plotly_json() for theme in THEMES}),
    )


def _model(stream: str, rows: Sequence[LayerRow]) -> dict[str, Any]:
    """The layer table of one model; a column that no layer fills is left out."""
    columns = []
    for field, head in _COLUMNS.items():
        readings: list[Reading] = [each for row in rows if (each := getattr(row, field)) is not None]
        if readings:
            sizes, lags = {each.n for each in readings}, {each.lag for each in readings}
            n = sizes.pop() if len(sizes) == 1 else None
            columns.append(Column(field, head, str(readings[0].unit), n, lags.pop() if len(lags) == 1 else None))
    return {"stream": stream, "rows": rows, "columns": columns}


def _normalisers(history: History, stream: str) -> dict[str, Any] | None:
    """The kinds of normaliser of one model, with the picture of their axes; `None` where there is none."""
    structure = history.structure(stream)
    rows = normaliser_rows(structure) if structure is not None else []
    if not rows:
        return None
    pictures = {row.name: sketch(row.spec) for row in rows}
    figure = norm_axes(list(pictures.items()))
    caption = "Blue cells share their mean and scale with the first one. Groups and chunks are drawn as two."
    return {"stream": stream, "rows": rows, "drawing": _drawing(figure, caption, "")}


def _drawings(history: History, diagnosis: Diagnosis, stream: str, several: bool) -> Iterator[Drawing]:
    """The figures of one model, in the order in which a reader asks."""
    findings = [each for each in diagnosis.findings if not each.sites or any(s.stream == stream for s in each.sites)]
    suffix = f" ({stream})" if several else ""
    yield _drawing(
        loss(history, findings, stream=stream),
        "Is it learning, and when did something happen? The strip on top marks each finding's strongest evidence by"
        " its rank.",
        suffix,
    )
    yield _drawing(
        drift_by_depth(history, stream=stream),
        "The latest reading of each layer. Full marks lie above their noise floor (a stroke of the same colour), open"
        " ones within noise; bars are 95\u00a0% intervals.",
        suffix,
    )
    yield _drawing(
        drift_heatmap(history, stream=stream),
        "When and where the parameters' own steps moved a layer's input. Grey: within noise. Blank: no reading."
        " A cell reaches half-way to the neighbouring readings.",
        suffix,
    )
    if history.readings("parameter-drift", lag=100):
        yield _drawing(
            drift_heatmap(history, lag=100, phase="probe", stream=stream),
            "Displacement of a batch kept out of training over 100 to 999 steps: a journey, where the figure above"
            " may be jitter.",
            suffix,
        )
    if attributions(history, stream):
        yield _drawing(
            attribution(history, stream=stream),
            "One update taken apart: the part of a site's joint drift that each layer's update caused alone. Blue: with"
            " the joint shift; orange: against it. Grey: within noise. Blank: the layer does not feed the site. A row"
            " adds up to 1, the interaction included.",
            suffix,
        )
    yield _drawing(
        gain_by_depth(history, stream=stream),
        "Gradient leaving a layer ÷ entering it, backward; drift of a layer's output ÷ of its input. Gains multiply"
        " through the depth. Full marks: the latest reading with its 95\u00a0% interval; open: the first.",
        suffix,
    )
    for site in _telling(history, diagnosis, stream):
        yield _drawing(
            ridgeline(history, site, saturation=_saturation(history, site)),
            "Time runs upwards. Dot: median; bar: 5th to 95th percentile, to the width of a bin."
            " The height is density, on one scale for all ridges; exact zeros are left out of it.",
            suffix,
        )


def _telling(history: History, diagnosis: Diagnosis, stream: str) -> list[Site]:
    """Sites whose distribution is worth a ridgeline: those of the findings, filled up from all depths."""
    inputs = list(history.sites(port="input", phase="train", stream=stream))
    worst = [finding.sites[0] for finding in diagnosis.findings if finding.sites]
    spread = [inputs[index] for index in (-1, len(inputs) // 2, 0)] if inputs else []
    candidates = (
        site
        for place in (*worst, *spread)
        for site in (place, place.at(port="input", phase="train", leaf=""))
        if site.stream == stream and site.port in ("input", "output")
    )
    sites: list[Site] = []
    for site in dict.fromkeys(candidates):  # a summary is read only where it may be shown
        if len(sites) < RIDGELINES and site.module not in (each.module for each in sites) and history.summaries(site):
            sites.append(site)
    return sites


def _saturation(history: History, site: Site) -> float | None:
    """|x| from which the module that takes this input is saturated."""
    structure = history.structure(site.stream)
    node = structure.module(site.module) if structure is not None else None
    if node is None or site.port != "input":
        return None
    return next(
        (each for kind in (node.kind, *node.bases) if (each := saturation_threshold(kind.lower())) is not None), None
    )


def _drawing(figure: go.Figure, caption: str, suffix: str) -> Drawing:
    """A figure without what the page gives it: title and template."""
    plain = figure.to_dict()
    layout = plain["layout"]
    meta = layout.get("meta", {})
    layout.pop("template", None)
    layout.pop("title", None)
    layout["margin"] = {**layout.get("margin", {}), "t": 34}
    title = str(meta.get("title", ""))
    return Drawing(
        title + suffix,
        "" if meta.get("blank") else caption,
        str(meta.get("alt", "")),
        int(layout.get("height", 300)),
        "" if meta.get("blank") else _json(plain),
    )


def _json(value: Any) -> Markup:
    """JSON that may stand inside a script element: Plotly writes `<` as an escape, NaN and infinities as null."""
    return Markup(to_json_plotly(value))


def _sentence(text: str) -> str:
    """A message with a capital at its beginning; a quoted name there stays as it is."""
    return text[:1].upper() + text[1:]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _version() -> str:
    try:
        return version("holdfast")
    except PackageNotFoundError:  # run from a source tree that was not installed
        return "(not installed)"
