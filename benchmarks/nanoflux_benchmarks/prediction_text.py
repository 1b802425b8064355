"""A prediction for people: the range first, then what it is made of and what would change it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Column, Table

from nanoflux_benchmarks.prediction import Advice, Call, MemoryUse, Prediction
from nanoflux_mobile.roofline import Range

FITS = {True: "fits", False: "[red]does not fit[/red]", None: "nobody said whether that fits"}


def seconds(value: float) -> str:
    """A time in the unit a person would use."""
    if value >= 0.9995:
        return f"{value:.2f} s"
    return f"{1e3 * value:.3g} ms" if value >= 1e-4 else f"{1e6 * value:.3g} µs"


def spread(found: Range) -> str:
    """The whole range."""
    return f"{seconds(found.low)} to {seconds(found.high)}"


def tables(found: Prediction) -> Iterator[RenderableType]:
    """Everything that a prediction says, in the order a person would ask."""
    steps = f"{found.steps} steps of {spread(found.step)}"
    yield f"[bold]{spread(found.image)} a picture[/bold] on {escape(found.device)}, {steps}"
    yield "a prediction, not a measurement: it cannot pass a gate"
    yield _calls(found.calls)
    yield _memory(found.memory)
    if found.advice:
        yield _advice(found.advice)
    for note in found.notes:
        yield f"- {escape(note)}"


def _calls(calls: tuple[Call, ...]) -> Table:
    made = Table(
        Column("graph", no_wrap=True),
        "unit",
        "runs",
        "one run",
        "likely",
        "limited by",
        "blocks by",
    )
    for call in calls:
        limits = Counter(block.limit for block in call.blocks).most_common(1)
        blocks = limits[0][0] if limits else "-"
        alone = [other.component for other in calls].count(call.component) == 1
        name = call.component if alone else f"{call.component} ({call.function})"
        times = spread(call.seconds), seconds(call.seconds.mid)
        made.add_row(escape(name), call.unit, str(call.runs), *times, call.limit, blocks)
    return made


def _memory(found: MemoryUse) -> str:
    text = f"memory: {found.peak_bytes / 1e6:.1f} MB at most, without the runtime's own"
    if found.app_bytes:
        text += f"; an app may use {found.app_bytes / 1e9:.1f} GB"
    return f"{text}: {FITS[found.fits]}"


def _advice(advice: tuple[Advice, ...]) -> Table:
    made = Table("what would help", "a picture", "memory")
    for change in advice:
        memory = f"{change.peak_bytes / 1e6:.1f} MB"
        made.add_row(escape(change.change), seconds(change.image_s), memory)
    return made
