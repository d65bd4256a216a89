"""The verdict: one sentence on what holds a run back, and whether that is internal covariate shift."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.core.finding import SEVERITIES, Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.diagnosis.evidence import Series
from holdfast.diagnosis.shifting_input import ShiftingInput
from holdfast.diagnosis.wording import number, plural

SHIFT = ("shifting-input", "drift-amplification")


def verdict_of(
    history: History,
    findings: tuple[Finding, ...],
    undecided: tuple[Inconclusive, ...],
    subjects: Mapping[str, str],
) -> str:
    """Say in one sentence what holds the run back.

    Args:
        history: of the run.
        findings: ranked.
        undecided: rules that could not decide.
        subjects: what to call each rule that was asked, by its name.

    Returns:
        One sentence, without a full stop at its end.
    """
    serious = [finding for finding in findings if SEVERITIES.index(finding.severity) >= 1]
    why_not = {each.rule: each.reason for each in undecided}
    if not serious:
        return _quiet(history, findings, why_not, subjects)
    top = serious[0]
    if top.rule in SHIFT:
        return _shift(history, top, serious, subjects)
    # Several rules may tell one story: the causes are named together, the worst first.
    causes = _others(serious, subjects)
    said = f"{causes[0]} (beside it: {_listed(causes[1:4])})" if len(causes) > 1 else causes[0]
    verb = "is what holds this run back" if top.severity == "critical" else "is the first thing to mend"
    return f"{said[0].upper()}{said[1:]} {verb}; {_about_shift(history, serious, why_not)}"


def _shift(history: History, top: Finding, serious: list[Finding], subjects: Mapping[str, str]) -> str:
    size = "large here" if top.severity == "critical" else "notable here"
    others = _others(serious, subjects)
    beside = f"; beside it: {_listed(others[:3])}" if others else ""
    # The finding itself has the interval, the floor and the sample size.
    first = f"{top.message.partition(' (')[0]} (n = {top.evidence[0].n} samples)"
    said = first if top.evidence[0].lag != 1 else f"{plural(len(top.sites), 'input')} move, {_largest(history)}"
    return f"Internal covariate shift is {size}: {said}{beside}"


def _about_shift(history: History, serious: list[Finding], why_not: dict[str, str]) -> str:
    fired = next((each for each in serious if each.rule in SHIFT), None)
    if fired is not None:
        return f"internal covariate shift comes after it ({fired.rule}, {fired.severity})"
    if "shifting-input" in why_not:
        return f"about internal covariate shift nothing can be said: {why_not['shifting-input']}"
    return f"internal covariate shift is not ({_largest(history)})"


def _quiet(
    history: History, findings: tuple[Finding, ...], why_not: dict[str, str], subjects: Mapping[str, str]
) -> str:
    if "shifting-input" in why_not:
        if not history.sites() and not history.steps:
            return "inconclusive: nothing was observed; watch the run for at least 5 observed steps"
        decided = any(rule not in why_not for rule in subjects if rule not in SHIFT)
        found = f"left {plural(len(findings), 'remark')} but no warning" if findings else "found nothing"
        also = f"; the rules that could decide {found}" if decided else ""
        return f"inconclusive: {why_not['shifting-input']}{also}"
    remarks = f"{plural(len(findings), 'remark')} but no warning" if findings else "no rule fired"
    left = f" ({plural(len(why_not), 'rule')} undecided)" if why_not else ""
    return (
        f"No finding: {remarks}{left}, and internal covariate shift is not what holds this run back "
        f"({_largest(history)})"
    )


def _largest(history: History) -> str:
    """The largest believable drift per step, in words."""
    rule = ShiftingInput()
    near: list[Series] = []
    for stream in history.streams():
        near += [each for each in rule.drifts(history, stream)[0] if len(each.readings) >= rule.steps_needed]
    if not near:
        return "judged over 100 steps only"
    largest = max(near, key=lambda each: each.median)
    return (
        f"largest drift {number(largest.median)} reference SD per step at '{largest.site.label}', median of "
        f"{plural(len(largest.readings), 'observed step')}, n = {largest.samples}"
    )


def _others(serious: list[Finding], subjects: Mapping[str, str]) -> list[str]:
    """What fired beside shift, in the verdict's words, the worst first."""
    return [subjects.get(rule, rule) for rule in dict.fromkeys(each.rule for each in serious) if rule not in SHIFT]


def _listed(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
