"""What the charts draw, read from a report; many launches and images are thinned here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeVar, get_args

from nanoflux_benchmarks.verdict import Stage
from nanoflux_mobile.report import Image, LatencyReport, Launch, Part, Thermal

if TYPE_CHECKING:
    from nanoflux_benchmarks.session import Judgement

State = Literal["nominal", "fair", "serious", "critical", "unknown"]
PARTS: tuple[Part, ...] = get_args(Part)
STATES: tuple[State, ...] = get_args(State)
LAUNCHES: Final = 60
"""More launches than this cannot be told apart in the width of a page."""
T = TypeVar("T")


def times(images: Sequence[Image], part: Part) -> list[float]:
    """That duration of all images that have it."""
    return [found for image in images if (found := image.ms(part)) is not None]


def measured(report: LatencyReport, part: Part) -> list[float]:
    """That duration of every image after the warm-ups, over all launches."""
    return [found for launch in report.launches for found in times(launch.measured, part)]


def quantile(values: Sequence[float], share: float) -> float:
    """A quantile of at least one value, interpolated as NumPy does; for short rows much faster."""
    ordered = sorted(values)
    low, part = divmod(share * (len(ordered) - 1), 1)
    below, above = ordered[int(low)], ordered[min(int(low) + 1, len(ordered) - 1)]
    return below + part * (above - below)


def median(values: Sequence[float]) -> float:
    """The middle of at least one value."""
    return quantile(values, 0.5)


def state(launch: Launch, image: Image) -> State:
    """How warm the device was at an image; where that is not said, how warm the launch began."""
    found: Thermal | None = image.thermal or launch.conditions.thermal_before
    return found or "unknown"


def limit_of(found: Judgement, stage: Stage) -> float:
    """The budget's limit for a stage on this device; infinite where there is none."""
    if found.budget is None:
        return float("inf")
    given = found.budget.limits_for(found.report.device.model).of(stage)
    return float("inf") if given is None else given


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, most - 1))] for i in range(most)]


def thinned(values: Sequence[float], most: int) -> list[int]:
    """Indices of at most `most` values: the least, the largest, and others evenly spaced."""
    every = range(len(values))
    if len(values) <= most:
        return list(every)
    ends = {min(every, key=values.__getitem__), max(every, key=values.__getitem__)}
    return sorted(ends | set(evenly(every, most - len(ends))))
