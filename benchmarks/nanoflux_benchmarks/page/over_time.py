"""Every image of the session in the order of its launches, with how warm the device was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from nanoflux_benchmarks.page import svg
from nanoflux_benchmarks.page.values import (
    LAUNCHES,
    STATES,
    State,
    evenly,
    limit_of,
    measured,
    median,
    state,
    thinned,
    times,
)
from nanoflux_benchmarks.page.words import count, figure, percent, worded
from nanoflux_mobile.markup import Markup, section
from nanoflux_mobile.report import LatencyReport, Launch, Part

if TYPE_CHECKING:
    from nanoflux_benchmarks.session import Judgement

DOTS = 1200
"""Dots of one chart; the page stays small, and more would lie on top of each other."""
SHAPES: dict[State, str] = {
    "nominal": "circle",
    "fair": "diamond",
    "serious": "triangle",
    "critical": "square",
    "unknown": "ring",
}
_NOTABLE = 0.03
_NEAR = 0.25
"""Warm-ups further above the rest, in spans of it, are drawn at the edge lest they flatten it."""
_MEANING: dict[Part, str] = {
    "image": "One dot is one image, from the text to the picture.",
    "step": "One dot is the mean over the denoising steps of one image.",
}


@dataclass(frozen=True)
class Dot:
    """One image: its place across the plot, its time in ms and what it is drawn as."""

    x: float
    value: float
    kind: str

    @property
    def warm(self) -> bool:
        """Whether it was a warm-up."""
        return self.kind.endswith("warm")


@dataclass(frozen=True)
class Band:
    """One launch: its number, its span across the plot and its dots."""

    number: int
    x: tuple[float, float]
    dots: tuple[Dot, ...]

    @property
    def middle(self) -> float | None:
        """The median of the measured dots."""
        settled = [dot.value for dot in self.dots if not dot.warm]
        return median(settled) if settled else None


def over_time(found: Judgement) -> Markup:
    """The section with one plot for images and one for steps."""
    lead = (
        "A device that slows down as it warms shows here, and so does a launch unlike the others. "
        "The short line in each launch is its median."
    )
    return section("time", "Time over the session", lead, *(_chart(found, p) for p in _MEANING))


def _chart(found: Judgement, part: Part) -> Markup:
    if not measured(found.report, part):
        words = "step times" if part == "step" else "times of whole images"
        return svg.missing(f"The report holds no {words} after the warm-ups.")
    bands = _bands(found.report, part)
    limit, dots = limit_of(found, part), [dot for band in bands for dot in band.dots]
    settled = [dot.value for dot in dots if not dot.warm] or [dot.value for dot in dots]
    edge = max(settled) + _NEAR * (max(settled) - min(settled))
    warm = [dot.value for dot in dots if dot.warm and dot.value <= edge]
    scale = svg.scale_of(settled, [limit, *warm], "ms")
    finding = _finding(found, part)
    reading = " ".join(
        filter(None, (_MEANING[part], *_left_out(found.report, bands, scale, limit)))
    )
    told = f"{worded(part).capitalize()} times over {count(len(bands), 'launch')}. {finding}"
    drawing = svg.plot(
        told,
        *_ground(bands, scale),
        *_marks(bands, scale),
        svg.limit_line(scale, limit, f"budget {figure(limit)}"),
    )
    return svg.chart(finding, reading, _legend(found.report), drawing)


def _bands(report: LatencyReport, part: Part) -> list[Band]:
    numbered = enumerate(report.launches, 1)
    launches = evenly([(n, each) for n, each in numbered if times(each.images, part)], LAUNCHES)
    slots = sum(len(launch.images) for _, launch in launches)
    each, bands, passed = max(12, DOTS // len(launches)), [], 0
    for number, launch in launches:
        ends = passed / slots, (passed + len(launch.images)) / slots
        bands.append(Band(number, ends, tuple(_dots(launch, part, ends, each))))
        passed += len(launch.images)
    return bands


def _dots(launch: Launch, part: Part, ends: tuple[float, float], most: int) -> list[Dot]:
    left, width = ends[0], (ends[1] - ends[0]) / len(launch.images)
    every = [
        Dot(left + width * (i + 0.5), found, f"{state(launch, image)}{' warm' * image.warmup}")
        for i, image in enumerate(launch.images)
        if (found := image.ms(part)) is not None
    ]
    kinds = [dot for dot in every if dot.warm], [dot for dot in every if not dot.warm]
    return [dots[i] for dots in kinds for i in thinned([dot.value for dot in dots], most)]


def _ground(bands: Sequence[Band], scale: svg.Scale) -> list[Markup]:
    """What lies under the dots: bands, their borders, the scales and the medians."""
    top, foot = svg.TOP, svg.TOP + svg.HEIGHT
    striped = [svg.box(band.x, (top, foot), "band") for band in bands[1::2]]
    borders = [svg.line((b.x[0], b.x[0]), (top, foot), "border") for _, b in pairwise(bands)]
    names = [((band.x[0] + band.x[1]) / 2, str(band.number)) for band in bands]
    medians = [
        svg.line(band.x, (scale.y(band.middle),) * 2, "median")
        for band in bands
        if band.middle is not None
    ]
    return [*striped, *borders, svg.y_axis(scale), svg.x_axis(names, "launch"), *medians]


def _marks(bands: Sequence[Band], scale: svg.Scale) -> list[Markup]:
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for dot in (dot for band in bands for dot in band.dots):
        inside = scale.low <= dot.value <= scale.high
        shape = SHAPES[dot.kind.split()[0]] if inside else "beyond"  # type: ignore[index]
        groups.setdefault((shape, dot.kind), []).append((dot.x, scale.y(dot.value)))
    return [svg.dots(shape, places, kind) for (shape, kind), places in groups.items()]


def _legend(report: LatencyReport) -> Markup:
    images = [(launch, image) for launch in report.launches for image in launch.images]
    seen = Counter(state(launch, image) for launch, image in images)
    keys = [
        svg.key(SHAPES[name], name, f"{_thermal(name)}: {count(seen[name], 'image')}")
        for name in STATES
        if seen[name]
    ]
    if warm := sum(image.warmup for _, image in images):
        keys.append(svg.key("circle", "nominal warm", f"hollow: {count(warm, 'warm-up')}"))
    return svg.legend(*keys)


def _thermal(name: State) -> str:
    return "temperature not said" if name == "unknown" else f"thermal state {name}"


def _finding(found: Judgement, part: Part) -> str:
    values, limit = measured(found.report, part), limit_of(found, part)
    within = sum(value <= limit for value in values)
    fits = f", {within:,} of {len(values):,} within the budget of {figure(limit)}"
    whole = f"Median {figure(median(values))} over {count(len(values), 'image')}"
    return f"{whole}{fits if limit < float('inf') else ''}. {_odd_launch(found.report, part)}"


def _odd_launch(report: LatencyReport, part: Part) -> str:
    middles = {
        number: median(times(launch.measured, part))
        for number, launch in enumerate(report.launches, 1)
        if times(launch.measured, part)
    }
    usual, worst = median(list(middles.values())), max(middles, key=middles.__getitem__)
    if middles[worst] <= (1 + _NOTABLE) * usual:
        return f"No launch lies {percent(_NOTABLE)} above the usual one."
    return f"Launch {worst} is the slowest, {percent(middles[worst] / usual - 1)} above the usual."


def _left_out(
    report: LatencyReport, bands: Sequence[Band], scale: svg.Scale, limit: float
) -> list[str]:
    """What is not drawn, or not where it belongs."""
    shown = [dot for band in bands for dot in band.dots]
    every = sum(len(launch.images) for launch in report.launches)
    told = []
    if len(shown) < every:
        which = f"{len(shown):,} of {every:,} images are drawn"
        told.append(f"{which}, evenly spaced, with the fastest and slowest of each launch.")
    if beyond := [dot.value for dot in shown if not scale.low <= dot.value <= scale.high]:
        ends = f"{figure(min(beyond))} to {figure(max(beyond))}"
        told.append(f"At the edge: {count(len(beyond), 'warm-up')} of {ends}.")
    if limit < float("inf") and not scale.low <= limit <= scale.high:
        side = "above" if limit > scale.high else "below"
        told.append(f"The budget of {figure(limit)} lies {side} the plot.")
    return told
