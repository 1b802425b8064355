"""How long it takes until all graphs are ready, from each state a device can be in."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from nanoflux_benchmarks.page.stacks import Piece, Stack, stacks
from nanoflux_benchmarks.page.svg import chart, missing
from nanoflux_benchmarks.page.values import limit_of, median
from nanoflux_benchmarks.page.words import count, figure, listing, worded
from nanoflux_mobile.markup import Markup
from nanoflux_mobile.report import LatencyReport, LoadState
from nanoflux_mobile.spec import ComponentName

if TYPE_CHECKING:
    from nanoflux_benchmarks.session import Judgement

_STATES: dict[LoadState, tuple[str, str]] = {
    "first": ("first ever", "for the first time"),
    "relaunch": ("new process", "in a new process"),
    "warm": ("warm process", "in a process that has loaded them before"),
}


def loads(found: Judgement) -> Markup:
    """A bar for each state, of the candidate and of the baseline."""
    reports = {"": found.report, ", baseline": found.baseline}
    bars = {
        (state, whose): bar
        for state in _STATES
        for whose, report in reports.items()
        if report and (bar := _bar(f"{_STATES[state][0]}{whose}", report, state, found))
    }
    if not bars:
        return missing("The report holds no load times.")
    ours = [f"{bar.told} {_STATES[state][1]}" for (state, whose), bar in bars.items() if not whose]
    finding = f"The graphs load in {listing(ours)}." if ours else "Only the baseline was timed."
    counts = (
        f"{count(_launches(found.report, state), 'launch')} {words}"
        for state, (_, words) in _STATES.items()
        if (state, "") in bars
    )
    reading = f"Medians of each graph over {listing(list(counts)) or 'no launch'}."
    return chart(finding, reading, stacks(list(bars.values())))


def _bar(name: str, report: LatencyReport, state: LoadState, found: Judgement) -> Stack | None:
    times = {graph: _times(report, state, graph) for graph in get_args(ComponentName)}
    pieces = [
        Piece(graph, worded(graph), median(ms), figure(median(ms)))
        for graph, ms in times.items()
        if ms
    ]
    limit = 0.0
    if state != "warm":
        limit = limit_of(found, "load_first" if state == "first" else "load_relaunch")
    total = figure(sum(piece.amount for piece in pieces))
    return Stack(name, total, tuple(pieces), limit) if pieces else None


def _times(report: LatencyReport, state: LoadState, graph: str) -> list[float]:
    """Time of one graph in every launch; one that is loaded twice counts with both."""
    every = (
        [load.ms for load in launch.load if (load.state, load.component) == (state, graph)]
        for launch in report.launches
    )
    return [sum(ms) for ms in every if ms]


def _launches(report: LatencyReport, state: LoadState) -> int:
    return sum(any(load.state == state for load in launch.load) for launch in report.launches)
