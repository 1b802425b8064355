"""The page of a training run: its loss, what that is made of, and how the run went, as curves.

It holds all it shows, asks nothing of the network and runs no script.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from nanoflux_mobile.distill.curves import Points, curve
from nanoflux_mobile.distill.run_files import METRICS, RUN, Row, read_rows
from nanoflux_mobile.markup import Markup, document, element, spaced
from nanoflux_mobile.storage import write_file

PAGE = "run.html"
LOSS, GRADIENT, RATE, PACE = "loss", "gradient", "lr", "steps_per_s"
READINGS = {
    LOSS: "What training lowers, on a log scale.",
    GRADIENT: "Norm of the gradient before it is clipped.",
    RATE: "Warm-up, then down to a hundredth of the peak.",
    PACE: "Mean since the run was last started.",
}
NAMES = {GRADIENT: "gradient norm", RATE: "learning rate", PACE: "steps per second"}
MOST_CHARS = 28


def write_pages(folder: Path) -> None:
    """The page of every run below a folder, where its figures are newer than its page."""
    for rows in sorted(folder.rglob(METRICS)):
        page = rows.with_name(PAGE)
        if not page.exists() or page.stat().st_mtime_ns <= rows.stat().st_mtime_ns:
            write_file(page, render(rows.parent))


def render(run: Path) -> str:
    """The page of one run's folder."""
    rows = read_rows(run / METRICS)
    told = _told(run / RUN)
    title = f"{run.parent.name}, {run.name}"
    done = int(rows[-1]["step"]) if rows else 0
    total = max(done, int(told.get("steps") or 0))
    body = element("body", _header(title, rows, done, total), element("main", *_parts(rows, told)))
    return document(f"{title}: {done} of {total} steps", style(), body)


def style() -> str:
    """The style sheet of pages about runs."""
    return (resources.files("nanoflux_mobile") / "distill" / "page.css").read_text("utf-8")


def _told(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _header(title: str, rows: Sequence[Row], done: int, total: int) -> Markup:
    losses = finite(rows, LOSS)
    facts = [("steps", f"{done:,}", f"of {total:,}")]
    if losses:
        least = min(losses, key=lambda point: point[1])
        facts.append(("loss", number(losses[-1][1]), f"{number(losses[0][1])} at first"))
        facts.append(("least loss", number(least[1]), f"at step {least[0]:,.0f}"))
    if paces := finite(rows, PACE):
        pace = paces[-1][1]
        left = (total - done) / pace if pace > 0 else 0.0
        note = f"{duration(left)} to go" if done < total else "to its end"
        facts.append(("pace", f"{pace:.3g} steps/s", note))
    words = "finished" if done == total and total else "not finished"
    return element(
        "header",
        element("p", title, class_="title"),
        element("h1", f"{done:,} of {total:,} steps, {words}"),
        fact_list(facts),
    )


def fact_list(facts: Sequence[tuple[str, str, str]]) -> Markup:
    """Name, value and a note of each fact, side by side."""
    told = (
        element(
            "div", spaced(element("dt", name), element("dd", spaced(element("b", value), note)))
        )
        for name, value, note in facts
    )
    return element("dl", *told, class_="facts")


def _parts(rows: Sequence[Row], told: Mapping[str, Any]) -> list[Markup]:
    parts = []
    if rows:
        last = float(max(rows[-1]["step"], 1))
        drawn = [_figure(rows, name, last) for name in _names(rows)]
        lead = "Faint: the values as they were logged. Strong: their running mean."
        parts.append(_section("Curves", lead, element("div", *drawn, class_="curves")))
    else:
        parts.append(element("p", "No figures yet: the first come after a few steps."))
    if told:
        parts.append(_section("Settings", "What the run was begun with.", settings_list(told)))
    return parts


def _section(title: str, lead: str, *children: Markup) -> Markup:
    return element("section", element("h2", title), element("p", lead, class_="lead"), *children)


def _names(rows: Sequence[Row]) -> list[str]:
    """Figures with a curve: the loss, its parts in their order, how the run went."""
    ends = (GRADIENT, RATE, PACE)
    found = dict.fromkeys(name for row in rows for name in row if name != "step")
    inner = [name for name in found if name not in (LOSS, *ends)]
    return [name for name in (LOSS, *inner, *ends) if finite(rows, name)]


def finite(rows: Sequence[Row], name: str) -> Points:
    """(step, value) of a figure wherever it is a number."""
    return [
        (float(row["step"]), float(row[name]))
        for row in rows
        if isinstance(row.get(name), int | float) and math.isfinite(row[name])
    ]


def _figure(rows: Sequence[Row], name: str, last: float) -> Markup:
    points = finite(rows, name)
    title = f"{NAMES.get(name, name.replace('_', ' '))}: {number(points[-1][1])}"
    positive = all(value > 0 for _, value in points)
    log = {LOSS: positive, RATE: False, PACE: False}.get(name)
    reading = READINGS.get(name, "Logged with the loss.")
    return curve(title, reading, points, last, log, noisy=name not in (RATE, PACE))


def settings_list(told: Mapping[str, Any]) -> Markup:
    """Names and values, those of tables in tables by dotted names."""
    rows = (
        element("div", spaced(element("dt", name), element("dd", _cut(value))))
        for name, value in flat(told)
    )
    return element("dl", *rows, class_="settings")


def flat(told: Any, name: str = "") -> list[tuple[str, str]]:
    """Every value of nested tables and lists with its dotted name; lists of numbers as one."""
    if isinstance(told, Mapping):
        pairs = [(str(key), value) for key, value in told.items()]
    elif isinstance(told, list) and any(isinstance(item, dict | list) for item in told):
        pairs = [(str(i), value) for i, value in enumerate(told, 1)]
    elif isinstance(told, list):
        return [(name, ", ".join(_word(item) for item in told))]
    else:
        return [(name, _word(told))]
    return [line for key, value in pairs for line in flat(value, f"{name}.{key}".strip("."))]


def _word(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARS else f"{text[: MOST_CHARS - 3]}..."


def number(value: float) -> str:
    """A figure in four digits."""
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
