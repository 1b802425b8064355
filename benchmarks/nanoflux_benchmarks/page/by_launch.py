"""Launch by launch: how times spread within one and from one to the next, and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from nanoflux_benchmarks.page import svg
from nanoflux_benchmarks.page.values import (
    LAUNCHES,
    PARTS,
    evenly,
    limit_of,
    measured,
    median,
    quantile,
    thinned,
    times,
)
from nanoflux_benchmarks.page.words import figure, outside, worded
from nanoflux_mobile.markup import Markup, element, join, scroller, section, spaced
from nanoflux_mobile.report import LatencyReport, Part

if TYPE_CHECKING:
    from nanoflux_benchmarks.session import Judgement

DOTS = 1000
"""Dots of one report in a plot."""
_WIDEST = 0.04
_COLUMN_PX = 9
_GOLDEN = 0.618
"""Multiples of it never come close to each other, so dots keep apart without chance."""


@dataclass(frozen=True)
class Column:
    """The values of one launch of one report, `kind` being ours or theirs."""

    number: int
    kind: str
    values: tuple[float, ...]


def distribution(found: Judgement) -> Markup:
    """The section with one column of dots and its box for each launch."""
    title, lead = (
        "Launch by launch",
        (
            "Images of one launch resemble each other more than those of two, so launches, not "
            "images, are what the statistics count."
        ),
    )
    part = next((part for part in PARTS if measured(found.report, part)), None)
    if part is None:
        nothing = svg.missing("The report holds no times after the warm-ups.")
        return section("launches", title, lead, nothing)
    return section("launches", title, lead, _spread(found, part))


def _spread(found: Judgement, part: Part) -> Markup:
    reports = [("ours", found.report)] + ([("theirs", found.baseline)] if found.baseline else [])
    columns = [column for kind, report in reports for column in _columns(report, part, kind)]
    limit = limit_of(found, part)
    scale = svg.scale_of([value for column in columns for value in column.values], [limit], "ms")
    most = max(6, DOTS * len(reports) // len(columns))
    launches = sum(len(report.launches) for _, report in reports)
    finding = _finding(found, part)
    reading = (
        f"Times of one {worded(part)} after the warm-ups. A box holds the middle half of a "
        f"launch's images, its line is the median.{_thinned(columns, launches, most)}"
    )
    told = f"Distribution of {worded(part)} times by launch. {finding}"
    limited = svg.limit_line(scale, limit, f"budget {figure(limit)}")
    drawing = _plot(columns, scale, told, limited, partial(_boxed, scale, most))
    return svg.chart(finding, reading, _legend(found, "circle"), drawing)


def _columns(report: LatencyReport, part: Part, kind: str) -> list[Column]:
    rows = enumerate((tuple(times(launch.measured, part)) for launch in report.launches), 1)
    return evenly([Column(number, kind, row) for number, row in rows if row], LAUNCHES)


def _plot(
    columns: Sequence[Column],
    scale: svg.Scale,
    told: str,
    limited: Markup,
    draw: Callable[[Column, float, float], list[Markup]],
) -> Markup:
    """Launches side by side; `draw` is given a column, its place across and half its width."""
    numbers = sorted({column.number for column in columns})
    kinds = len({column.kind for column in columns})
    slot = 1 / len(numbers)
    names = [((i + 0.5) * slot, str(number)) for i, number in enumerate(numbers)]
    parts = [svg.x_axis(names, "launch")]
    for column in columns:
        shift = 0.5 if kinds == 1 else 0.7 if column.kind == "ours" else 0.3
        x = (numbers.index(column.number) + shift) * slot
        parts += draw(column, x, min(0.16 * slot, _WIDEST / 2))
    drawing = svg.plot(told, svg.y_axis(scale), *parts, limited)
    wide = element("div", drawing, class_="wide", style=f"min-width:{_COLUMN_PX * len(columns)}px")
    return scroller("By launch", wide)


def _boxed(scale: svg.Scale, most: int, column: Column, x: float, half: float) -> list[Markup]:
    low, middle, high = (scale.y(quantile(column.values, q)) for q in (0.25, 0.5, 0.75))
    ends = x - half, x + half
    places = [
        (x + half * (2 * (_GOLDEN * i % 1) - 1), scale.y(column.values[k]))
        for i, k in enumerate(thinned(column.values, most))
    ]
    return [
        svg.box(ends, (low, high), f"box {column.kind}"),
        svg.dots("circle", places, column.kind),
        svg.line(ends, (middle, middle), f"middle {column.kind}"),
    ]


def _bar(scale: svg.Scale, column: Column, x: float, half: float) -> list[Markup]:
    ends = scale.y(0.0), scale.y(column.values[0])
    return [svg.box((x - half, x + half), ends, f"bar {column.kind}")]


def _legend(found: Judgement, shape: str) -> Markup:
    if found.baseline is None:
        return join(())
    return svg.legend(svg.key(shape, "theirs", "baseline"), svg.key(shape, "ours", "candidate"))


def _thinned(columns: Sequence[Column], launches: int, most: int) -> str:
    told = f" {len(columns)} of {launches:,} launches are drawn." if len(columns) < launches else ""
    if any(len(column.values) > most for column in columns):
        told += f" At most {most} dots of a launch are drawn; its box counts all."
    return told


def _finding(found: Judgement, part: Part) -> str:
    rows = [row for launch in found.report.launches if (row := times(launch.measured, part))]
    middles, usual = [median(row) for row in rows], median(measured(found.report, part))
    within = median([quantile(row, 0.75) - quantile(row, 0.25) for row in rows])
    told = (
        f"Medians of launches lie between {figure(min(middles))} and {figure(max(middles))}; "
        f"within one, the middle half of the images spans {figure(within)}"
    )
    if found.baseline is None or not (theirs := measured(found.baseline, part)):
        return f"{told}."
    return f"{told}. All images: {figure(usual)}, the baseline's {figure(median(theirs))}."


def memory(found: Judgement) -> Markup:
    """A plot of the most memory that each launch held."""
    ours = _peaks(found.report, "ours")
    if not ours:
        return svg.missing("The report does not say how much memory a launch held.")
    columns = ours + (_peaks(found.baseline, "theirs") if found.baseline else [])
    limit = limit_of(found, "memory") / 1e6
    peaks = [column.values[0] for column in columns]
    scale = svg.scale_of([0.0, *peaks], [limit], "MB")
    finding = _peak(found.report, 1e6 * limit)
    methods = {m.method for launch in found.report.launches if (m := launch.memory)}
    names = spaced(*(outside(name, 40) for name in sorted(methods)[:3]))
    reading = spaced("The most that the process of a launch held, as told by", names)
    limited = svg.limit_line(scale, limit, f"budget {figure(1e6 * limit, 'bytes')}")
    told = f"Peak memory by launch. {finding}"
    drawing = _plot(columns, scale, told, limited, partial(_bar, scale))
    return svg.chart(finding, reading, _legend(found, "square"), drawing)


def _peaks(report: LatencyReport, kind: str) -> list[Column]:
    rows = enumerate((launch.memory for launch in report.launches), 1)
    columns = [Column(number, kind, (held.peak_bytes / 1e6,)) for number, held in rows if held]
    return evenly(columns, LAUNCHES)


def _peak(report: LatencyReport, limit: float) -> str:
    held = {n: m.peak_bytes for n, each in enumerate(report.launches, 1) if (m := each.memory)}
    top = max(held, key=held.__getitem__)
    told = f"The peak is {figure(held[top], 'bytes')}, in launch {top}"
    if limit == float("inf"):
        return f"{told}."
    side = "within" if held[top] <= limit else "over"
    return f"{told}, {side} the budget of {figure(limit, 'bytes')}."
