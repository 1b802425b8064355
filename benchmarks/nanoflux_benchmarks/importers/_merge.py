"""Launches that were written into a file each, as one report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.report import LatencyReport, Launch, Numerics

SAME = ("session", "created_by", "app", "bundle", "device", "runtime", "workload")
_EARLIEST = datetime.min.replace(tzinfo=UTC)


def merge(reports: Sequence[LatencyReport]) -> LatencyReport:
    """One report with the launches of all, in time order where every launch tells its start.

    It keeps the first one's run_id, every placement and every error, and the worst numerics: none
    where one report has none.

    Raises:
        InputError: there is no report; they differ in what makes launches comparable (the message
            names the field); or two of one run_id differ.
    """
    if not reports:
        raise InputError("there is no report to merge; give at least one")
    first, *rest = reports
    for other in rest:
        if field := next((name for name in SAME if _difference(first, other, name)), None):
            raise InputError(
                f"runs {first.run_id} and {other.run_id} cannot be merged, "
                f"{_difference(first, other, field)}; name the report of one of them"
            )
    run_id, copies = Counter(report.run_id for report in reports).most_common(1)[0]
    if copies > 1:
        raise InputError(f"two reports of run {run_id} differ; name the one to use")
    return dataclasses.replace(
        first,
        launches=_in_order(launch for report in reports for launch in report.launches),
        placement=tuple(dict.fromkeys(place for report in reports for place in report.placement)),
        numerics=_worst([report.numerics for report in reports]),
        errors=tuple(dict.fromkeys(text for report in reports for text in report.errors)),
    )


def _difference(first: object, other: object, name: str) -> str:
    """Which leaf of the field differs and how; empty when none does."""
    a, b = getattr(first, name), getattr(other, name)
    if dataclasses.is_dataclass(a) and dataclasses.is_dataclass(b):
        leaves = (_difference(a, b, field.name) for field in dataclasses.fields(a))
        found = next(filter(None, leaves), "")
        return f"{name}.{found}" if found else ""
    return "" if a == b else f"{name} is {a!r:.60} in one and {b!r:.60} in the other"


def _in_order(launches: Iterable[Launch]) -> tuple[Launch, ...]:
    rows = tuple(launches)
    if any(launch.start is None for launch in rows):
        return rows
    return tuple(sorted(rows, key=lambda launch: launch.start or _EARLIEST))


def _worst(found: Sequence[Numerics | None]) -> Numerics | None:
    known = [numerics for numerics in found if numerics is not None]
    if len(known) < len(found):
        return None
    floors = [numerics.golden_psnr_db for numerics in known]
    lowest = None if None in floors else min(floor for floor in floors if floor is not None)
    return Numerics(lowest, sum(numerics.non_finite for numerics in known))
