"""A whole and its parts as one bar, the parts named below it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nanoflux_mobile.markup import Markup, element, percent, spaced


@dataclass(frozen=True)
class Piece:
    """A part of a whole: its class, its name, its amount, and that amount in words."""

    kind: str
    name: str
    amount: float
    words: str


@dataclass(frozen=True)
class Stack:
    """A whole: its name, its amount in words, its parts, and where a limit on it is (0: none)."""

    name: str
    told: str
    pieces: tuple[Piece, ...]
    limit: float = 0.0

    @property
    def amount(self) -> float:
        """All parts together."""
        return sum(piece.amount for piece in self.pieces)


def stacks(bars: Sequence[Stack]) -> Markup:
    """Bars on one scale, which reaches a limit that is not far beyond them."""
    longest = max(bar.amount for bar in bars) or 1.0
    near = [bar.limit for bar in bars if bar.limit <= 2 * longest]
    return element("ul", *_lines(bars, max([longest, *near])), class_="stacks")


def _lines(bars: Iterable[Stack], whole: float) -> Iterable[Markup]:
    for bar in bars:
        parts = [_part(piece, whole) for piece in bar.pieces]
        if 0 < bar.limit <= whole:
            parts.append(element("span", class_="tick", style=f"left:{percent(bar.limit / whole)}"))
        drawn = element("span", *parts, class_="stack", aria_hidden="true")
        named = element("small", spaced(*map(_named, bar.pieces)))
        name, told = element("span", bar.name, class_="name"), element("span", bar.told)
        yield element("li", spaced(name, drawn, told, named))


def _part(piece: Piece, whole: float) -> Markup:
    style = f"width:{percent(piece.amount / whole)}"
    return element("span", class_=f"piece {piece.kind}", style=style)


def _named(piece: Piece) -> Markup:
    swatch = element("i", class_=f"swatch {piece.kind}")
    return element("span", swatch, spaced(piece.name, element("b", piece.words)))
