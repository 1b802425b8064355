"""Small SVG charts that stand alone and are readable on light and on dark."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nanoflux_mobile.markup import Markup, element, join

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 760, 400, 56, 24, 92, 52
CHARACTER_PX = 6.3
"""Mean width of the legend's letters, which an SVG cannot measure."""
COLOURS: Mapping[str, tuple[str, str]] = {
    "paper": ("#fbfbf9", "#16181a"),
    "ink": ("#26292c", "#e6e8ea"),
    "soft": ("#5b6065", "#a6acb2"),
    "grid": ("#dfdfd8", "#34383c"),
    "shade": ("#ecebdf", "#262b2d"),
    "double": ("#b0651b", "#eba45f"),
    "single": ("#0b6b74", "#5cc4ce"),
    "other": ("#7a4fa3", "#bfa2e6"),
}
"""What is painted, by its class: on light, on dark."""
WIDEST = 12
"""Ticks of an axis that counts; beyond, every second, fifth, tenth ... has one."""
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """A scale from `low`, left or at the foot, to `high`, with what is written at its ticks."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies between both ends: 0 to 1."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (at - low) / (high - low)


@dataclass(frozen=True)
class Series:
    """Points that belong together; only a named one is in the legend."""

    colour: str
    points: Points
    name: str = ""
    width: float = 2.5
    faint: bool = False
    dashes: str = ""
    dots: float = 0.0


@dataclass(frozen=True)
class Shade:
    """A stretch of the x axis, and what is written on it where there is room."""

    start: float
    stop: float
    name: str


def chart(
    title: str, x: Axis, y: Axis, series: Sequence[Series], shades: Sequence[Shade] = ()
) -> str:
    """An SVG file."""
    drawn = (
        element("rect", width="100%", height="100%", class_="paper", fill="currentColor"),
        *(_shade(shade, x) for shade in shades),
        *(_rule(y.share(value), words) for value, words in y.ticks),
        *(_words(_across(x.share(value)), HEIGHT - FOOT + 18, t, "middle") for value, t in x.ticks),
        *(_series(line, x, y) for line in series),
        *_legend([line for line in series if line.name]),
        _words(LEFT - 40, 26, title, "start", "ink", font_size="15", font_weight="600"),
        _words(LEFT - 40, TOP - 14, y.title, "start"),
        _words((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x.title, "middle"),
    )
    body = element("g", *drawn, font_family="system-ui, Liberation Sans, sans-serif")
    box = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": f"{WIDTH}", "height": f"{HEIGHT}"}
    told = {"role": "img", "aria_label": title, "font_size": "12"}
    style = element("style", Markup(_css()))
    return element("svg", style, body, xmlns="http://www.w3.org/2000/svg", **box, **told) + "\n"


def _css() -> str:
    light, dark = (
        "".join(f".{name}{{color:{pair[i]}}}" for name, pair in COLOURS.items()) for i in (0, 1)
    )
    return f"{light}@media(prefers-color-scheme:dark){{{dark}}}"


def _across(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _down(share: float) -> float:
    return HEIGHT - FOOT - share * (HEIGHT - TOP - FOOT)


def _words(
    x: float, y: float, words: str, anchor: str, colour: str = "soft", **more: str
) -> Markup:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text_anchor": anchor, **more}
    return element("text", words, class_=colour, fill="currentColor", **place)


def _rule(share: float, words: str) -> Markup:
    y = f"{_down(share):.1f}"
    ends = {"x1": f"{LEFT}", "x2": f"{WIDTH - RIGHT}", "y1": y, "y2": y}
    line = element("line", class_="grid", stroke="currentColor", **ends)
    return join((line, _words(LEFT - 8, _down(share) + 4, words, "end")))


def _shade(shade: Shade, x: Axis) -> Markup:
    left, right = _across(x.share(shade.start)), _across(x.share(shade.stop))
    size = {"width": f"{right - left:.1f}", "height": f"{HEIGHT - TOP - FOOT}"}
    place = {"x": f"{left:.1f}", "y": f"{TOP}", **size}
    band = element("rect", class_="shade", fill="currentColor", **place)
    if CHARACTER_PX * len(shade.name) > right - left:
        return band
    return join((band, _words((left + right) / 2, HEIGHT - FOOT - 8, shade.name, "middle")))


def _series(line: Series, x: Axis, y: Axis) -> Markup:
    return _drawn(line, [(_across(x.share(a)), _down(y.share(b))) for a, b in line.points])


def _drawn(line: Series, places: Points) -> Markup:
    """A series at places on the paper."""
    parts = []
    if line.width:
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
        stroke = {"stroke_width": f"{line.width}", "stroke_linejoin": "round"}
        dashes = {"stroke_dasharray": line.dashes} if line.dashes else {}
        parts.append(
            element("path", d=path, fill="none", stroke="currentColor", **stroke, **dashes)
        )
    if line.dots:
        parts += [
            element("circle", cx=f"{a:.1f}", cy=f"{b:.1f}", r=f"{line.dots}", fill="currentColor")
            for a, b in places
        ]
    faint = {"opacity": "0.4"} if line.faint else {}
    return element("g", *parts, class_=line.colour, **faint)


def _legend(named: Sequence[Series]) -> Iterator[Markup]:
    left = LEFT - 40.0
    for line in named:
        ends = [(left, 46.0), (left + 22, 46.0)] if line.width else [(left + 11, 46.0)]
        yield _drawn(dataclasses.replace(line, dots=0 if line.width else line.dots), ends)
        yield _words(left + 28, 50, line.name, "start", "ink")
        left += 28 + CHARACTER_PX * len(line.name) + 18


def counted(title: str, low: int, high: int, room: float = 0.0) -> Axis:
    """An axis of whole numbers, with `room` beyond both ends."""
    every = next(n for n in (1, 2, 5, 10, 20, 50, 10**9) if (high - low) / n <= WIDEST)
    first = low if every == 1 else -(-low // every) * every
    ticks = [(float(i), str(i)) for i in range(first, high + 1, every)]
    return Axis(title, low - room, high + room, ticks)


def decades(title: str, values: Iterable[float]) -> Axis:
    """A logarithmic axis over the powers of ten around all values above zero."""
    logs = [math.log10(value) for value in values if value > 0]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    every = -(-(high - low) // 8) or 1
    ticks = [(10.0**i, f"10{str(i).translate(RAISED)}") for i in range(low, high + 1, every)]
    return Axis(title, 10.0**low, 10.0 ** max(high, low + 1), ticks, log=True)


def stepped(title: str, values: Sequence[float], every: float) -> Axis:
    """A linear axis with a tick each `every`, wide enough for all values."""
    low = math.floor(min(values) / every)
    high = max(low + 1, math.ceil(max(values) / every - 1e-9))
    ticks = [(i * every, f"{i * every:g}") for i in range(low, high + 1)]
    return Axis(title, low * every, high * every, ticks)
