"""`diagnose`: ask every rule, rank what they found, and say in one sentence what holds the run back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from holdfast.core.finding import SEVERITIES, Diagnosis, Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.diagnosis.remembered import Remembered
from holdfast.diagnosis.rule import Rule
from holdfast.diagnosis.rules import RULES as RULES
from holdfast.diagnosis.verdict import verdict_of

# Where one of these fires, other figures lose their meaning: it comes first among findings of equal severity.
_FIRST = ("nonfinite", "collapsed-signal", "poor-init")


def diagnose(history: History, *, rules: Sequence[Rule] = RULES) -> Diagnosis:
    """Ask every rule about a run.

    Findings are ranked by severity; among equals a non-finite figure, a dead signal and a start that shrinks the signal
    come first, because they make the others' figures meaningless (a drift in units of a signal that arrives at a
    thousandth of its size is large by that factor); then by strength. A rule that fails is reported as undecided, with
    its error.

    Args:
        history: of a run.
        rules: the ones to ask.

    Returns:
        The findings, ranked from 1; the verdict, one sentence; what was undecided, and what was not seen.

    Example:
        >>> from holdfast.store.memory import MemoryRun
        >>> diagnose(MemoryRun("empty")).verdict
        'inconclusive: nothing was observed; watch the run for at least 5 observed steps'
    """
    history = Remembered(history)
    findings: list[Finding] = []
    undecided: list[Inconclusive] = []
    for rule in rules:
        try:
            answer = rule.check(history)
        except Exception as error:  # a damaged or odd run must not cost the other rules' findings
            answer = Inconclusive(rule.name, f"the rule failed ({type(error).__name__}: {error})")
        if isinstance(answer, Inconclusive):
            undecided.append(answer)
        else:
            findings += answer
    findings.sort(key=_place)
    ranked = tuple(replace(finding, rank=index) for index, finding in enumerate(findings, 1))
    return Diagnosis(
        run=history.name,
        steps=history.steps,
        verdict=verdict_of(history, ranked, tuple(undecided), {rule.name: rule.subject for rule in rules}),
        findings=ranked,
        inconclusive=tuple(undecided),
        not_seen=_not_seen(history),
    )


def _place(finding: Finding) -> tuple[int, int, float]:
    first = _FIRST.index(finding.rule) if finding.rule in _FIRST else len(_FIRST)
    return -SEVERITIES.index(finding.severity), first, -finding.strength


def _not_seen(history: History) -> tuple[str, ...]:
    """What the structures say that hooks cannot see, and what the monitor itself failed at."""
    sentences: list[str] = []
    streams = history.streams()
    for stream in streams:
        structure = history.structure(stream)
        prefix = f"{stream}: " if len(streams) > 1 else ""
        if structure is None:
            sentences.append(
                f"{prefix}the model's structure was not recorded: layers are taken in order of observation"
            )
            continue
        sentences += [prefix + sentence for sentence in structure.not_seen]
    sentences += [f"step {event.step}: {event.message}" for event in history.events("monitor-error")]
    coarse = history.events("coarsened")
    if coarse:
        sentences.append(
            f"{len(coarse)} records were coarsened because writing fell behind, the last at step {coarse[-1].step}"
        )
    return tuple(dict.fromkeys(sentences))
