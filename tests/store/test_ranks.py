import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import holdfast.measures
from holdfast.core.errors import RunError
from holdfast.core.event import Event
from holdfast.core.reading import Reading
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.core.structure import ModuleNode, ParameterNode, Structure
from holdfast.stats.observation import observe
from holdfast.store import merging
from holdfast.store.folder import reserve
from holdfast.store.ledger import Limits
from holdfast.store.ranks import MergedRun, open_run
from holdfast.store.reader import RunReader
from holdfast.store.writer import RunWriter

INPUT = Site("fc", "input")
BACK = Site("fc", "grad_output")
WEIGHT = Site("fc", "weight", leaf="weight")
UPDATE = Site("fc", "update", leaf="weight")


def structure(ranks: int = 2, copies: int = 2) -> Structure:
    parameter = ParameterNode("fc.weight", (2, 2), "float32", requires_grad=True, group=0, copies=copies)
    return Structure(
        "net", "Net", (ModuleNode("fc", "Linear", ("Linear",), leaf=True, parameters=(parameter,)),), ranks=ranks
    )


def batch(step: int, rank: int) -> torch.Tensor:
    return torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(10 * step + rank)) + rank


def seen(step: int, rank: int, exponent: int = -1):
    return observe(batch(step, rank), exponent=exponent)


def record(step: int, rank: int, *readings: Reading, **values: float) -> StepRecord:
    observation = seen(step, rank)
    return StepRecord(
        step,
        values=values,
        summaries={INPUT: observation.summary},
        channels={INPUT: observation.channels},
        readings=readings,
    )


def write(folder, records, *, ranks=2, copies=2, limits=None):
    """One file a rank; `records[rank]` are its records."""
    for rank, own in records.items():
        writer = RunWriter(folder, rank=rank, limits=limits)
        writer.describe(structure(ranks, copies))
        for each in own:
            writer.write(each)
        writer.close()


def reading(measure, site, value, step=1, n=4, **more):
    return Reading(measure, site, step, value, "unit", n, **more)


def test_statistics_of_all_ranks_are_those_of_all_data(tmp_path):
    write(tmp_path, {rank: [record(step, rank, loss=step + rank / 2) for step in (1, 2, 3)] for rank in range(2)})
    with open_run(tmp_path) as run:
        assert isinstance(run, MergedRun)
        for step, merged in run.summaries(INPUT):
            whole = observe(torch.cat([batch(step, 0), batch(step, 1)]), exponent=-1)
            assert merged.sketch == whole.summary.sketch
            assert merged.counts == whole.summary.counts
            assert math.isclose(merged.moments.m4, whole.summary.moments.m4, rel_tol=1e-6)
        for step, merged in run.channels(INPUT):
            parts = [batch(each, rank) for each in range(1, step + 1) for rank in range(2)]
            whole = observe(torch.cat(parts), exponent=-1)
            np.testing.assert_allclose(merged.mean, whole.channels.mean, rtol=1e-6)
            assert (merged.count == whole.channels.count).all()
        steps, losses = run.values("loss")
        assert (steps.tolist(), losses.tolist()) == ([1, 2, 3], [1.25, 2.25, 3.25])
        assert run.events() == []
        assert (run.steps, run.durable_step, list(run.recorded)) == (3, 3, [0, 1])


def test_each_measure_merges_as_it_declares(tmp_path):
    def own(rank):
        return [
            record(
                1,
                rank,
                reading("gradient-norm", BACK, 3.0 + rank),
                reading("gradient-norm", Site("fc", "weight_grad", leaf="weight"), 5.0),
                reading("dead-units", INPUT, 0.25 * (rank + 1)),
                reading("saturated-fraction", INPUT, 0.1 + rank, n=3 - 2 * rank),
                reading(
                    "parameter-drift", INPUT, 1.0 + rank, lag=1, noise_floor=0.5, interval=(1.0 * rank, 4.0 + rank)
                ),
                reading("parameter-drift", INPUT.at(phase="probe"), 0.7, n=8, lag=1),
                loss=1.0,
            )
        ]

    write(tmp_path, {0: own(0), 1: own(1)})
    with open_run(tmp_path) as run:

        def one(measure, site=INPUT):
            (found,) = run.readings(measure, site)
            return found

        assert (one("gradient-norm", BACK).value, one("gradient-norm", BACK).n) == (5.0, 8)
        assert one("gradient-norm", Site("fc", "weight_grad", leaf="weight")).value == 5.0
        assert one("gradient-norm", Site("fc", "weight_grad", leaf="weight")).n == 4
        assert one("dead-units").value == 0.25
        assert math.isclose(one("saturated-fraction").value, (3 * 0.1 + 1 * 1.1) / 4, rel_tol=1e-6)
        drift = one("parameter-drift")
        assert (drift.value, drift.noise_floor, drift.interval, drift.n) == (1.5, 0.5, (0.5, 4.5), 8)
        probe = one("parameter-drift", INPUT.at(phase="probe"))
        assert (round(probe.value, 6), probe.n) == (0.7, 8)


