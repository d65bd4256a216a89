"""The facade behind `import holdfast as hf`: joins the monitor, the store, the diagnosis and the report.

What a watch does not need loads with its first use: a run must not begin half a second later for a report at its end.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from difflib import get_close_matches
from os import PathLike, fspath
from pathlib import Path
from textwrap import indent
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError
from holdfast.core.finding import Diagnosis
from holdfast.core.protocols import History
from holdfast.core.reading import Reading, Table
from holdfast.live.labelled_batch import LossFn
from holdfast.measures import OFFLINE, WATCHABLE
from holdfast.monitor.cadence import Every
from holdfast.monitor.observer import MAX_ELEMENTS
from holdfast.monitor.watch import Mode, Watch
from holdfast.store.ranks import MergedRun, open_run
from holdfast.store.reader import RunReader
from holdfast.store.writer import RunWriter

if TYPE_CHECKING:
    import pandas as pd

    from holdfast.clinic.cure import Cure
    from holdfast.clinic.prescribe import Prescription
    from holdfast.clinic.proof import Proof

StrPath = str | PathLike[str]


class Run:
    """A run on disk: its figures, its findings, its report. It may still be growing.

    Args:
        path: the run's folder.
        rank: of a run of several processes, only what this one recorded; all of them as one when `None`.

    Raises:
        RunError: there is no readable run.
    """

    def __init__(self, path: StrPath, *, rank: int | None = None) -> None:
        self._path = Path(fspath(path))
        self._reader = open_run(self._path, rank=rank)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._path

    @property
    def history(self) -> History:
        """Everything recorded, as rules and figures read it."""
        return self._reader

    @property
    def steps(self) -> int:
        """The last optimiser step that the run knows."""
        return self._reader.steps

    @property
    def durable_step(self) -> int:
        """The last step that a crash cannot lose."""
        return self._reader.durable_step

    def diagnose(self) -> Diagnosis:
        """Findings, ranked, with a verdict; see `diagnose`."""
        return diagnose(self)

    def report(self, path: StrPath = "report.html", *, evidence: Cure | Proof | None = None) -> Path:
        """Write one self-contained HTML page.

        Args:
            path: of the file.
            evidence: what was tried against the findings, from `prove` or `cure`; it gets a section of its own.

        Returns:
            The file's path.

        Raises:
            InputError: the file cannot be written.
        """
        from holdfast.report.write import write  # plotly loads only for who asks for a figure

        return write(self.history, self.diagnose(), Path(fspath(path)), evidence=evidence)

    def measure(self, name: str) -> list[Reading | Table]:
        """What the run says by one measure: computed now where that needs no model, else as the watch took it.

        Args:
            name: of the measure, such as `"path-length"`.

        Returns:
            Its readings and tables; nothing where the run holds too little for it.

        Raises:
            InputError: there is no such measure, or it needs the model and the watch did not take it.
        """
        if name not in OFFLINE:
            taken: list[Reading | Table] = [*self.history.readings(name), *self.history.tables(name)]
            if taken:
                return taken
            known = ", ".join(sorted(OFFLINE))
            fix = (
                f"type: hf.watch(model, optimizer, measures=[{name!r}])" if name in WATCHABLE else f"choose of {known}"
            )
            raise InputError(f"a measure of a stored run: {known}", repr(name), fix)
        return list(OFFLINE[name](self.history))

    def frame(self) -> pd.DataFrame:
        """All readings as a tidy table, one row a reading.

        Returns:
            Columns `step`, `stream`, `module`, `port`, `leaf`, `call`, `phase`, `measure`, `lag`, `value`, `low`,
            `high`, `noise_floor`, `n`, `unit`, `site`. Loss, gradient norm and the values of your own stand in it
            too, with the name as `measure` and no site.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise InputError("pandas", "a Python without it", "type: pip install 'holdfast[frame]'") from error
        rows: list[dict[str, Any]] = []
        for measure in self.history.measures():
            for reading in self.history.readings(measure):
                site = reading.site
                low, high = reading.interval or (None, None)
                rows.append(
                    {
                        "step": reading.step,
                        "stream": site.stream,
                        "module": site.module,
                        "port": site.port,
                        "leaf": site.leaf,
                        "call": site.call,
                        "phase": site.phase,
                        "measure": measure,
                        "lag": reading.lag,
                        "value": reading.value,
                        "low": low,
                        "high": high,
                        "noise_floor": reading.noise_floor,
                        "n": reading.n,
                        "unit": str(reading.unit),
                        "site": str(site),
                    }
                )
        for stream in self.history.streams():
            for name in self.history.value_names(stream):
                steps, values = self.history.values(name, stream)
                rows += [
                    {"step": int(step), "stream": stream, "measure": name, "value": float(value)}
                    for step, value in zip(steps, values, strict=True)
                ]
        columns = ["step", "stream", "module", "port", "leaf", "call", "phase", "measure", "lag", "value"]
        frame = pd.DataFrame(rows, columns=[*columns, "low", "high", "noise_floor", "n", "unit", "site"])
        return frame.astype({"lag": "Int64", "call": "Int64", "n": "Int64"}).sort_values("step", kind="stable")

    def close(self) -> None:
        """Let go of the files."""
        self._reader.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Run({str(self._path)!r}, steps={self.steps})"


