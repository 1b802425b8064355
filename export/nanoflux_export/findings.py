"""Rules of the linters, written as data, and what becomes of the findings that they make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Generic, TypeVar

from nanoflux_mobile.cost import Cost
from nanoflux_mobile.manifest import Finding, Severity
from nanoflux_mobile.spec import Suppression

FEW = 3
"""Ops that a finding names."""

SQUARES_TO = 256
"""Values beyond it have squares that half precision cannot hold: 65504 is its largest number."""

LEAST_NORMAL_HALF = 2.0**-14
"""Half precision holds what is smaller badly, or flushes it to 0."""

LOWEST_HALF = -65504.0
"""The lowest finite number of half precision."""

F = TypeVar("F")


@dataclass(frozen=True)
class Advice:
    """What a finding says of a rule, as in `Finding`; `source` is a public link."""

    id: str
    severity: Severity
    why: str
    fix: str
    source: str

    def finding(self, component: str, ops: Iterable[str], count: int) -> Finding:
        """The finding that the rule is broken `count` times; the first few of `ops` are named."""
        return Finding(
            component=component,
            rule=self.id,
            severity=self.severity,
            count=count,
            ops=_few(ops),
            why=self.why,
            fix=self.fix,
            source=self.source,
        )


@dataclass(frozen=True)
class Rule(Advice, Generic[F]):
    """What an accelerator does not take well; `broken` names the ops of a file that break it."""

    broken: Callable[[F], Iterable[str]]

    def check(self, file: F, component: str) -> Finding | None:
        """What a file breaks of it, None where it keeps it."""
        ops = list(self.broken(file))
        return self.finding(component, ops, len(ops)) if ops else None


def broken(rules: Iterable[Rule[F]], file: F, component: str) -> tuple[Finding, ...]:
    """One finding for each rule that the file breaks, in the order of the rules."""
    found = (rule.check(file, component) for rule in rules)
    return tuple(finding for finding in found if finding)


def crossings(
    advice: Advice, found: Iterable[Finding], leaving: Iterable[str], functions: int, cost: Cost
) -> tuple[Finding, ...]:
    """How often values pass between processors, where functions do more than begin elsewhere.

    `leaving` are the rules about ops that run elsewhere: what `found` says of them is named.
    """
    if cost.crossings <= functions:
        return ()
    left = (op for finding in found if finding.rule in leaving for op in finding.ops)
    return (advice.finding(cost.blocks[0].component, left, cost.crossings),)


def merged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings of several files of a graph: one for each rule, counted up."""
    by_rule: dict[tuple[str, str], Finding] = {}
    for new in findings:
        key = new.component, new.rule
        old = by_rule.get(key, replace(new, count=0))
        ops = _few((*old.ops, *new.ops))
        by_rule[key] = replace(old, count=old.count + new.count, ops=ops)
    return tuple(by_rule.values())


def with_reasons(
    findings: Iterable[Finding], suppress: Sequence[Suppression]
) -> tuple[Finding, ...]:
    """The findings, each that a recipe lets pass with the reason it gives."""
    reasons = {(item.rule, item.component): item.reason for item in suppress}
    return tuple(
        replace(finding, suppressed=reasons.get((finding.rule, finding.component), ""))
        for finding in findings
    )


def unused(findings: Sequence[Finding], suppress: Iterable[Suppression]) -> tuple[Suppression, ...]:
    """The suppressions that nothing needs: the files keep these rules."""
    found = {(finding.rule, finding.component) for finding in findings}
    return tuple(item for item in suppress if (item.rule, item.component) not in found)


def lint_errors(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that fail a file: errors which no recipe lets pass."""
    return tuple(one for one in findings if one.severity == "error" and not one.suppressed)


def explain_finding(finding: Finding) -> str:
    """One finding in words: where it is, what happens, and what mends it."""
    return (
        f"{finding.component} breaks {finding.rule} {_times(finding)}: {finding.why}. "
        f"To mend it, {finding.fix} ({finding.source})"
    )


def explain_unused(item: Suppression) -> str:
    """A suppression that nothing needs, in words."""
    return (
        f"the recipe suppresses {item.rule} in {item.component}, but nothing there breaks it: "
        "take the suppression out"
    )


def places(finding: Finding) -> str:
    """The ops that a finding names, and how many more there are."""
    more = finding.count - len(finding.ops)
    return ", ".join((*finding.ops, *[f"{more:,} more"] * (more > 0 and bool(finding.ops))))


def told(finding: Finding) -> tuple[str, str]:
    """A finding as a line and what stands below it, for a list of all."""
    severity = f"{finding.severity}, suppressed" if finding.suppressed else finding.severity
    line = f"{severity}  {finding.component}  {finding.rule}  {_times(finding)}"
    if finding.suppressed:
        return line, f"{finding.why}; the recipe lets it pass: {finding.suppressed}"
    return line, f"{finding.why}; {finding.fix}"


def _times(finding: Finding) -> str:
    times = "once" if finding.count == 1 else f"{finding.count:,} times"
    return f"{times} ({', '.join(finding.ops)})" if finding.ops else times


def _few(ops: Iterable[str]) -> tuple[str, ...]:
    return tuple(islice(dict.fromkeys(ops), FEW))