def test_norms_of_shards_are_the_norm_of_the_whole(tmp_path):
    def own(rank):
        size, change = (3.0, 0.3) if rank == 0 else (4.0, 1.6)
        return [
            record(
                1,
                rank,
                reading("weight-norm", WEIGHT, size),
                reading("update-ratio", UPDATE, change / size, lag=1),
                **{"gradient-norm": 6.0 + 2 * rank},
            ),
            # a shard that has become 0 has no ratio
            record(
                2,
                rank,
                reading("weight-norm", WEIGHT, 2.0 * rank, step=2, n=4 * rank),
                reading("update-ratio", UPDATE, 0.5 if rank else math.inf, step=2, lag=1),
            ),
        ]

    write(tmp_path, {0: own(0), 1: own(1)}, copies=1)
    with open_run(tmp_path) as run:
        assert [each.value for each in run.readings("weight-norm")] == [5.0, 2.0]
        assert [each.n for each in run.readings("weight-norm")] == [8, 4]
        first, second = run.readings("update-ratio")
        assert math.isclose(first.value, math.hypot(0.3, 1.6) / 5, rel_tol=1e-6)
        assert second.value == 0.5
        assert run.values("gradient-norm")[1].tolist() == [10.0]


def test_what_merges_in_its_own_way_is_a_measure():
    known = {file.stem.replace("_", "-") for file in Path(holdfast.measures.__path__[0]).glob("*.py")}
    assert merging.NORMS | merging.LEAST | merging.SHARED_SAMPLES | merging.RATIOS.keys() <= known
    assert set(merging.RATIOS.values()) <= merging.NORMS


def test_shards_and_their_copies():
    # Two groups of two ranks, each of which holds the whole: every element counts twice.
    assert math.isclose(merging.norm([3.0, 4.0, 3.0, 4.0], copies=2), 5.0)


def test_a_missing_rank_is_told_and_norms_of_shards_are_left_out(tmp_path):
    write(
        tmp_path,
        {
            0: [
                record(
                    1,
                    0,
                    reading("weight-norm", WEIGHT, 3.0),
                    reading("gradient-norm", BACK, 3.0),
                    loss=1.0,
                    **{"gradient-norm": 2.0},
                )
            ]
        },
        copies=1,
    )
    with open_run(tmp_path) as run:
        assert isinstance(run, MergedRun)
        (event,) = run.events("monitor-error")
        assert event.message.startswith("of 2 ranks, rank 1 recorded nothing")
        assert not run.readings("weight-norm")
        assert not len(run.values("gradient-norm")[0])
        # Rows of the other rank are taken to be alike: √2 times the norm of these.
        assert math.isclose(run.readings("gradient-norm")[0].value, 3 * math.sqrt(2), rel_tol=1e-6)
        assert run.values("loss")[1].tolist() == [1.0]
    with open_run(tmp_path, rank=0) as alone:
        assert isinstance(alone, RunReader)
        assert alone.readings("weight-norm")[0].value == 3.0


def test_a_rank_that_stopped_early_is_told(tmp_path):
    write(
        tmp_path,
        {
            0: [record(step, 0, loss=1.0) for step in range(1, 41)],
            1: [record(step, 1, loss=3.0) for step in range(1, 11)],
        },
    )
    with open_run(tmp_path) as run:
        (event,) = run.events()
        assert event.message == "rank 1 recorded nothing after step 10, others went on to 40: what follows is theirs"
        assert run.values("loss")[1].tolist() == [2.0] * 10 + [1.0] * 30
        assert (run.steps, run.durable_step) == (40, 10)


def test_files_that_dropped_raw_rows_at_different_steps_answer_alike(tmp_path):
    """Rows of the last steps are raw, older ones merged over 10 steps; where that begins differs between the files."""
    limits = {0: Limits(seal=10, ring=20, linger=0.0), 1: Limits(seal=64, ring=45, linger=0.0)}
    for rank, own in limits.items():
        writer = RunWriter(tmp_path, rank=rank, limits=own)
        writer.describe(structure())
        for step in range(1, 101):
            writer.write(record(step, rank, reading("saturated-fraction", INPUT, float(step), step), loss=1.0))
        writer.close()
    with open_run(tmp_path) as run, RunReader(tmp_path, rank=0) as coarse, RunReader(tmp_path, rank=1) as fine:
        steps = [step for step, _ in run.summaries(INPUT)]
        assert len(coarse.summaries(INPUT)) < len(fine.summaries(INPUT))
        assert steps == [step for step, _ in coarse.summaries(INPUT)]
        before = 0
        for step, merged in run.summaries(INPUT):
            assert merged.counts.total == 2 * 24 * (step - before)
            parts = [batch(each, rank) for each in range(before + 1, step + 1) for rank in range(2)]
            assert math.isclose(
                merged.moments.mean, observe(torch.cat(parts), exponent=-1).summary.moments.mean, rel_tol=1e-5
            )
            before = step
        assert before == 100
        assert [each.step for each in run.readings("saturated-fraction")] == steps
        assert [step for step, _ in run.summaries(INPUT, every=100)] == [100]