class LiveRun(Run):
    """A run that is being recorded by this process; `close` (or leaving the `with` block) ends the watch.

    Made by `watch`. Everything a `Run` offers works while it grows, and after it was closed.
    """

    def __init__(self, path: Path, watch: Watch, writer: RunWriter) -> None:
        self._path = path
        self._watch = watch
        self._writer = writer
        self._opened: RunReader | MergedRun | None = None

    @property
    def _reader(self) -> RunReader | MergedRun:  # type: ignore[override]
        if self._opened is None:
            # A later run in the same folder is another attempt, not this one.
            self._opened = open_run(self._path, attempt=self._writer.attempt)
        return self._opened

    @property
    def steps(self) -> int:
        """Optimiser steps seen so far."""
        return self._watch.step

    @property
    def durable_step(self) -> int:
        """The last step that a crash of this process cannot lose."""
        return self._writer.durable_step

    def log(self, **values: float | int | Tensor) -> None:
        """Add values of your own to the present step; `loss=` replaces the loss taken from `backward()`.

        Before the optimiser's step they belong to the step under way, after it (until the next forward) to the step
        just done.

        Args:
            values: numbers, or tensors of one element.
        """
        self._watch.log(**values)

    def close(self) -> None:
        """End the watch: hooks off, everything written; a second call does nothing."""
        self._watch.close()


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    run: StrPath = "runs/latest",
    probe: Any = None,
    every: Every = "auto",
    budget: float = 0.01,
    probe_every: Every | None = None,
    sites: Sequence[str] | None = None,
    mode: Mode = "sampled",
    max_elements: int = MAX_ELEMENTS,
    measures: Sequence[str] = (),
    batch: tuple[Any, Any] | None = None,
    loss_fn: LossFn | None = None,
    stream: str = "net",
    strict: bool = False,
) -> LiveRun:
    """Watch a model in training, in any loop, unchanged.

    Use it as a context manager, or call it and `close` what it returns. The loss is taken from the root of
    `backward()`, or given by `run.log(loss=…)`.

    Args:
        model: the network; compiled or wrapped for distribution is fine.
        optimizer: steps its parameters; each of its steps is a step of the run.
        run: folder to record into; a second run in the same folder becomes a new attempt.
        probe: a batch kept out of training, as the model takes it (a tensor, a tuple of positional or a dict of keyword
            arguments), 64 to 256 samples; or a whole number: so many samples cut from the first training batch, which
            are trained on. Without it there is no drift at lags beyond 1.
        every: observe every so many steps, or `"auto"`: as often as `budget` allows.
        budget: with `"auto"`, the monitor's largest share of the bare run's time.
        probe_every: take the probes (one or two forwards more, and the measures that compare with them) every so many
            steps, or `"auto"`: as often as `budget` allows. By default at every observed step; with `every="auto"`
            it is `"auto"`: statistics then come more often than probes.
        sites: layers to observe, as shell patterns over module paths (`"encoder.*"`); all when `None`.
        mode: `"sampled"` reads at most `max_elements` of each tensor, all samples first; `"exact"` reads all. The
            sketch counts about a quarter of the elements read, and at most about 16,384 in exact mode.
        max_elements: of one tensor, in sampled mode.
        measures: names of measures to take beside those that are always taken (`holdfast explain` lists them), such as
            `["gradient-ics"]`. They come at steps that have probes, with a part of the budget of their own where
            `probe_every` is `"auto"`. Not taken in distributed runs.
        batch: `(inputs, targets)` for measures that evaluate the loss; best a batch kept out of training.
        loss_fn: `(output, targets)` → a scalar, for the same.
        stream: the model's name in the run; each watch records into a folder of its own.
        strict: raise errors of the monitor's own instead of going on without the part that failed.

    Returns:
        The run, recording.

    Raises:
        WatchError: the model has no parameters, is watched already, or does not accept the probe; the optimiser is
            not this model's.
        RunError: the folder cannot be written.
        InputError: an option is not usable.
    """
    path = Path(fspath(run))
    writers: list[RunWriter] = []

    def record() -> RunWriter:
        writers.append(RunWriter(path))
        return writers[0]

    watching = Watch(
        model,
        optimizer,
        record,
        name=str(path),
        stream=stream,
        probe=probe,
        every=every,
        budget=budget,
        probe_every=probe_every,
        sites=sites,
        mode=mode,
        max_elements=max_elements,
        measures=measures,
        batch=batch,
        loss_fn=loss_fn,
        folder=path,
        strict=strict,
    )
    return LiveRun(path, watching, writers[0])


