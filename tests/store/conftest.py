"""Records whose every figure follows from their step, so that any process can tell what a run must hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from holdfast.core.event import Event
from holdfast.core.reading import Reading, Table
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.core.structure import ModuleNode, Structure
from holdfast.core.units import Unit
from holdfast.stats.channels import ChannelMoments
from holdfast.stats.counts import Counts
from holdfast.stats.extremes import Extremes
from holdfast.stats.moments import Moments
from holdfast.stats.sketch import Sketch
from holdfast.stats.summary import Summary
from holdfast.store.ledger import Limits
from holdfast.store.writer import RunWriter

SITES = (Site("fc1", "input"), Site("fc1", "output"), Site('odd/name:"#@[x]', "grad_output", leaf="0.hidden"))


def summary_of(data: np.ndarray, exponent: int = -2) -> Summary:
    finite = data[np.isfinite(data)]
    d = finite - finite.mean()
    edges = Sketch.edges(exponent)[1:-1]
    bins = np.bincount(np.searchsorted(edges, finite, side="right"), minlength=64)
    return Summary(
        Moments(finite.size, float(finite.mean()), *(float((d**k).sum()) for k in (2, 3, 4))),
        Extremes(float(finite.min()), float(finite.max())),
        Counts(
            data.size,
            int((data == 0).sum()),
            int(np.isnan(data).sum()),
            int(np.isposinf(data).sum()),
            int(np.isneginf(data).sum()),
            int((abs(finite) > 1).sum()),
        ),
        Sketch(exponent, tuple(bins.tolist())),
    )


def channels_of(data: np.ndarray) -> ChannelMoments:
    return ChannelMoments(
        np.full(data.shape[1], float(len(data))),
        data.mean(0),
        ((data - data.mean(0)) ** 2).sum(0),
        (data == 0).sum(0).astype(float),
    )


@pytest.fixture(scope="session")
def data_of() -> Callable[[int, int], np.ndarray]:
    """`(samples, channels)` of a step at a site, drifting."""

    def make(step: int, place: int = 0) -> np.ndarray:
        data = np.random.default_rng([step, place]).normal(0.001 * step, 1 + 0.001 * step, (8, 4))
        data[0, 0] = 0.0
        return data

    return make


@pytest.fixture(scope="session")
def record_of(data_of: Callable[[int, int], np.ndarray]) -> Callable[[int], StepRecord]:
    """A step's record with something of everything; statistics at every second step."""

    def make(step: int, *, stream: str = "net", pinned: bool = False) -> StepRecord:
        sites = [site.at(stream=stream) for site in SITES]
        data = [data_of(step, place) for place in range(len(sites))]
        observed = step % 2 == 0
        return StepRecord(
            step,
            stream,
            values={"loss": 10 / step, "gradient-norm": step**0.5} | ({} if step % 5 else {"learning-rate": 0.1}),
            summaries={site: summary_of(each) for site, each in zip(sites, data, strict=True)} if observed else {},
            channels={sites[1]: channels_of(data[1])} if observed else {},
            readings=(
                Reading(
                    "parameter-drift", sites[0], step, 0.1 * step, Unit.REFERENCE_SD, 64, 0.05, (0.0, float(step)), 1
                ),
                Reading("parameter-drift", sites[1], step, 0.3 * step, Unit.REFERENCE_SD, 64, 0.05, None, 1),
                Reading("saturated-fraction", sites[2], step, 1 / step, Unit.FRACTION, 2**24 + 1),
                *(
                    (
                        Reading(
                            "parameter-drift", sites[0], step, 0.2 * step, Unit.REFERENCE_SD, 63, None, (0.0, 9.0), 17
                        ),
                    )
                    if step % 10 == 0
                    else ()
                ),
            ),
            tables=(Table("profile", step, "ratio", ("a", "b"), ("c",), ((float(step),), (0.5,)), 9),)
            if step == 20
            else (),
            events=(Event(step, "cadence", f"every {step}", sites[0], {"every": step}),) if step == 30 else (),
            pinned=pinned,
        )

    return make


@pytest.fixture(scope="session")
def structure() -> Structure:
    return Structure("net", "MLP", (ModuleNode("", "MLP", (), False), ModuleNode("fc1", "Linear", ("Linear",), True)))


@pytest.fixture
def write(tmp_path: Path, record_of: Callable[..., StepRecord]) -> Callable[..., RunWriter]:
    """Write steps 1 to n into a folder, none of them coarsened; the writer is closed unless told otherwise."""

    def make(
        steps: int, *, folder: Path | None = None, limits: Limits | None = None, close: bool = True, **options: int
    ) -> RunWriter:
        writer = RunWriter(folder or tmp_path / "run", limits=limits or Limits(queue=10**6, linger=0.0), **options)
        for step in range(1, steps + 1):
            writer.write(record_of(step))
        if close:
            writer.close()
        return writer

    return make