def test_a_file_that_has_merged_nothing_yet_answers_as_coarsely_as_the_others(tmp_path):
    limits = {0: Limits(seal=10, ring=20, linger=0.0), 1: Limits(seal=1000, linger=0.0)}
    writers = [RunWriter(tmp_path, rank=rank, limits=own) for rank, own in limits.items()]
    for rank, writer in enumerate(writers):
        writer.describe(structure())
        for step in range(1, 61):
            writer.write(record(step, rank, loss=1.0))
    writers[0].close()
    while writers[1].durable_step < 60:
        time.sleep(0.01)
    with open_run(tmp_path) as run, RunReader(tmp_path, rank=0) as coarse, RunReader(tmp_path, rank=1) as raw:
        assert len(raw.summaries(INPUT)) == 60 > len(coarse.summaries(INPUT))
        for kind in ("summaries", "channels"):
            merged, own = getattr(run, kind)(INPUT), getattr(coarse, kind)(INPUT)
            assert [step for step, _ in merged] == [step for step, _ in own]
            for (_, both), (_, half) in zip(merged, own, strict=True):
                if kind == "summaries":
                    assert both.counts.total == 2 * half.counts.total
                else:
                    assert (both.count == 2 * half.count).all()
    writers[1].close()


def test_events_name_their_rank(tmp_path):
    records = {
        rank: [StepRecord(step, events=(Event(step, "alarm", "it rang"),)) for step in (1, 2)] for rank in range(2)
    }
    write(tmp_path, records)
    with open_run(tmp_path) as run:
        assert [(each.step, each.message, each.data["rank"]) for each in run.events("alarm")] == [
            (1, "rank 0: it rang", 0),
            (1, "rank 1: it rang", 1),
            (2, "rank 0: it rang", 0),
            (2, "rank 1: it rang", 1),
        ]


def test_histograms_of_two_scales_do_not_spoil_the_rest(tmp_path):
    for rank in range(2):
        observation = seen(1, rank, exponent=-1 - rank)
        writer = RunWriter(tmp_path, rank=rank)
        writer.describe(structure())
        writer.write(StepRecord(1, summaries={INPUT: observation.summary}))
        writer.close()
    with open_run(tmp_path) as run:
        ((_, merged),) = run.summaries(INPUT)
        assert merged.counts.total == 48
        assert merged.sketch == seen(1, 0, exponent=-1).summary.sketch


def test_a_nan_on_one_rank_is_everybodys(tmp_path):
    write(
        tmp_path,
        {0: [record(1, 0, loss=1.0), record(2, 0, loss=1.0)], 1: [record(1, 1, loss=math.nan), record(2, 1, loss=2.0)]},
    )
    with open_run(tmp_path) as run:
        values = run.values("loss")[1]
        assert math.isnan(values[0])
        assert values[1] == 1.5


def test_a_rank_that_comes_later_is_read_too(tmp_path):
    first = RunWriter(tmp_path, rank=0, limits=Limits(linger=0.0))
    first.describe(structure())
    first.write(record(1, 0, loss=1.0))
    first.close()
    with MergedRun(tmp_path) as run:
        assert len(run.events()) == 1
        write(tmp_path, {1: [record(1, 1, loss=3.0)]})
        assert run.values("loss")[1].tolist() == [2.0]
        assert run.events() == []


def test_one_process_needs_no_merging(tmp_path):
    write(tmp_path, {0: [record(1, 0, loss=1.0)]}, ranks=1, copies=1)
    with open_run(tmp_path) as run:
        assert isinstance(run, RunReader)


def test_a_folder_without_a_run(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunError):
            open_run(folder)


def test_the_rank_comes_from_the_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    writer = RunWriter(tmp_path)
    writer.close()
    assert writer.path.name == "attempt-001.rank-003.sqlite"


def test_ranks_that_cannot_speak_count_their_own_attempts(tmp_path):
    assert [reserve(tmp_path, rank).attempt for rank in (0, 0, 1, 1)] == [1, 2, 1, 2]


def test_ranks_that_can_take_the_same_attempt(tmp_path):
    reserve(tmp_path, 0)  # an earlier run, of one rank
    agreed: list[int] = []

    def first(attempt: int) -> int:
        agreed.append(attempt)
        return agreed[0]

    assert [reserve(tmp_path, rank, first).attempt for rank in (1, 0, 2)] == [2, 2, 2]
    assert agreed == [2, 3, 3]
    assert len(os.listdir(tmp_path)) == 4
