"""A verdict for people, for a pull request and for the test page of a CI system."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as xml

from rich.markup import escape
from rich.table import Table

from nanoflux_benchmarks.verdict import Check, Interval, Outcome, Power, Verdict

WORDS: dict[Outcome, str] = {"pass": "pass", "fail": "FAIL", "no_evidence": "no evidence"}
_COLOURS: dict[Outcome, str] = {"pass": "green", "fail": "red", "no_evidence": "yellow"}
_COLUMNS = ("check", "found", "95 % bounds", "limit", "", "why")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def figure(value: float, unit: str) -> str:
    """A value in its unit, as a person writes it."""
    if unit == "bytes":
        return f"{value / 1e6:.1f} MB"
    if unit == "ratio":
        return f"{value:.3f}x"
    return f"{value:.0f} ms" if value >= 999.5 else f"{value:.4g} ms"


def bounds(found: Interval | None, unit: str) -> str:
    """The bounds of an estimate; empty where it has none."""
    if found is None or found.low == found.high:
        return ""
    return f"{figure(found.low, unit)} to {figure(found.high, unit)}"


def cells(check: Check) -> tuple[str, ...]:
    """A check as the columns of a table."""
    found = "-" if check.found is None else figure(check.found.value, check.unit)
    limit = figure(check.limit, check.unit)
    words = WORDS[check.outcome], check.why
    return check.name, found, bounds(check.found, check.unit), limit, *words


def power_text(power: Power) -> str:
    """What a comparison could have seen, in a sentence."""
    noise, least = power.noise_floor - 1, power.smallest_caught - 1
    stage = power.stage.replace("_", " ")
    return f"{stage}: equal runs differ by up to {noise:.1%}; a slowdown of {least:.1%} is caught"


def table(verdict: Verdict) -> Table:
    """The checks, coloured."""
    made = Table(title=headline(verdict), title_justify="left", title_style="bold")
    for column in _COLUMNS:
        made.add_column(column, justify="right" if column in ("found", "limit") else "left")
    for check in verdict.checks:
        row = [escape(cell) for cell in cells(check)]
        row[4] = f"[{_COLOURS[check.outcome]}]{row[4]}[/]"
        made.add_row(*row)
    return made


def headline(verdict: Verdict) -> str:
    """The outcome and what it rests on, in one line."""
    failed = [check.name for check in verdict.checks if check.outcome == "fail"]
    if verdict.outcome == "fail":
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        return f"FAIL: {failed[0]}{more}"
    if verdict.outcome == "pass":
        return f"pass: {len(verdict.checks)} checks hold"
    count = len(verdict.reasons)
    return f"no evidence: {count} reasons" if count > 1 else "no evidence"


def markdown(verdict: Verdict, title: str) -> str:
    """The verdict as GitHub Markdown; whatever a report said is shown as plain text."""
    lines = [f"### {_plain(title)}: {WORDS[verdict.outcome]}", ""]
    if verdict.reasons:
        lines += ["Why this is no evidence:", "", *(f"- {_plain(r)}" for r in verdict.reasons), ""]
    if verdict.checks:
        lines += [_row(_COLUMNS), _row(["---"] * len(_COLUMNS))]
        lines += [_row([_plain(cell) for cell in cells(check)]) for check in verdict.checks] + [""]
    lines += [f"- {power_text(power)}" for power in verdict.power]
    return "\n".join(lines).rstrip() + "\n"


def _row(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |"


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~@&])", r"\\\1", " ".join(text.split()))


def junit(verdict: Verdict, title: str) -> str:
    """The verdict as JUnit XML: a case per check, and one for the evidence itself."""
    outcomes = [check.outcome for check in verdict.checks]
    errors = outcomes.count("no_evidence") + bool(verdict.reasons)
    suite = xml.Element("testsuite", name=_clean(title), tests=str(len(outcomes) + 1))
    suite.attrib |= {"failures": str(outcomes.count("fail")), "errors": str(errors)}
    evidence = xml.SubElement(suite, "testcase", classname="nanoflux.gate", name="evidence")
    if verdict.reasons:
        reasons = _clean("\n".join(verdict.reasons))
        xml.SubElement(evidence, "error", message="no evidence").text = reasons
    for check in verdict.checks:
        case = xml.SubElement(suite, "testcase", classname="nanoflux.gate", name=_clean(check.name))
        if check.outcome != "pass":
            kind = "failure" if check.outcome == "fail" else "error"
            row = _clean(" | ".join(cells(check)))
            xml.SubElement(case, kind, message=_clean(check.why)).text = row
    xml.indent(suite)
    return xml.tostring(suite, "unicode", xml_declaration=True) + "\n"


def _clean(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return _NOT_XML.sub("?", text)
