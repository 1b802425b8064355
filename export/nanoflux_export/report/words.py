"""Numbers and names in the words of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nanoflux_mobile.manifest import Manifest
from nanoflux_mobile.parity import CEILING_DB


def bundle_name(manifest: Manifest) -> str:
    """A bundle as its folder is called."""
    return f"{manifest.recipe.name}-{manifest.target}"


def decibels(value: float) -> str:
    """A PSNR: `85.3 dB`, `identical` for equal arrays, `not finite` where numbers broke down."""
    if not math.isfinite(value):
        return "not finite"
    return "identical" if value >= CEILING_DB else f"{value:.1f} dB"


def duration(seconds: float) -> str:
    """A time as a person would say it, from milliseconds to hours."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    )


def count(number: int, noun: str) -> str:
    """`1 figure`, `12 figures`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listing(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
