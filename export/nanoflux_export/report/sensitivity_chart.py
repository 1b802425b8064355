"""Layer by layer: what every number of bits would do to the output, and what was chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from nanoflux_export.console import size
from nanoflux_export.fitting.sensitivity import Row, Sensitivity
from nanoflux_export.report.words import count, decibels
from nanoflux_mobile.markup import (
    Markup,
    element,
    head,
    join,
    percent,
    scroller,
    section,
    spaced,
)
from nanoflux_mobile.parity import CEILING_DB
from nanoflux_mobile.spec import Scheme

_HEIGHT, _BITS_HEIGHT, _GAP, _FOOT = 200.0, 48.0, 16.0, 22.0
_STEP_DB = 20.0
_LEAST_LABEL = 0.06  # share of the width below which a stretch of layers has no label of its own
_COLUMNS = ("Layer", "Stored as", "Size", "Output if only this were stored so")
_NUMERIC = _COLUMNS[2:]


@dataclass(frozen=True)
class Fitted:
    """A component whose layers were given schemes by what they do to its output."""

    name: str
    sensitivity: Sensitivity
    schemes: Mapping[str, Scheme]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers in the order they run."""
        return tuple(dict.fromkeys(row.layer for row in self.sensitivity.rows))

    def chosen(self) -> dict[str, Row]:
        """The row of every layer's scheme."""
        rows = self.sensitivity.rows
        return {row.layer: row for row in rows if self.schemes[row.layer] == row.scheme}

    def db(self, row: Row) -> float:
        """Signal to noise of the output with that row alone."""
        return self.sensitivity.db(row.damage)


def best_by_bits(fitted: Fitted) -> dict[float, dict[str, float]]:
    """For every number of bits, in dB, the best a layer reaches with it; the fewest bits first."""
    best: dict[float, dict[str, float]] = {}
    for row in fitted.sensitivity.rows:
        of_bits = best.setdefault(row.scheme.bits_per_weight, {})
        of_bits[row.layer] = max(fitted.db(row), of_bits.get(row.layer, -math.inf))
    return dict(sorted(best.items()))


def sensitivity_charts(components: Sequence[Fitted]) -> Markup:
    """The section with a chart and a table per component; empty where nothing was fitted."""
    if not components:
        return Markup("")
    lead = (
        "How far the output of a component stays from float32 when one layer alone is stored in so "
        "many bits, layers in the order they run: a low line is a layer that suffers. The thick "
        "line is the scheme the budget chose, and the columns below count its bits."
    )
    charts = [_chart(fitted) for fitted in components]
    return section("sensitivity", "Bits of every layer", lead, *charts)


def _chart(fitted: Fitted) -> Markup:
    chosen = fitted.chosen()
    values = sum(row.values for row in chosen.values())
    taken = sum(row.bytes for row in chosen.values())
    told = f"{count(len(chosen), 'layer')}, {8 * taken / values:.2f} bits a weight, {size(taken)}"
    title = element("h3", spaced(fitted.name, element("small", told)))
    by_bits = best_by_bits(fitted)
    plot = element("div", _plot(fitted, by_bits), class_="layers")
    return element("div", title, _legend(by_bits), plot, _table(fitted), class_="chart")


def _legend(by_bits: Iterable[float]) -> Markup:
    def key(kind: str, words: str) -> Markup:
        dash = element("path", d="M0 6h20", class_=kind)
        drawing = element("svg", dash, width="20", height="12", aria_hidden="true")
        return element("li", spaced(drawing, element("span", words)))

    keys = [key(_kind(bits), count(round(bits), "bit")) for bits in by_bits]
    return element("ul", key("chosen", "chosen"), *keys, class_="keys")


def _kind(bits: float) -> str:
    """The class of a number of bits; half ones are drawn as the next whole."""
    return f"bits b{math.ceil(bits)}"


