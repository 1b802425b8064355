"""Where each graph ran."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoflux_benchmarks.page.stacks import Piece, Stack, stacks
from nanoflux_benchmarks.page.svg import chart, missing
from nanoflux_benchmarks.page.words import listing, percent, worded
from nanoflux_mobile.markup import Markup, section
from nanoflux_mobile.report import Placement

if TYPE_CHECKING:
    from nanoflux_benchmarks.session import Judgement

_MOST = 12
_UNITS = {"neural_engine": "neural engine", "gpu": "GPU", "cpu": "CPU"}
_WORDS = {True: "all accelerated", False: "not all accelerated", None: "not known"}


def placement(found: Judgement) -> Markup:
    """The section with a bar for each graph."""
    lead = (
        "Shares of each graph's cost by the unit that ran it, as the runtime told; an operation "
        "that falls back to the CPU costs its own time and two copies."
    )
    places = found.report.placement[:_MOST]
    if not places:
        drawing = missing("The report does not say where its graphs ran.")
    else:
        reading = "The runtime's own word: shares of cost, or how many operations it delegated."
        drawing = chart(_finding(places), reading, stacks([_bar(place) for place in places]))
    return section("placement", "Placement", lead, drawing)


def _finding(places: tuple[Placement, ...]) -> str:
    off = [worded(p.component) for p in places if p.fully_accelerated is False]
    unknown = [worded(p.component) for p in places if p.fully_accelerated is None]
    if off:
        return f"Not wholly on the accelerator: {listing(off)}."
    if unknown:
        return f"Not known to be wholly on the accelerator: {listing(unknown)}."
    return "Every graph ran wholly on the accelerator."


def _bar(place: Placement) -> Stack:
    told = _WORDS[place.fully_accelerated]
    return Stack(worded(place.component), told, tuple(_shares(place) or _operations(place)))


def _shares(place: Placement) -> list[Piece]:
    given = {name: share for name in _UNITS if (share := getattr(place, name)) is not None}
    pieces = [
        Piece(name, _UNITS[name], share, percent(share)) for name, share in given.items() if share
    ]
    if pieces and (rest := 1 - sum(given.values())) > 0.001:
        pieces.append(Piece("unsaid", "not said", rest, percent(rest)))
    return pieces


def _operations(place: Placement) -> list[Piece]:
    if place.delegated_ops is None or not place.total_ops:
        return [Piece("unsaid", "not said", 1.0, "")]
    share = place.delegated_ops / place.total_ops
    words = f"{place.delegated_ops:,} of {place.total_ops:,} operations"
    left = Piece("cpu", "left to the CPU", 1 - share, f"{place.total_ops - place.delegated_ops:,}")
    return [Piece("gpu", "delegated", share, words), left]
