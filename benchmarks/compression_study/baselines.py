"""What others do with the same measurements: one scheme for all, a threshold, the cheapest first.

All get the rows that the solver gets, with every scheme in them, and choose without running the
graph again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nanoflux_export.fitting.sensitivity import Row
from nanoflux_mobile.spec import Scheme

Picks = Mapping[str, Row]
"""The row chosen for every layer."""


def total_bytes(picks: Picks) -> int:
    """What all layers take together."""
    return sum(row.bytes for row in picks.values())


def schemes_of(picks: Picks) -> dict[str, Scheme]:
    """The schemes of a selection."""
    return {layer: row.scheme for layer, row in picks.items()}


def uniform(rows: Sequence[Row], most: float) -> Picks:
    """The one scheme for all layers that fits `most` bytes and has the least sum of damages.

    Empty where none is so small.
    """
    tables: dict[Scheme, dict[str, Row]] = {}
    for row in rows:
        tables.setdefault(row.scheme, {})[row.layer] = row
    fitting = [picks for picks in tables.values() if total_bytes(picks) <= most]
    return min(fitting, key=lambda picks: sum(row.damage for row in picks.values()), default={})


def threshold(rows: Sequence[Row], most: float) -> Picks:
    """Of every layer the smallest row whose own damage stays below one threshold for all.

    ml-stable-diffusion's mixed-bit recipes, which say it in dB; the lowest threshold that fits.
    """
    thresholds = sorted({row.damage for row in rows})
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        if total_bytes(_below(rows, thresholds[middle])) <= most:
            high = middle
        else:
            low = middle + 1
    return _below(rows, thresholds[low])


def _below(rows: Sequence[Row], most: float) -> Picks:
    """The smallest row under a damage; where a layer has none, its least damaging."""
    picks = {}
    for layer, own in _by_layer(rows).items():
        good = [row for row in own if row.damage <= most] or [min(own, key=lambda r: r.damage)]
        picks[layer] = min(good, key=lambda row: (row.bytes, row.damage))
    return picks


def greedy(rows: Sequence[Row], most: float) -> Picks:
    """From the best of every layer downwards, the step that costs least per byte saved first."""
    ladders = _by_layer(rows)
    picks = {layer: min(own, key=lambda r: (r.damage, r.bytes)) for layer, own in ladders.items()}
    while total_bytes(picks) > most:
        steps = (
            ((row.damage - at.damage) / (at.bytes - row.bytes), layer, row)
            for layer, at in picks.items()
            for row in ladders[layer]
            if row.bytes < at.bytes
        )
        _, layer, row = min(steps, key=lambda step: step[:2])
        picks[layer] = row
    return picks


def _by_layer(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.layer, []).append(row)
    return found