def diagnose(run: Run | StrPath | History) -> Diagnosis:
    """Ask every rule about a run.

    Args:
        run: a run, its folder, or any history.

    Returns:
        The findings, ranked; the verdict; what could not be decided, and what was not seen.

    Raises:
        RunError: there is no readable run.
    """
    from holdfast.diagnosis.diagnose import diagnose as ask

    if isinstance(run, Run):
        return ask(run.history)
    if isinstance(run, str | PathLike):
        with Run(run) as opened:
            return ask(opened.history)
    return ask(run)


def prescribe(
    run: Run | StrPath | History | Diagnosis, model: nn.Module, optimizer: Optimizer | None = None, *, batch: Any = None
) -> Prescription:
    """Choose a treatment for what a run shows, and say why, and why not the others; nothing is changed.

    Args:
        run: a run, its folder, any history, or a diagnosis.
        model: to be treated: the one that was watched, or one built alike.
        optimizer: that steps it, if any.
        batch: what the model is called with; then shapes are known and receipts state the error.

    Returns:
        The prescription: `diff`, `source`, `choices`, and `apply(model, optimizer)`.

    Raises:
        RunError: there is no readable run.
        SurgeryError: the model is not the one diagnosed.
    """
    from holdfast.clinic.prescribe import prescribe as prescribe_for

    found = run if isinstance(run, Diagnosis) else diagnose(run)
    return prescribe_for(found, model, optimizer, batch=batch)


def explain(name: str) -> str:
    """The card of a rule, a measure, a treatment or a normaliser.

    Args:
        name: such as `"shifting-input"`, `"parameter-drift"`, `"insert-norm"`; of a normaliser its class or its name in
            `holdfast.norms.make`: `"GroupNorm"` or `"group"`.

    Returns:
        The card's text; the rule's first where a rule and its measure share a name. Below that of a normaliser its
        formula, and which axes share a statistic.

    Raises:
        InputError: nothing has that name; the nearest names are given.
    """
    families = {family: _cards(family) for family in _FAMILIES}
    families["norms"] |= _by_short_name(families["norms"])
    found = [(family, cards[name]) for family, cards in families.items() if name in cards]
    if not found:
        known = sorted({each for cards in families.values() for each in cards})
        near = get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
        others = f" (or {', '.join(near[1:])})" if near[1:] else ""
        raise InputError(
            "the name of a rule, measure, treatment or normaliser",
            repr(name),
            f"type: holdfast explain {near[0]}{others}",
        )
    if len(found) == 1:
        return found[0][1]
    return "\n\n\n".join(f"As a {_FAMILIES[family]}: {card}" for family, card in found)


def card_names() -> dict[str, list[str]]:
    """Every name that `explain` knows, by family."""
    return {family: sorted(_cards(family)) for family in _FAMILIES}


_FAMILIES = {"diagnosis": "rule", "measures": "measure", "treatments": "treatment", "norms": "normaliser"}


@functools.cache
def _cards(family: str) -> dict[str, str]:
    """Names and cards of a family: the docstring of a class, or of a measure's file."""
    package = importlib.import_module(f"holdfast.{family}")
    if family == "diagnosis":
        cards = {rule.name: inspect.getdoc(type(rule)) for rule in package.RULES}
    elif family == "treatments":
        cards = {name: inspect.getdoc(treatment) for name, treatment in package.TREATMENTS.items()}
    elif family == "measures":
        files = (
            importlib.import_module(info.name) for info in pkgutil.iter_modules(package.__path__, "holdfast.measures.")
        )
        cards = {file.QUANTITY.name: inspect.getdoc(file) for file in files if hasattr(file, "QUANTITY")}
    else:
        from holdfast.norms.examples import examples

        cards = {name: inspect.getdoc(member) for name, member in vars(package).items() if inspect.isclass(member)}
        shown = examples()
        cards = {name: f"{card}{_axes(shown.get(name))}" for name, card in cards.items() if card}
    return {name: card for name, card in cards.items() if card}


def _by_short_name(cards: dict[str, str]) -> dict[str, str]:
    """Cards of normalisers by their names in `make`."""
    from holdfast.norms.examples import examples

    kinds = {name: type(module).__name__ for name, module in examples().items()}
    return {name: cards[kind] for name, kind in kinds.items() if kind in cards}


def _axes(module: Any) -> str:
    """Formula and axes of a normaliser as the end of its card."""
    if module is None:
        return ""
    from holdfast.norms.sketch import text_sketch

    picture = indent(text_sketch(module.spec), "    ")
    return f"\n\n{module.spec.formula}\n\nCells that share a statistic with the first one:\n{picture}"
