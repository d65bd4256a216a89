"""Two real processes that train together with gloo, watched; started by `ranks.py`, which has the models and loops."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import holdfast as hf
from holdfast.core.site import Site
from holdfast.store.ranks import MergedRun
from holdfast.store.reader import RunReader

SCRIPT = Path(__file__).with_name("ranks.py")


def together(folder: Path, *jobs: str, seconds: float) -> Path:
    """Run jobs on two processes, which are killed when they take too long: a dead-lock is a failure, not a wait."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore::RuntimeWarning:holdfast", str(SCRIPT), str(rank), str(folder), *jobs],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = []
    try:
        said = [each.communicate(timeout=seconds)[0] for each in ranks]
    finally:
        for each in ranks:
            each.kill()
    assert [each.returncode for each in ranks] == [0, 0], "\n".join(said)
    return folder


def answers(folder: Path, job: str) -> list[object]:
    return [json.loads((folder / f"{job}.{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("ranks_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def one(script, tmp_path_factory):
    """One process on the union of the data."""
    folder = tmp_path_factory.mktemp("one") / "run"
    model, optimizer = script.fresh("plain")
    with hf.watch(model, optimizer, run=folder, every=1, mode="exact", probe=script.probe(), strict=True):
        script.train(model, optimizer, None, script.STEPS)
    with RunReader(folder) as run:
        yield run


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    return together(tmp_path_factory.mktemp("ddp"), "ddp", seconds=200)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    jobs = ("fsdp", "batchnorm", "syncbatchnorm", "only_first_ddp", "only_first_fsdp", "failing", "two", "unlike")
    return together(tmp_path_factory.mktemp("trained"), *jobs, seconds=280)


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    jobs = ("alarm_ddp", "alarm_fsdp", "auto_ddp", "auto_fsdp", "destroyed")
    return together(tmp_path_factory.mktemp("longer"), *jobs, seconds=280)


def check_against_one(folder: Path, one: RunReader, first: int) -> None:
    """Everything that merges exactly; `first` is the first step at which all of it is there."""
    with hf.Run(folder) as run:
        both = run.history
        assert isinstance(both, MergedRun)
        assert [each for each in both.events() if each.kind != "cadence"] == []
        for name in one.value_names():
            steps, values = both.values(name)
            assert steps.tolist() == one.values(name)[0].tolist()
            np.testing.assert_allclose(values, one.values(name)[1], rtol=2e-6)
        assert set(both.sites(phase="train")) == set(one.sites(phase="train"))
        compared = 0
        for site in one.sites(phase="train"):
            found = dict(both.summaries(site))
            for step, theirs in one.summaries(site):
                if step < first and site.port == "output":
                    continue  # whose output is kept is told by the structure
                ours = found[step]
                a, b = ours.moments, theirs.moments
                assert (a.count, ours.counts.total) == (b.count, theirs.counts.total)
                np.testing.assert_allclose(a.rms, b.rms, rtol=2e-6)
                np.testing.assert_allclose(a.mean, b.mean, rtol=1e-6, atol=1e-6 * b.rms)
                np.testing.assert_allclose([a.m2, a.m4], [b.m2, b.m4], rtol=1e-5)
                if step > 1:  # from then on all ranks have the scales of the first
                    assert ours.sketch.count == ours.moments.count
                compared += 1
                if step == 1 and first == 1 and site.port != "grad_output":
                    # The scales come from the probe; and no weight has been rounded differently yet.
                    assert ours.sketch == theirs.sketch
            found = dict(both.channels(site))
            for step, theirs in one.channels(site):
                if first > 1 and site.port == "output":
                    continue  # merged over steps, of which the first is not there
                ours = found[step]
                np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-5, atol=1e-6)
                assert (ours.count == theirs.count).all()
        assert compared >= 13 * both.steps - first
        for measure in ("gradient-norm", "weight-norm", "update-ratio"):
            expected = {(each.site, each.step): each for each in one.readings(measure)}
            found = {(each.site, each.step): each for each in both.readings(measure)}
            assert found.keys() == expected.keys(), measure
            for key, each in found.items():
                assert each.n == expected[key].n, key
                assert math.isclose(
                    each.value, expected[key].value, rel_tol=2e-4 if measure == "update-ratio" else 1e-5
                )
        # The same probe on all ranks: its drift is that of one process.
        expected = {
            (each.site, each.step): each for each in one.readings("parameter-drift", lag=1) if each.step >= first
        }
        for each in both.readings("parameter-drift", lag=1):
            if each.site.phase == "probe":
                assert math.isclose(each.value, expected[each.site, each.step].value, rel_tol=1e-3, abs_tol=1e-5)
                assert each.n == expected[each.site, each.step].n
        for phase in ("train", "probe"):
            found = {each.step for each in both.readings("parameter-drift", lag=1) if each.site.phase == phase}
            assert found == set(range(first, both.steps + 1)), phase


def test_ddp_on_two_halves_is_one_process_on_the_whole(ddp, one):
    assert answers(ddp, "ddp") == [True, True], "watched and unwatched weights differ"
    check_against_one(ddp / "ddp", one, first=1)


def test_one_rank_alone_stays_readable(ddp):
    runs = [hf.Run(ddp / "ddp", rank=rank) for rank in range(2)]
    merged = hf.Run(ddp / "ddp")
    try:
        losses = [run.history.values("loss")[1] for run in runs]
        assert not np.array_equal(*losses)
        np.testing.assert_allclose(merged.history.values("loss")[1], np.mean(losses, 0), rtol=1e-12)
        assert {each.data["rank"] for each in merged.history.events("cadence")} == {0, 1}
        assert merged.durable_step == 6
        assert merged.diagnose().verdict
    finally:
        for run in (*runs, merged):
            run.close()


def test_names_are_those_of_the_model_inside(ddp, one):
    with hf.Run(ddp / "ddp") as run:
        structure = run.history.structure()
        assert structure.model == "Net"
        assert structure.ranks == 2
        assert [node.path for node in structure.modules] == [node.path for node in one.structure().modules]
        assert [node.kind for node in structure.modules] == [node.kind for node in one.structure().modules]
        assert structure.order == one.structure().order


@pytest.mark.slow
def test_fsdp_on_two_halves_is_one_process_on_the_whole(trained, one):
    assert answers(trained, "fsdp") == [True, True], "watched and unwatched weights differ"
    # Nothing is replayed before the ranks know of each other, after the first step.
    check_against_one(trained / "fsdp", one, first=2)
    with hf.Run(trained / "fsdp") as run:
        nodes = run.history.structure().modules
        assert [node.kind for node in nodes] == [node.kind for node in one.structure().modules]
        assert {parameter.copies for node in nodes for parameter in node.parameters} == {1}
    # One element on two ranks: the second holds none of it.
    bias = Site("out", "weight", leaf="bias")
    sizes = []
    for rank in range(2):
        with hf.Run(trained / "fsdp", rank=rank) as run:
            sizes.append(run.history.readings("weight-norm", bias)[0].n)
    assert sizes == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("job", ["batchnorm", "syncbatchnorm"])
def test_batch_normalisers_train_as_if_nobody_watched(trained, job):
    assert answers(trained, job) == [True, True]
    with hf.Run(trained / job) as run:
        assert [each for each in run.history.events() if each.kind != "cadence"] == []
        drifts = {each.site.phase for each in run.history.readings("parameter-drift", lag=1)}
        assert drifts == {"train", "probe"}


def observed(folder: Path, rank: int) -> list[int]:
    with RunReader(folder, rank=rank) as run:
        return [step for step, _ in run.summaries(Site("out", "input"))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_ranks_whose_clocks_differ_observe_the_same_steps(longer, kind):
    assert answers(longer, f"auto_{kind}") == [True, True]
    folder = longer / f"auto_{kind}"
    steps = observed(folder, 0)
    assert observed(folder, 1) == steps
    assert len([step for step in steps if step > 5]) >= 2, steps
    assert len(steps) < 115
    probed = []
    for rank in range(2):
        with RunReader(folder, rank=rank) as run:
            drifts = run.readings("parameter-drift", lag=1)
            assert {each.site.phase for each in drifts} == {"train", "probe"}
            assert not run.events("monitor-error")
            probed.append({each.step for each in drifts})
    assert probed[0] == probed[1]
    assert max(probed[0]) > 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_an_alarm_on_one_rank_becomes_everybodys_at_the_next_meeting(longer, kind):
    folder = longer / f"alarm_{kind}"
    assert answers(longer, f"alarm_{kind}")[0] == ["batch-10.rank-001.npz"]
    steps = observed(folder, 0)
    assert observed(folder, 1) == steps
    assert steps == [1, *range(22, 42), 50]  # every=50; the ranks meet at steps 2, 22, 42, …
    with RunReader(folder, rank=0) as run:
        assert not run.events("nonfinite")
    with hf.Run(folder) as run:
        (event,) = run.history.events("nonfinite")
        assert event.data["rank"] == 1
        assert event.message.startswith("rank 1: ")
        # Sharded layers cannot run on one rank; those of DDP can.
        assert ("could not be replayed" in event.message) == (kind == "fsdp")
        assert not run.history.events("monitor-error")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_one_watched_rank_of_two_observes_by_itself(trained, kind):
    with hf.Run(trained / f"only_first_{kind}") as run:
        history = run.history
        messages = [each.message for each in history.events("monitor-error")]
        assert any("rank 1 recorded nothing" in each for each in messages)
        assert any("only rank 0 of 2" in each for each in messages)
        assert any("without probes" in each for each in messages) == (kind == "fsdp")
        assert bool(history.readings("parameter-drift")) == (kind == "ddp")
        assert len(history.summaries(Site("out", "input"))) == 4
        # The norm of half of a weight is not the weight's.
        assert bool(history.readings("weight-norm")) == (kind == "ddp")
        assert len(history.values("loss")[0]) == 6
    with hf.Run(trained / f"only_first_{kind}", rank=0) as run:
        assert run.history.readings("weight-norm")


@pytest.mark.slow
def test_a_part_that_fails_on_one_rank_leaves_the_other_training(trained):
    assert answers(trained, "failing") == [False, False]
    with RunReader(trained / "failing", rank=0) as run:
        assert run.steps == 6
        assert len(run.summaries(Site("out", "input"))) == 6
        assert any("rank 0 observes by itself" in each.message for each in run.events("monitor-error"))


@pytest.mark.slow
def test_two_watched_models_do_not_mix(trained):
    assert answers(trained, "two") == [[True, True], [True, True]]
    for place in "01":
        with hf.Run(trained / "two" / place) as run:
            assert not run.history.events("monitor-error")
            assert run.history.readings("parameter-drift")


@pytest.mark.slow
def test_ranks_with_different_options_replay_nothing(trained):
    with hf.Run(trained / "unlike") as run:
        assert sum("different options" in each.message for each in run.history.events("monitor-error")) == 2
        assert not run.history.readings("parameter-drift")
        assert len(run.history.summaries(Site("out", "input"))) == 6


@pytest.mark.slow
def test_training_goes_on_without_the_process_group(longer):
    assert answers(longer, "destroyed") == [73, 73]
    with hf.Run(longer / "destroyed") as run:
        assert run.steps == 73
        assert len(run.history.summaries(Site("out", "input"))) == 73


@pytest.mark.slow
def test_training_goes_on_when_a_rank_dies(tmp_path):
    together(tmp_path, "dies", seconds=200)
    assert json.loads((tmp_path / "dies.0.json").read_text()) == 80
    with hf.Run(tmp_path / "dies") as run:
        assert any("rank 1 recorded nothing after step" in each.message for each in run.history.events())
        assert len(run.history.values("loss")[0]) == 80
