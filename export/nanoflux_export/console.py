"""What a person sees while and after a verb runs: progress and tables on stderr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from nanoflux_export.work import Journal, Step
from nanoflux_mobile.parity import Parity

REFERENCES = {
    "rounded": "same rounded weights",
    "fp32": "PyTorch float32",
    "half": "in half precision",
}


def console() -> Console:
    """Standard error, so that standard output stays free for data."""
    return Console(stderr=True, highlight=False)


def watched(screen: Console, status: Status) -> Journal:
    """A journal that shows the running step and leaves one line for each finished one."""

    running = ""

    def began(name: str) -> None:
        nonlocal running
        running = name
        status.update(name)

    def part(done: int, of: int) -> None:
        if of > 1:
            status.update(f"{running}: {done} of {of}")

    def ended(step: Step) -> None:
        took = "reused" if step.reused else f"{step.seconds:5.1f} s"
        screen.print(f"[dim]{took:>8}[/dim]  {step.name}")

    return Journal(began, ended, part)


def parity_table(title: str, figures: Sequence[Parity]) -> Table:
    """Every figure with its floor, and whether it holds."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("component", "against"):
        table.add_column(column)
    for column in ("PSNR dB", "floor"):
        table.add_column(column, justify="right")
    table.add_column("")
    for figure in figures:
        verdict = "[green]holds[/green]" if figure.holds else "[red]below its floor[/red]"
        numbers = f"{figure.psnr_db:.1f}", f"{figure.floor_db:.1f}"
        table.add_row(figure.component, REFERENCES[figure.reference], *numbers, verdict)
    return table


def gpu_table(figures: Sequence[Any]) -> Table:
    """How every function did on the GPU: whether all of it runs there, and agrees with the CPU."""
    devices = ", ".join(sorted({figure.device for figure in figures if figure.device}))
    title = escape(f"on the GPU: {devices or 'nothing ran'}")
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("component", "function", "runs there"):
        table.add_column(column, no_wrap=True)
    for column in ("float32 dB / floor", "half dB / floor"):
        table.add_column(column, justify="right", min_width=10)
    table.add_column("")
    for figure in figures:
        pairs = (figure.fp32_db, figure.fp32_floor_db), (figure.half_db, figure.half_floor_db)
        told = ("-" if db is None else f"{db:.1f} / {floor:.0f}" for db, floor in pairs)
        verdict = "[green]holds[/green]" if figure.holds else "[red]fails[/red]"
        table.add_row(figure.component, figure.function, _extent(figure), *told, verdict)
    return table


def _extent(figure: Any) -> str:
    if figure.fp32_db is None:
        return "no"
    if figure.half_db is None:
        return "float32 only"
    return "all of it" if figure.fully_accelerated else "in part"


def gpu_remarks(figures: Sequence[Any]) -> list[str]:
    """What the delegate says of each function that is not run by it whole."""
    partial = (figure for figure in figures if not figure.fully_accelerated)
    return [f"{one.component} {one.function}: {'; '.join(one.on_cpu)}" for one in partial]


def rows_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> Table:
    """A plain table of text."""
    table = Table(*columns, title=title or None, title_justify="left", title_style="bold")
    for row in rows:
        table.add_row(*row)
    return table


def size(count: int) -> str:
    """Bytes in the unit a person would use."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count = count / 1000  # type: ignore[assignment]
    return f"{count:.2f} GB"