def _plot(fitted: Fitted, by_bits: Mapping[float, Mapping[str, float]]) -> Markup:
    chosen, layers = fitted.chosen(), fitted.layers
    shown = [db for lines in by_bits.values() for db in lines.values() if abs(db) < CEILING_DB]
    low = _STEP_DB * math.floor(min(shown, default=0.0) / _STEP_DB)
    high = max(low + _STEP_DB, _STEP_DB * math.ceil(max(shown, default=0.0) / _STEP_DB))

    def y(db: float) -> float:
        return _HEIGHT * (1 - min(max((db - low) / (high - low), 0.0), 1.0))

    lines = [
        _dashes([of.get(layer) for layer in layers], y, _kind(bits)) for bits, of in by_bits.items()
    ]
    picked = _dashes([fitted.db(chosen[layer]) for layer in layers], y, "chosen")
    bits = [chosen[layer].scheme.bits_per_weight for layer in layers]
    foot = _HEIGHT + _GAP + _BITS_HEIGHT
    drawing = element(
        "svg",
        *lines,
        picked,
        _columns(bits, foot),
        viewBox=f"0 0 {len(layers)} {foot:.0f}",
        preserveAspectRatio="none",
        width="100%",
        height=f"{foot:.0f}",
    )
    ticks = [low + _STEP_DB * i for i in range(round((high - low) / _STEP_DB) + 1)]
    parts = (*(_tick(tick, y(tick)) for tick in ticks), drawing, _bits_label(bits), _parts(layers))
    worst = min(chosen.values(), key=fitted.db)
    told = (
        f"{fitted.name}: bits from {min(bits):g} to {max(bits):g}; {worst.layer} suffers most, "
        f"{decibels(fitted.db(worst))} as {worst.scheme}"
    )
    height = f"{foot + _FOOT:.0f}"
    return element("svg", *parts, role="img", aria_label=told, width="100%", height=height)


def _dashes(values: Sequence[float | None], y: Callable[[float], float], kind: str) -> Markup:
    """A dash for each layer that has a value; one unit across is one layer."""
    path = "".join(f"M{i} {y(db):.1f}h1" for i, db in enumerate(values) if db is not None)
    return element("path", d=path, class_=kind)


def _columns(bits: Sequence[float], foot: float) -> Markup:
    unit = _BITS_HEIGHT / max(bits)
    path = "".join(f"M{i} {foot:.0f}v-{n * unit:.1f}h1v{n * unit:.1f}z" for i, n in enumerate(bits))
    return element("path", d=path, class_="columns")


def _tick(db: float, y: float) -> Markup:
    place = {"y1": f"{y:.1f}", "y2": f"{y:.1f}"}
    grid = element("line", x1="0", x2="100%", class_="grid", **place)
    return join((grid, element("text", f"{db:.0f} dB", x="-8", y=f"{y + 4:.1f}", class_="end")))


def _bits_label(bits: Sequence[float]) -> Markup:
    top = _HEIGHT + _GAP + 8
    words = count(round(max(bits)), "bit")
    return element("text", words, x="-8", y=f"{top:.0f}", class_="end")


def _parts(layers: Sequence[str]) -> Markup:
    """A line where a stretch of the network begins, and its name under it."""
    marks, start = [], 0
    foot = _HEIGHT + _GAP + _BITS_HEIGHT
    for name, group in groupby(layers, key=lambda layer: layer.partition("/")[0].partition(".")[0]):
        length = len(list(group))
        share = start / len(layers)
        x = percent(share)
        marks.append(element("line", x1=x, x2=x, y1="0", y2=f"{foot + 6:.0f}", class_="grid"))
        if length / len(layers) >= _LEAST_LABEL:
            label = element("text", name, x=x, dx="4", y=f"{foot + 16:.0f}")
            marks.append(label)
        start += length
    return join(marks)


def _table(fitted: Fitted) -> Markup:
    rows = (
        join(
            (
                element("td", element("code", layer)),
                element("td", str(row.scheme)),
                element("td", size(row.bytes), class_="number"),
                element("td", decibels(fitted.db(row)), class_="number"),
            )
        )
        for layer, row in fitted.chosen().items()
    )
    body = element("tbody", *(element("tr", cells) for cells in rows))
    table = element("table", head(_COLUMNS, _NUMERIC), body)
    label = f"Layers of {fitted.name}"
    return element("details", element("summary", "Every layer"), scroller(label, table))
