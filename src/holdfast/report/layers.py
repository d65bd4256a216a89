"""`layer_rows`: one row a layer, with the latest reading of each measure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Phase, Port, Site
from holdfast.figures.depth import by_depth

_PORTS: tuple[Port, ...] = ("input", "output", "grad_output")


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One observed leaf module with its latest readings; `None` where a measure gave none.

    Args:
        site: the module's input (`@train`), which names it.
        label: the module's name for a person.
        kind: name of its class, `""` when the structure was not recorded.
        drift: parameter drift of its input over one step (step probe).
        drift_100: parameter drift of its input over 100 to 999 steps (fixed probe); the reading tells the lag.
        observed_drift: of its input between two batches, with the floor that other batches alone reach.
        saturated: fraction of elements on the flat ends of the sigmoid or tanh that it is, else of the function that
            takes its output.
        dead: fraction of units that are zero on every sample, at its output (rectifiers) or behind the rectifying
            function that takes it.
        backward_gain: norm of the gradient leaving it ÷ entering it, backward.
        drift_gain: drift of its output ÷ of its input.
        collapsed: fraction of features of its input that hardly vary.
    """

    site: Site
    label: str
    kind: str = ""
    drift: Reading | None = None
    drift_100: Reading | None = None
    observed_drift: Reading | None = None
    saturated: Reading | None = None
    dead: Reading | None = None
    backward_gain: Reading | None = None
    drift_gain: Reading | None = None
    collapsed: Reading | None = None


# field of LayerRow → measure; ports and phases, each in order of preference; lag decade
_SOURCES: dict[str, tuple[str, tuple[Port, ...], tuple[Phase, ...], int | None]] = {
    "drift": ("parameter-drift", ("input",), ("train",), 1),
    "drift_100": ("parameter-drift", ("input",), ("probe",), 100),
    "observed_drift": ("observed-drift", ("input",), ("train",), None),
    "saturated": ("saturated-fraction", ("input", "output"), ("train", "probe"), None),
    "dead": ("dead-units", ("output",), ("train", "probe"), None),
    "backward_gain": ("backward-gain", ("grad_output",), ("train",), None),
    "drift_gain": ("drift-gain", ("output",), ("train", "probe"), None),
    "collapsed": ("collapsed-features", ("input",), ("train", "probe"), None),
}


def layer_rows(history: History, stream: str | None = None) -> list[LayerRow]:
    """The layers of a run in the order of execution.

    Args:
        history: a run.
        stream: the model's name; `None` for every model of the run, one after the other.

    Returns:
        One row for each leaf module whose input, output or gradient was observed (and for each of its calls in a
        step).
    """
    streams = history.streams() if stream is None else [stream]
    latest = {
        field: _latest(history.readings(measure, lag=lag), ports, phases)
        for field, (measure, ports, phases, lag) in _SOURCES.items()
    }
    rows = []
    for name in streams:
        structure = history.structure(name)
        kinds = {node.path: node.kind for node in structure.modules} if structure is not None else {}
        observed = [_row(site) for port in _PORTS for site in history.sites(port=port, stream=name)]
        for site in by_depth(history, dict.fromkeys(observed), name):
            readings = {field: each.get(site) for field, each in latest.items()}
            rows.append(LayerRow(site, site.label, kinds.get(site.module, ""), **readings))
    return rows


def _row(site: Site) -> Site:
    """The row to which a site belongs: module and call."""
    return site.at(port="input", phase="train", leaf="")


def _latest(readings: Iterable[Reading], ports: tuple[Port, ...], phases: tuple[Phase, ...]) -> dict[Site, Reading]:
    """The reading that stands for each row: preferred port and phase first, then the latest, then the greatest leaf."""
    best: dict[Site, Reading] = {}
    for reading in readings:
        site = reading.site
        if site.port not in ports or site.phase not in phases:
            continue
        held = best.get(_row(site))
        if held is None or _key(reading, ports, phases) >= _key(held, ports, phases):
            best[_row(site)] = reading
    return best


def _key(reading: Reading, ports: tuple[Port, ...], phases: tuple[Phase, ...]) -> tuple[int, int, int, float]:
    return -ports.index(reading.site.port), -phases.index(reading.site.phase), reading.step, reading.value
