"""Candidate against baseline: each ratio with its bounds, beside what chance does alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanoflux_benchmarks import render
from nanoflux_benchmarks.page import svg
from nanoflux_benchmarks.page.words import figure, listing, percent, span, worded
from nanoflux_benchmarks.verdict import Check, Interval, Verdict
from nanoflux_mobile.markup import Markup, element, section

if TYPE_CHECKING:
    from nanoflux_benchmarks.session import Judgement

_ROW = 46.0
_WIDEST = 4.0
"""Ratios past this are drawn at the edge; the words beside them say what they are."""


@dataclass(frozen=True)
class Row:
    """One stage: its ratio with bounds, what is left alone, and how far equal runs differ."""

    check: Check
    found: Interval
    noise: float | None


def ratios(found: Judgement) -> Markup:
    """The section with one line for each stage that both reports have."""
    title = "Against the baseline"
    lead = (
        "Time of the candidate over that of the baseline: right of 1 it is slower. A slowdown is "
        "claimed only where the whole interval lies right of 1 and the estimate right of the limit."
    )
    if found.baseline is None:
        nothing = svg.missing("No baseline was given, so nothing was compared.")
        return section("ratios", title, lead, nothing)
    if not (rows := _rows(found.verdict)):
        return section("ratios", title, lead, svg.missing("No stage could be compared."))
    finding = _finding([row.check for row in rows])
    words = [element("li", render.power_text(power)) for power in found.verdict.power]
    drawing = svg.chart(finding, _reading(rows), _plot(rows, finding), element("ul", *words))
    return section("ratios", title, lead, drawing)


def _rows(verdict: Verdict) -> list[Row]:
    noise = {p.stage: p.noise_floor for p in verdict.power if 1 <= p.noise_floor < math.inf}
    return [
        Row(check, check.found, noise.get(check.stage))
        for check in verdict.checks
        if check.unit == "ratio" and check.found and _finite(check.found)
    ]


def _finite(found: Interval) -> bool:
    return all(map(math.isfinite, (found.value, found.low, found.high)))


def _finding(checks: Sequence[Check]) -> str:
    slower = [_changed(check) for check in checks if check.outcome == "fail"]
    unclear = [worded(check.stage) for check in checks if check.outcome == "no_evidence"]
    if slower:
        return f"Slower: {listing(slower)}."
    if unclear:
        return f"Too noisy to tell: {listing(unclear)}."
    return "No stage is slower by more than chance and the limit allow."


def _changed(check: Check) -> str:
    return f"{worded(check.stage)} by {percent(check.found.value - 1)}" if check.found else ""


def _reading(rows: Sequence[Row]) -> str:
    limits = listing(sorted({figure(row.check.limit, "ratio") for row in rows}))
    told = f"Dots are estimates, lines their 95 % bounds; the dashed line is the limit, {limits}."
    if any(row.noise for row in rows):
        told += " The band is how far equal runs differ by chance alone."
    return told


def _plot(rows: Sequence[Row], finding: str) -> Markup:
    ends = [end for row in rows for end in (row.found.low, row.found.high, row.check.limit)]
    noise = [edge for row in rows if row.noise for edge in (1 / row.noise, row.noise)]
    scale = svg.scale_of([min(max(end, 0.0), _WIDEST) for end in (1.0, *ends, *noise)], [], "x")
    foot = _ROW * len(rows) + 8
    parts = [
        svg.label(svg.across(scale.share(tick)), foot + 16, f"{tick:.4g}x", "tick-label middle")
        for tick in scale.ticks
    ]
    for i, row in enumerate(rows):
        parts += _line(row, i * _ROW + 36, scale)
    told = f"Ratios to the baseline. {finding} {'; '.join(map(_words, rows))}."
    return element("div", svg.plot(told, *parts, height=foot + 26), class_="inset")


def _words(row: Row) -> str:
    return f"{worded(row.check.stage)} {span(row.found, 'ratio')}"


def _ground(noise: float | None, y: float, scale: svg.Scale) -> Iterator[Markup]:
    """What lies under an interval: what equal runs do, round ratios, and that of no change."""
    if noise:
        ends = scale.share(1 / noise), scale.share(noise)
        yield svg.box(ends, (y - 9, y + 9), "noise")
    for ratio, kind in [*((tick, "grid") for tick in scale.ticks), (1.0, "even")]:
        x = scale.share(ratio)
        yield svg.line((x, x), (y - 12, y + 12), kind)


def _line(row: Row, y: float, scale: svg.Scale) -> list[Markup]:
    low, middle, high = (scale.share(v) for v in (row.found.low, row.found.value, row.found.high))
    limit, kind = scale.share(row.check.limit), row.check.outcome
    return [
        *_ground(row.noise, y, scale),
        svg.line((limit, limit), (y - 11, y + 11), "limit"),
        svg.line((low, high), (y, y), f"bounds {kind}"),
        svg.dots("estimate", [(middle, y)], kind),
        svg.label("0", y - 18, _words(row), "row-label"),
    ]
