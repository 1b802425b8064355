"""Size against quality as an SVG that stands alone: a line per method, and a table for screens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nanoflux_mobile.markup import Markup, element, join

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 760, 420, 56, 110, 16, 44
STYLES = {
    "ours": ("#0b6b74", "3", ""),
    "greedy": ("#b0651b", "1.5", "6 3"),
    "threshold": ("#7a4fa3", "1.5", "2 3"),
    "uniform": ("#5b6065", "1.5", ""),
}
"""Colour, width and dashes of every method's line."""

Points = Sequence[tuple[float, float]]


def plot(lines: Mapping[str, Points], x_name: str, y_name: str) -> str:
    """Lines through (x, y) by name; both axes begin and end at round numbers."""
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    x_ticks = range(math.floor(min(xs)), math.ceil(max(xs)) + 1)
    y_ticks = range(10 * math.floor(min(ys) / 10), 10 * math.ceil(max(ys) / 10) + 1, 10)

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - FOOT - up * (HEIGHT - TOP - FOOT)

    grid = [_tick(*place(x, y_ticks[0]), str(x), "middle", 16) for x in x_ticks]
    for y in y_ticks:
        across, down = place(x_ticks[0], y)
        end = f"{WIDTH - RIGHT}"
        rule = {"x1": f"{across}", "x2": end, "y1": f"{down:.1f}", "y2": f"{down:.1f}"}
        grid.append(element("line", stroke="#dfdfd8", **rule))
        grid.append(_tick(across - 8, down, str(y), "end", 4))
    drawn = [_line(name, [place(*point) for point in points]) for name, points in lines.items()]
    middle = (LEFT + WIDTH - RIGHT) / 2
    names = (
        _tick(middle, HEIGHT - FOOT, x_name, "middle", 36),
        _tick(LEFT - 8, TOP, y_name, "end", -4),
    )
    box = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": f"{WIDTH}", "height": f"{HEIGHT}"}
    paper = element("rect", width="100%", height="100%", fill="#fbfbf9")
    font = {"font_family": "system-ui, Liberation Sans, sans-serif", "font_size": "12"}
    body = element("g", *grid, *drawn, *_labels(lines, place), *names, **font)
    return element("svg", paper, body, xmlns="http://www.w3.org/2000/svg", **box) + "\n"


def _tick(x: float, y: float, words: str, anchor: str, below: float) -> Markup:
    place = {"x": f"{x:.1f}", "y": f"{y + below:.1f}"}
    return element("text", words, text_anchor=anchor, fill="#5b6065", **place)


def _line(name: str, places: Points) -> Markup:
    colour, width, dashes = STYLES[name]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    stroke = {"stroke": colour, "stroke_width": width, "stroke_dasharray": dashes}
    dots = (element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="3", fill=colour) for x, y in places)
    return join((element("path", d=path, fill="none", **stroke), *dots))


def _labels(lines: Mapping[str, Points], place: object) -> list[Markup]:
    """Names in one column beside the plot, in the order of the lines."""
    return [
        element("text", name, x=f"{WIDTH - RIGHT + 10}", y=f"{TOP + 16 + 18 * i}", fill=colour)
        for i, (name, (colour, _, _)) in enumerate(STYLES.items())
        if name in lines
    ]
