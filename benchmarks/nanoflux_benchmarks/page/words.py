"""Numbers and names in the words of the page; what a report says arrives as harmless text."""

from __future__ import annotations

from collections.abc import Sequence

from nanoflux_benchmarks import render
from nanoflux_benchmarks.verdict import Interval
from nanoflux_mobile.markup import Markup, element

_FIRM = "\N{NO-BREAK SPACE}"


def plain(text: str, most: int = 120) -> str:
    """Text of at most `most` characters on one line, without marks that turn or hide others."""
    kept = text[: most + 1]
    seen = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in kept)
    flat = " ".join(seen.split())
    return flat if len(text) <= most else f"{flat[: most - 1]}…"


def outside(text: str, most: int = 120) -> Markup:
    """Text that others wrote, of either direction, which leaves the words around it in place."""
    return element("bdi", plain(text, most))


def figure(value: float, unit: str = "ms") -> str:
    """A value in its unit, as the other outputs of the gate write it."""
    return render.figure(value, unit).replace(" ", _FIRM)


def span(found: Interval, unit: str = "ms") -> str:
    """`2513 ms (2498 ms to 2529 ms)`; the value alone where it has no bounds."""
    if found.low == found.high:
        return figure(found.value, unit)
    return f"{figure(found.value, unit)} ({figure(found.low, unit)} to {figure(found.high, unit)})"


def percent(share: float) -> str:
    """A share in per cent: `84 %`, `0.6 %`."""
    return f"{100 * share:.{0 if abs(share) >= 0.095 else 1}f}{_FIRM}%"


def count(number: int, noun: str) -> str:
    """`1 image`, `12 images`."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"


def listing(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def worded(name: str) -> str:
    """A name of the contract as words."""
    return name.replace("_", " ")
