from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from holdfast.api import Run
from holdfast.clinic.prove import prove
from holdfast.core.errors import InputError
from holdfast.diagnosis.diagnose import diagnose
from holdfast.lab import demo as module
from holdfast.lab.demo import read_data, run_demo, treat_demo
from holdfast.lab.digits import read_digits
from holdfast.lab.networks import Variant
from holdfast.treatments import InsertNorm


def test_a_step_of_the_demo_is_a_step_of_the_run(tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []
    outcome = run_demo(
        read_digits(), tmp_path / "run", steps=12, every=4, on_step=lambda step, loss: told.append((step, loss))
    )
    assert [step for step, _ in told] == list(range(1, 13))
    assert outcome.last_loss == pytest.approx(sum(loss for _, loss in told) / 12)
    with Run(tmp_path / "run") as run:
        assert run.steps == 12
        steps, losses = run.history.values("loss")
        assert steps.tolist() == list(range(1, 13))
        assert losses.tolist() == pytest.approx([loss for _, loss in told], rel=1e-6)
        drifts = run.history.readings("parameter-drift", lag=1)
        assert {reading.site.phase for reading in drifts} == {"train", "probe"}
        assert {reading.n for reading in drifts} == {128}


def test_watching_does_not_change_what_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = read_digits()
    watched = run_demo(digits, tmp_path / "run", variant="healthy", steps=15, every=3)

    @contextmanager
    def blind(*args: Any, **options: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(module, "watch", blind)
    unwatched = run_demo(digits, tmp_path / "run", variant="healthy", steps=15, every=3)
    assert watched == unwatched  # to the last bit
    assert replace(watched, accuracy=0.0) != run_demo(digits, tmp_path / "run", steps=15, seed=1)


def test_threads_are_as_before(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    run_demo(read_digits(), tmp_path / "run", steps=1)
    assert torch.get_num_threads() == before


def test_images_and_reviews_train_too(image_folder: Path, review_folder: Path, tmp_path: Path) -> None:
    for name, kind in (("mnist", "sigmoid"), ("fashion-mnist", "sigmoid"), ("reviews", "relu")):
        data = read_data(name, image_folder)  # type: ignore[arg-type]
        outcome = run_demo(data, tmp_path / f"run-{name}", steps=3, every=1)
        assert outcome.setup is module.SETUPS[kind, "suffering"]  # type: ignore[index]
        assert 0 <= outcome.accuracy <= 1


def test_no_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1 step; got 0"):
        run_demo(read_digits(), tmp_path / "run", steps=0)


def test_an_interruption_leaves_a_whole_run(tmp_path: Path) -> None:
    def interrupt(step: int, loss: float) -> None:
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(read_digits(), tmp_path / "run", steps=50, every=2, on_step=interrupt)
    with Run(tmp_path / "run") as run:
        assert run.steps == run.durable_step == 7
    for path in (tmp_path / "run").rglob("*.db"):
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


@pytest.mark.slow  # the command's own tests do it in short
def test_the_demo_treats_what_it_found_with_trainings_half_as_long(tmp_path: Path) -> None:
    digits = read_digits()
    outcome = run_demo(digits, tmp_path / "run", steps=40, every=10)
    with Run(tmp_path / "run") as run:
        diagnosis = run.diagnose()
    cure = treat_demo(digits, outcome, diagnosis, seeds=2)
    assert cure.diagnosis is diagnosis
    first = cure.proofs[0]
    assert (first.treatment, first.primary, first.seeds, first.steps) == ("insert-norm", "accuracy", 2, 20)
    assert len(first.arms) == 4
    assert next(outcome.model.parameters()).grad is not None  # as the run left it


def test_a_healthy_network_is_not_touched(tmp_path: Path) -> None:
    digits = read_digits()
    outcome = run_demo(digits, tmp_path / "run", variant="healthy", steps=60, every=10)
    before = deepcopy(outcome.model.state_dict())
    with Run(tmp_path / "run") as run:
        cure = treat_demo(digits, outcome, run.diagnose(), seeds=2)
    assert (cure.proofs, cure.receipt, cure.prescription.plans) == ((), None, ())
    assert all(torch.equal(value, before[name]) for name, value in outcome.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["suffering", "dead"])
def test_what_suffers_is_cured_with_proof(tmp_path: Path, variant: Variant) -> None:
    digits = read_digits()
    outcome = run_demo(digits, tmp_path / "run", variant=variant)
    with Run(tmp_path / "run") as run:
        cure = treat_demo(digits, outcome, run.diagnose())
    assert cure.receipt is not None
    assert cure.proofs[-1].verdict == "helps"
    assert cure.proofs[-1].comparisons[0].interval[0] > 0.02
    assert all(each.verdict != "helps" for each in cure.proofs[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("start", ["identity", "fresh"])
def test_an_insertion_that_preserves_a_dead_signal_is_not_said_to_help(tmp_path: Path, start: Any) -> None:
    digits = read_digits()
    outcome = run_demo(digits, tmp_path / "run", variant="dead")
    plan = InsertNorm(start=start, batch=digits.probe).plan(outcome.model, outcome.optimizer)
    proof = prove(
        plan,
        outcome.model,
        outcome.optimizer,
        lambda seed: module._batches(digits, seed),
        torch.nn.functional.cross_entropy,
        eval_batches=[(digits.held_out, digits.held_out_labels)],
        metric=module.accuracy,
        steps=200,
        seeds=5,
    )
    assert (proof.verdict == "helps") == (start == "fresh"), proof


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("variant", get_args(Variant))
def test_each_variant_is_told_for_what_it_is(tmp_path: Path, variant: Variant, seed: int) -> None:
    outcome = run_demo(read_digits(seed=seed), tmp_path / "run", variant=variant, seed=seed, every=20)
    with Run(tmp_path / "run") as run:
        diagnosis = diagnose(run.history)
    rules = {finding.rule for finding in diagnosis}
    critical = {finding.rule for finding in diagnosis if finding.severity == "critical"}
    if variant == "suffering":
        assert outcome.accuracy < 0.75
        # Critical or a warning: the median drift at the worst layer is about 1 reference SD per step, the boundary.
        assert next(iter(diagnosis)).rule == "shifting-input"
        assert "saturated-units" in rules
        assert diagnosis.verdict.startswith("Internal covariate shift is ")
    elif variant == "dead":
        assert outcome.accuracy < 0.2
        assert {"collapsed-signal", "vanishing-gradient"} <= critical
        assert not rules & {"shifting-input", "drift-amplification"}
    else:
        assert outcome.accuracy > 0.9
        assert not critical
        assert "internal covariate shift is not what holds this run back" in diagnosis.verdict
