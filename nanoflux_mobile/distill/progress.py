"""What a person sees while a chain runs: the stage, a bar for what is under way, scores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from nanoflux_mobile.distill.chain import Watch
from nanoflux_mobile.distill.chain_page import count, scenes, share, total
from nanoflux_mobile.distill.scoring import Score, StageScores


class _Pace(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else f"{task.speed:.3g} steps/s", style="dim")


@contextmanager
def watched(screen: Console) -> Iterator[Watch]:
    """A watch that shows all of a chain on `screen`, while the block runs."""
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Pace(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
    )
    with bars:
        yield _Shown(bars).watch()


@dataclass
class _Shown:
    """One bar at a time; each leaves a line when it is full."""

    bars: Progress
    what: str = ""
    done: int = 0
    task: TaskID | None = None
    began: float = field(default_factory=time.monotonic)

    def watch(self) -> Watch:
        return Watch(self.stage, self.step, self.scores)

    def stage(self, number: int, of: int, name: str) -> None:
        self.bars.console.print(f"[bold]stage {number} of {of}[/bold]  {escape(name)}")

    def step(self, what: str, done: int, total: int) -> None:
        if self.task is None or what != self.what or done < self.done:
            self._fresh(what, total, done)
        self.done = done
        assert self.task is not None
        self.bars.update(self.task, completed=done)
        if done >= total:
            took = time.monotonic() - self.began
            self.bars.console.print(f"[dim]{took:8.1f} s[/dim]  {escape(what)}")
            self._clear()

    def _fresh(self, what: str, total: int, done: int) -> None:
        self._clear()
        self.what, self.began = what, time.monotonic()
        # A run that goes on has steps behind it, which say nothing of this machine's pace.
        self.task = self.bars.add_task(escape(what), total=total, completed=done)

    def _clear(self) -> None:
        if self.task is not None:
            self.bars.remove_task(self.task)
        self.task, self.done = None, 0

    def scores(self, name: str, found: StageScores) -> None:
        told = scores_table(name, found) if found.trained else _size(name, found)
        self.bars.console.print(told)


def scores_table(name: str, found: StageScores) -> Table:
    """A stage's sizes, and its scores after the cut and after training."""
    table = Table(title=_size(name, found), title_justify="left", title_style="bold")
    table.add_column("")
    for column in ("velocity dB", "scenes"):
        table.add_column(column, justify="right")
    for row, score in (("after the cut", found.untrained), ("trained", found.trained)):
        if score:
            table.add_row(row, f"{score.velocity_db:.1f}", _scenes(score))
    return table


def _size(name: str, found: StageScores) -> str:
    return f"{escape(name)}: {count(total(found))} parameters"


def _scenes(score: Score) -> str:
    drawn = scenes(score)
    return "" if drawn is None else share(drawn)
