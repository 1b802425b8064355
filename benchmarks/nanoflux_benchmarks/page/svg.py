"""Plots by small functions: as wide as the page lets them be, their words of one size.

Across, everything is placed in per cent of the plot; downwards, in pixels. So no plot is scaled
and no text shrinks. Texts inside are words of this page, never of a report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nanoflux_mobile.markup import Markup, element, join, spaced

HEIGHT = 230.0
TOP = 20.0
FOOT = 30.0
_SHAPES = {
    "circle": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "diamond": "M0-4.4 4.4 0 0 4.4-4.4 0z",
    "triangle": "M0-4.4 4.2 3.2H-4.2z",
    "square": "M-3.2-3.2H3.2V3.2H-3.2z",
    "estimate": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "ring": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "beyond": "M-3.5 2.5 0-3 3.5 2.5",
}
_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` of one unit, with a tick every `step`."""

    low: float
    high: float
    step: float
    unit: str

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high one, clipped to both."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def y(self, value: float) -> float:
        """The same in pixels below the top of a plot."""
        return TOP + HEIGHT * (1 - self.share(value))

    @property
    def ticks(self) -> list[float]:
        """Round values from end to end."""
        steps = round((self.high - self.low) / self.step)
        return [self.low + self.step * i for i in range(steps + 1)]


def scale_of(values: Sequence[float], near: Iterable[float], unit: str) -> Scale:
    """A scale with round ends around all values; it widens for those `near`, not for far ones.

    It begins at zero only where that is among the values; none may be negative.
    """
    low, high = min(values), max(values)
    reach = max(high - low, 0.15 * high)
    for value in near:
        if low - reach <= value <= high + reach:
            low, high = min(low, value), max(high, value)
    pad = max(0.04 * (high - low), 0.02 * high) or 1.0
    step = _round_up((high - low + 2 * pad) / 6)
    bottom, top = max(0, math.floor((low - pad) / step)), math.ceil((high + pad) / step)
    return Scale(bottom * step, top * step, step, unit)


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return power * next(factor for factor in _ROUND if factor * power >= value * (1 - 1e-9))


def across(share: float) -> str:
    """A place along a plot."""
    return f"{100 * share:.4g}%"


def px(value: float) -> str:
    """A place down a plot."""
    return f"{value:.1f}"


def line(x: tuple[float, float], y: tuple[float, float], kind: str) -> Markup:
    """A straight line; `x` in shares, `y` in pixels."""
    (x1, x2), (y1, y2) = x, y
    return element("line", x1=across(x1), x2=across(x2), y1=px(y1), y2=px(y2), class_=kind)


def box(x: tuple[float, float], y: tuple[float, float], kind: str) -> Markup:
    """A rectangle between two shares across and two places down."""
    left, right = sorted(x)
    top, bottom = sorted(y)
    return element(
        "rect",
        x=across(left),
        width=across(right - left),
        y=px(top),
        height=px(bottom - top),
        class_=kind,
    )


def label(x: str, y: float, words: str, kind: str) -> Markup:
    """Words; their class says which end of them stands at `x`."""
    return element("text", words, x=x, y=px(y), class_=kind)


def dots(shape: str, places: Iterable[tuple[float, float]], kind: str) -> Markup:
    """One mark at each place (share across, pixels down)."""
    href = f"#{shape}"
    marks = (element("use", href=href, x=across(x), y=px(y)) for x, y in places)
    return element("g", *marks, class_=f"mark {kind}")


def shapes() -> Markup:
    """The marks that `dots` refers to; once in a page."""
    paths = (element("path", id=name, d=path) for name, path in _SHAPES.items())
    defined = element("defs", *paths)
    return element("svg", defined, width="0", height="0", class_="shapes", aria_hidden="true")


def y_axis(scale: Scale) -> Markup:
    """Lines across the plot with their values, the unit above the topmost."""
    parts: list[Markup] = []
    for tick in scale.ticks:
        y, words = scale.y(tick), f"{tick:.7g}"
        parts.append(line((0, 1), (y, y), "grid"))
        parts.append(label("-8", y + 4, words, "tick-label end"))
    parts.append(label("-8", TOP - 10, scale.unit, "tick-label end"))
    return join(parts)


def x_axis(places: Sequence[tuple[float, str]], name: str, most: int = 12) -> Markup:
    """Labels under the plot, every so many of them, and what they count."""
    below = TOP + HEIGHT + 18
    every = math.ceil(len(places) / most)
    texts = [label(across(x), below, words, "tick-label middle") for x, words in places[::every]]
    return join((*texts, label("-8", below, name, "tick-label end")))


def limit_line(scale: Scale, value: float, words: str) -> Markup:
    """A limit across the plot, where the scale reaches it."""
    if not scale.low <= value <= scale.high:
        return Markup("")
    y = scale.y(value)
    named = label("100%", y - 5 if y > TOP + 12 else y + 14, words, "limit-label end")
    return join((line((0, 1), (y, y), "limit"), named))


def plot(told: str, *parts: str, height: float = TOP + HEIGHT + FOOT) -> Markup:
    """A drawing, and the words that stand for it where it is not seen."""
    attributes = {"class": "plot", "role": "img", "aria_label": told, "width": "100%"}
    return element("svg", *parts, **attributes, height=f"{height:.0f}")


def key(shape: str, kind: str, words: str) -> Markup:
    """A line of a legend."""
    mark = dots(shape, [(0.5, 7.0)], kind)
    drawing = element("svg", mark, width="14", height="14", aria_hidden="true")
    return element("li", spaced(drawing, element("span", words)))


def legend(*keys: Markup) -> Markup:
    """What the marks of a plot mean."""
    return element("ul", *keys, class_="legend")


def chart(finding: str, reading: str, *drawing: Markup) -> Markup:
    """A drawing under the sentence it proves and the one that says how to read it."""
    words = spaced(element("b", finding), element("span", reading))
    return element("figure", element("figcaption", words), *drawing)


def missing(words: str) -> Markup:
    """In place of a drawing: why there is none."""
    return element("p", words, class_="none")
