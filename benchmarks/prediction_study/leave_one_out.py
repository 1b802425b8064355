"""Every published run time predicted by constants that were fitted without it.

    PYTHONPATH=.:benchmarks python benchmarks/prediction_study/leave_one_out.py

Prints one Markdown table, in which each row was left out of the fit, alone and then with all rows
of its system, and one line of JSON. Exit code 1 when the predictor breaks its promise: a median
error of at most 20 % with each row left out alone, and every measurement inside its range.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from published import FREE, Case, Row, case, fit, read_rows

from nanoflux_mobile.roofline import Constants, Range
from nanoflux_mobile.strict_json import to_plain

MOST_MEDIAN_ERROR = 0.20


@dataclass(frozen=True)
class Left:
    """A row, and what constants say of it that have not seen it."""

    row: Row
    alone: Range
    system: Range


def main() -> int:
    """Fit, leave out, print."""
    cases = [case(row) for row in read_rows()]
    left = leave_out(cases)
    print("\n".join(table(left)))
    print(json.dumps(summary(left, fit(cases))))
    alone = scores(left, lambda at: at.alone)
    return int(alone["median_error"] > MOST_MEDIAN_ERROR or alone["inside"] < len(left))


def leave_out(cases: Sequence[Case]) -> list[Left]:
    """All rows, each predicted without itself and without its whole system."""
    found = []
    systems = {
        name: fit([c for c in cases if c.row.system != name])
        for name in {c.row.system for c in cases}
    }
    for here in cases:
        others = fit([c for c in cases if c is not here])
        without = systems[here.row.system]
        found.append(Left(here.row, here.predicted(others), here.predicted(without)))
    return found


def error(row: Row, said: Range) -> float:
    """Signed, as a share of what was measured."""
    return said.mid / row.seconds - 1.0


def inside(row: Row, said: Range) -> bool:
    """Whether the measurement lies in the range."""
    return said.low <= row.seconds <= said.high


def table(left: Iterable[Left]) -> list[str]:
    """Markdown: times in milliseconds; a cross marks a measurement outside its range."""
    head = "| row | device | measured | predicted | error | range | error without its system |"
    lines = [head, "|---|---|--:|--:|--:|--:|--:|"]
    for at in left:
        row, said = at.row, at.alone
        marks = ["" if inside(row, r) else " x" for r in (said, at.system)]
        lines.append(
            f"| {row.name} | {row.device}, {row.unit} | {ms(row.seconds)} | {ms(said.mid)} "
            f"| {error(row, said):+.0%}{marks[0]} | {ms(said.low)} to {ms(said.high)} "
            f"| {error(row, at.system):+.0%}{marks[1]} |"
        )
    return lines


def ms(seconds: float) -> str:
    """Milliseconds in three figures."""
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def summary(left: Sequence[Left], constants: Constants) -> dict[str, object]:
    """Everything in numbers."""
    return {
        "rows": len(left),
        "constants_fitted": len(FREE),
        "constants": to_plain(constants),
        "leave_one_out": scores(left, lambda at: at.alone),
        "leave_one_system_out": scores(left, lambda at: at.system),
        "median_error_by_system": {
            name: _median(at for at in left if at.row.system == name)
            for name in dict.fromkeys(at.row.system for at in left)
        },
    }


def scores(left: Sequence[Left], said: Callable[[Left], Range]) -> dict[str, float]:
    """Errors as shares of what was measured, how many lie inside, how wide the ranges are."""
    sizes = [abs(error(at.row, said(at))) for at in left]
    return {
        "median_error": round(statistics.median(sizes), 4),
        "mean_error": round(statistics.fmean(sizes), 4),
        "worst_error": round(max(sizes), 4),
        "inside": sum(inside(at.row, said(at)) for at in left),
        "median_high_over_low": round(statistics.median(_width(said(at)) for at in left), 3),
        "widest_high_over_low": round(max(_width(said(at)) for at in left), 3),
    }


def _width(said: Range) -> float:
    return said.high / said.low


def _median(left: Iterable[Left]) -> float:
    return round(statistics.median(abs(error(at.row, at.alone)) for at in left), 4)


if __name__ == "__main__":
    sys.exit(main())
