"""Curves over steps as SVG: as wide as the page lets them be, their words of one size.

The plane of a curve is stretched to the page while its line keeps its width; words and ticks stand
beside it, placed in per cent across and in pixels down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nanoflux_mobile.markup import Markup, element, join, spaced

HEIGHT, TOP, FOOT = 180.0, 10.0, 26.0
MOST_POINTS = 600
"""More than a page has pixels for; longer curves are averaged down to these."""
LOG_FROM = 8.0
"""Largest by smallest value from which a curve is drawn on a log scale."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high`, even or logarithmic, and the ones that get a line."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def y(self, value: float) -> float:
        """Pixels below the top of a plot."""
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return TOP + HEIGHT * (1 - min(max((at - low) / (high - low), 0.0), 1.0))


def scale_of(values: Sequence[float], log: bool | None = None) -> Scale:
    """A scale around all values; logarithmic where they span much, unless `log` says otherwise."""
    low, high = min(values), max(values)
    if log is None:
        log = low > 0 and high / low >= LOG_FROM
    return _log_scale(low, high) if log and low > 0 else _even_scale(low, high)


def _log_scale(low: float, high: float) -> Scale:
    if high / low < 2:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(2), middle * math.sqrt(2)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    decades = math.log10(high / low)
    factors = (1.0, 2.0, 5.0) if decades < 3 else (1.0,)
    every = max(1, math.ceil(decades / 6))
    ticks = (f * 10.0**power for power in powers if power % every == 0 for f in factors)
    return Scale(low, high, True, tuple(tick for tick in ticks if low <= tick <= high))


def _even_scale(low: float, high: float) -> Scale:
    if high - low < 1e-12 + 1e-6 * abs(high):
        pad = 0.5 * abs(high) or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1.0, 2.0, 2.5, 5.0, 10.0) if f * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = tuple(step * i for i in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], False, ticks)


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most so many points, each the mean of as many neighbours."""
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(_mean([x for x, _ in group]), _mean([y for _, y in group])) for group in groups]


def smoothed(points: Points, share: float = 0.03) -> list[tuple[float, float]]:
    """Means over a window of a share of all points around each; shorter at both ends."""
    reach = round(share * len(points) / 2)
    return [
        (x, _mean([y for _, y in points[max(0, i - reach) : i + reach + 1]]))
        for i, (x, _) in enumerate(points)
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def curve(
    title: str,
    reading: str,
    points: Points,
    last: float,
    log: bool | None = None,
    noisy: bool = True,
) -> Markup:
    """A figure of one curve from step 0 to `last`.

    Args:
        title: what is drawn, with its latest value.
        reading: how to read it.
        points: (step, value), finite, at least one.
        last: the step at the right edge.
        log: whether the scale is logarithmic; None lets the values decide.
        noisy: a faint line for values and a strong one for their running mean.
    """
    few = thinned(points)
    scale = scale_of([y for _, y in few], log)
    faint = _path(few, scale, last, "values") if noisy else ""
    strong = _path(smoothed(few) if noisy else few, scale, last, "means")
    plane = element(
        "svg",
        faint,
        strong,
        viewBox=f"0 0 1000 {TOP + HEIGHT:.0f}",
        preserveAspectRatio="none",
        width="100%",
        height=f"{TOP + HEIGHT:.0f}",
    )
    drawing = element(
        "svg",
        _grid(scale, last),
        plane,
        class_="plot",
        role="img",
        aria_label=f"{title}. {reading}",
        width="100%",
        height=f"{TOP + HEIGHT + FOOT:.0f}",
    )
    words = spaced(element("b", title), element("span", reading))
    return element("figure", element("figcaption", words), drawing)


def _path(points: Points, scale: Scale, last: float, kind: str) -> Markup:
    places = [f"{1000 * x / max(last, 1e-9):.1f} {scale.y(y):.1f}" for x, y in points]
    # A line of one point would not be seen; a stroke of no length with round ends is a dot.
    path = "M" + "L".join(places if len(places) > 1 else 2 * places)
    return element("path", d=path, class_=kind, vector_effect="non-scaling-stroke")


def _grid(scale: Scale, last: float) -> Markup:
    parts: list[Markup] = []
    for tick in scale.ticks:
        y = f"{scale.y(tick):.1f}"
        parts.append(element("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        below = f"{scale.y(tick) + 4:.1f}"
        parts.append(element("text", f"{tick:.6g}", x="-8", y=below, class_="end"))
    foot = f"{TOP + HEIGHT + 18:.1f}"
    steps = _even_scale(0, last).ticks if last > 0 else (0.0,)
    for step in (tick for tick in steps if tick <= last and tick == round(tick)):
        x = f"{100 * step / max(last, 1e-9):.2f}%"
        parts.append(element("text", f"{step:,.0f}", x=x, y=foot, class_="middle"))
    return join(parts)
