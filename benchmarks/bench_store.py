"""What the run's database costs: training thread, writer thread, bytes, and reading a long series.

The record of a step: 100 sites, each a summary (14 scalars + 64 bins) and four readings (16 scalars: value, interval,
floor), which is the 30 scalars + 64 bins of the budget; the figures are those of samples of 16,384 elements whose
distributions drift slowly. "With channels" adds the moments of 64 channels at each site.

    python benchmarks/bench_store.py [--steps 2000] [--quick]
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from holdfast.core.reading import Reading
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.stats.channels import ChannelMoments
from holdfast.stats.counts import Counts
from holdfast.stats.extremes import Extremes
from holdfast.stats.moments import Moments
from holdfast.stats.sketch import Sketch, edges
from holdfast.stats.summary import Summary
from holdfast.store.ledger import Limits
from holdfast.store.reader import RunReader
from holdfast.store.writer import RunWriter

SITES, ELEMENTS, DISTINCT = 100, 16_384, 128
MEASURES = ("parameter-drift", "scale-shift", "observed-drift", "sampling-drift")


def summaries_of(generator: np.random.Generator, steps: int) -> list[Summary]:
    """Summaries of a site whose normal distribution drifts."""
    mean, sd = generator.normal(0, 0.5), math.exp(generator.normal(0, 0.5))
    exponent = Sketch.exponent_for(math.hypot(mean, sd))
    found = []
    for _ in range(steps):
        mean, sd = mean + 0.002 * generator.normal(), sd * math.exp(0.002 * generator.normal())
        reached = [0.5 * math.erfc((mean - edge) / sd / math.sqrt(2)) for edge in edges(exponent)]
        bins = generator.multinomial(ELEMENTS, np.diff([0.0, *reached[1:-1], 1.0]))
        average = mean + sd * generator.normal() / math.sqrt(ELEMENTS)
        m2 = ELEMENTS * sd**2 * (1 + generator.normal() * math.sqrt(2 / ELEMENTS))
        m3 = sd**3 * generator.normal() * math.sqrt(6 * ELEMENTS)
        m4 = 3 * ELEMENTS * sd**4 * (1 + generator.normal() * math.sqrt(24 / ELEMENTS))
        ends = mean + sd * np.array([-4.0, 4.0]) * (1 + 0.1 * generator.random(2))
        zeros, beyond = generator.integers(0, 3000, 2)
        found.append(
            Summary(
                Moments(ELEMENTS, average, m2, m3, m4),
                Extremes(*ends.tolist()),
                Counts(ELEMENTS, int(zeros), 0, 0, 0, int(beyond)),
                Sketch(exponent, tuple(bins.tolist())),
            )
        )
    return found


def records(*, channels: bool, seed: int = 0) -> Callable[[int], StepRecord]:
    """Makes the record of a step; the work for its figures is done beforehand."""
    generator = np.random.default_rng(seed)
    sites = [Site(f"layer{k}.0.conv1", "input") for k in range(SITES)]
    summaries = [summaries_of(generator, DISTINCT) for _ in sites]
    figures = np.exp(generator.normal(-3, 0.1, (DISTINCT, SITES, len(MEASURES))))
    scatter = 1 + 0.1 * generator.random((DISTINCT, SITES, len(MEASURES)))
    wide = [
        [
            ChannelMoments(np.full(64, 256.0), *generator.normal(1, 0.1, (2, 64)), np.floor(64 * generator.random(64)))
            for _ in range(DISTINCT if channels else 0)
        ]
        for _ in sites
    ]

    def record(step: int) -> StepRecord:
        at = step % DISTINCT
        return StepRecord(
            step,
            values={"loss": 1 / step, "gradient-norm": float(figures[at, 0, 0]), "learning-rate": 0.1},
            summaries={site: each[at] for site, each in zip(sites, summaries, strict=True)},
            channels={site: each[at] for site, each in zip(sites, wide, strict=True)} if channels else {},
            readings=tuple(
                Reading(measure, site, step, value, "reference SD", 64, 0.5 * value, (value / wide_, value * wide_), 1)
                for k, site in enumerate(sites)
                for measure, value, wide_ in zip(
                    MEASURES, figures[at, k].tolist(), scatter[at, k].tolist(), strict=True
                )
            ),
        )

    return record


def write(steps: int, *, channels: bool) -> None:
    """Write steps at a pace that the disk can follow, and print what each cost."""
    make = records(channels=channels)
    with tempfile.TemporaryDirectory() as folder:
        writer = RunWriter(folder, limits=Limits(queue=256))
        handing = np.empty(steps)
        thread = writer._worker.thread.ident
        assert thread is not None
        clock = time.pthread_getcpuclockid(thread)
        for step in range(1, steps + 1):
            record = make(step)
            begin = time.perf_counter()
            writer.write(record)
            handing[step - 1] = time.perf_counter() - begin
            while writer._worker._queue.qsize() > 128:
                time.sleep(0.005)
        while writer.durable_step < steps:
            time.sleep(0.01)
        work = time.clock_gettime(clock)
        lead = sum(each.stat().st_size for each in Path(folder).glob("*-wal"))
        writer.close()
        size = writer.path.stat().st_size
        print(
            f"{'with' if channels else 'without'} channels, {steps} steps of {SITES} sites:"
            f" training thread {1e6 * np.median(handing):.0f} µs/step (99th percentile"
            f" {1e6 * np.quantile(handing, 0.99):.0f} µs); writer thread {1e3 * work / steps:.2f} ms CPU/step;"
            f" {size / steps / 1e3:.1f} KB/step (log before closing {lead / 1e6:.0f} MB);"
            f" coarsened {writer.coarsened}, dropped {writer.dropped}"
        )


def read(steps: int) -> None:
    """Write a long run of one site quickly, and time the reading of single series."""
    with tempfile.TemporaryDirectory() as folder:
        writer = RunWriter(folder, limits=Limits(linger=0.0))
        site = Site("fc", "input")
        summaries = summaries_of(np.random.default_rng(0), DISTINCT)
        for step in range(1, steps + 1):
            reading = Reading("parameter-drift", site, step, 1 / step, "reference SD", 64, 0.5, (0.0, 1.0), 1)
            writer.write(
                StepRecord(
                    step, values={"loss": 1 / step}, summaries={site: summaries[step % DISTINCT]}, readings=(reading,)
                )
            )
            while writer._worker._queue.qsize() > 100:
                time.sleep(0.001)
        writer.close()
        for name, take in (
            ("loss", lambda run: len(run.values("loss")[0])),
            ("readings", lambda run: len(run.readings("parameter-drift", site))),
            ("envelope", lambda run: len(run.envelope("parameter-drift", site).steps)),
            ("summaries", lambda run: len(run.summaries(site))),
        ):
            times = []
            for _ in range(5):
                with RunReader(folder) as run:
                    begin = time.perf_counter()
                    rows = take(run)
                    times.append(time.perf_counter() - begin)
            print(
                f"read {name} of {steps} steps ({rows} rows): median {np.median(times):.3f} s"
                f" ({min(times):.3f}–{max(times):.3f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    options = parser.parse_args()
    share = 10 if options.quick else 1
    write(options.steps // share, channels=False)
    write(options.steps // share, channels=True)
    read(100_000 // share)


if __name__ == "__main__":
    main()
