"""What each denoising step takes, and how much that varies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nanoflux_benchmarks.page import svg
from nanoflux_benchmarks.page.values import evenly, limit_of
from nanoflux_benchmarks.page.words import count, figure
from nanoflux_mobile.markup import Markup, join
from nanoflux_mobile.report import LatencyReport

if TYPE_CHECKING:
    from nanoflux_benchmarks.session import Judgement

STEPS = 120
"""Steps of one plot."""
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_ALIKE = 1.03


@dataclass(frozen=True)
class Step:
    """One denoising step, counted from one: tenth, quarter, half, three quarters, nine tenths."""

    number: int
    quantiles: tuple[float, ...]

    @property
    def median(self) -> float:
        """What it takes in the middle case, in ms."""
        return self.quantiles[2]


def profile(report: LatencyReport) -> list[Step]:
    """Every step over the measured images that have the usual number of steps."""
    rows = [i.step_ms for launch in report.launches for i in launch.measured if i.step_ms]
    if not rows:
        return []
    lengths = [len(row) for row in rows]
    usual = max(set(lengths), key=lengths.count)
    table = np.quantile([row for row in rows if len(row) == usual], _QUANTILES, axis=0).T
    return [Step(k, tuple(map(float, row))) for k, row in enumerate(table, 1)]


def step_profile(found: Judgement) -> Markup:
    """A plot of every step of an image, from the first to the last."""
    ours = profile(found.report)
    if not ours:
        return svg.missing("The report holds no times of single steps.")
    theirs = profile(found.baseline) if found.baseline else []
    theirs = theirs if len(theirs) == len(ours) else []
    limit = limit_of(found, "step")
    shown = evenly(range(len(ours)), STEPS)
    values = [v for steps in (ours, theirs) for i in shown for v in steps[i : i + 1]]
    scale = svg.scale_of([q for step in values for q in step.quantiles], [limit], "ms")
    finding, kept = _finding(ours), [ours[i] for i in shown]
    drawing = svg.plot(
        f"Time of each step. {finding}",
        svg.y_axis(scale),
        svg.x_axis([(_x(i, kept), str(step.number)) for i, step in enumerate(kept)], "step"),
        *_marks(kept, [theirs[i] for i in shown] if theirs else [], scale),
        svg.limit_line(scale, limit, f"budget of a mean step {figure(limit)}"),
    )
    return svg.chart(finding, _reading(len(shown), len(ours)), _legend(bool(theirs)), drawing)


def _x(index: int, steps: Sequence[Step]) -> float:
    return (index + 0.5) / len(steps)


def _marks(ours: Sequence[Step], theirs: Sequence[Step], scale: svg.Scale) -> list[Markup]:
    parts = []
    for i, step in enumerate(ours):
        x, (least, low, _, high, most) = _x(i, ours), map(scale.y, step.quantiles)
        parts.append(svg.line((x, x), (least, most), "whisker"))
        parts.append(svg.line((x, x), (low, high), "half"))
    middles = [(_x(i, ours), scale.y(step.median)) for i, step in enumerate(ours)]
    before = [(_x(i, theirs), scale.y(step.median)) for i, step in enumerate(theirs)]
    return [*parts, svg.dots("diamond", before, "theirs"), svg.dots("circle", middles, "ours")]


def _legend(compared: bool) -> Markup:
    if not compared:
        return join(())
    ours = svg.key("circle", "ours", "candidate")
    return svg.legend(svg.key("diamond", "theirs", "baseline, median"), ours)


def _finding(steps: Sequence[Step]) -> str:
    slow, fast = max(steps, key=_median), min(steps, key=_median)
    if slow.median <= _ALIKE * fast.median:
        return f"All {count(len(steps), 'step')} take about {figure(slow.median)}."
    times = f"{slow.median / fast.median:.2f} times" if fast.median else "many times"
    return (
        f"Step {slow.number} is the slowest, {figure(slow.median)}: {times} step {fast.number}, "
        f"the fastest, {figure(fast.median)}."
    )


def _median(step: Step) -> float:
    return step.median


def _reading(shown: int, every: int) -> str:
    told = f" {shown} of {every:,} steps are drawn." if shown < every else ""
    return (
        "Dots are medians over all measured images; the thick line holds the middle half of "
        f"them, the thin one the middle eight in ten.{told}"
    )
