"""Fewer choices for each layer: those that can be in a best plan."""

from __future__ import annotations

from nanoflux_export.fitting.sensitivity import Row, Sensitivity
from nanoflux_mobile.spec import Scheme


def ladders(sensitivity: Sensitivity) -> dict[str, list[Row]]:
    """Of every layer the rows that do less damage than every smaller one, the smallest first."""
    found: dict[str, list[Row]] = {}
    for row in sorted(sensitivity.rows, key=lambda r: (r.bytes, r.damage)):
        below = found.setdefault(row.layer, [])
        if not below or row.damage < below[-1].damage:
            below.append(row)
    layers = dict.fromkeys(row.layer for row in sensitivity.rows)
    return {layer: found[layer] for layer in layers}


def worthwhile(sensitivity: Sensitivity) -> dict[str, tuple[Scheme, ...]]:
    """The choices left once those are gone that are larger and no better."""
    return {
        layer: tuple(row.scheme for row in rows) for layer, rows in ladders(sensitivity).items()
    }
