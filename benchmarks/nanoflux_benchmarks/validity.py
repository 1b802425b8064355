"""Why a report proves nothing: conditions that make times incomparable, whatever they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

from nanoflux_benchmarks.budget import Budget, Limits
from nanoflux_mobile.manifest import Manifest
from nanoflux_mobile.report import Image, LatencyReport, Launch

PHONES = ("ios", "android")
IDLE_MS = 5_000
"""After this long without work an accelerator sleeps, and the next call pays about 260 ms."""
CLOCKS_MS = 1_000
"""More than this between the two clocks of a launch: the device slept, or its clock was set."""


@dataclass(frozen=True)
class Expected:
    """What the report should be about: the bundle's digest and the floor of its golden run."""

    digest: str | None
    golden_psnr_db: float
    launches: int
    images: int
    image_side: int | None
    steps: int | None


def expected(budget: Budget | None, manifest: Manifest | None) -> Expected:
    """What a budget asks of the evidence, or the house's own rules, and a bundle's digest."""
    asked = budget or Budget("budget/1", "a comparison alone", Limits())
    digest = manifest.digest if manifest else None
    floor = manifest.image_floors.quality if manifest else asked.golden_psnr_db
    sizes = asked.launches, asked.images, asked.image_side, asked.steps
    return Expected(digest, floor, *sizes)


def reasons(report: LatencyReport, wanted: Expected) -> tuple[str, ...]:
    """Every reason why `report` is no evidence, in the order a person would check them."""
    return tuple(reason for rule in RULES for reason in rule(report, wanted))


def _about(report: LatencyReport, wanted: Expected) -> Iterator[str]:
    if wanted.digest and report.bundle.digest != wanted.digest:
        found = (report.bundle.digest or "none")[:12]
        yield f"it measured bundle {found}, not {wanted.digest[:12]}: run that bundle"
    for name in ("image_side", "steps"):
        found, limit = getattr(report.workload, name), getattr(wanted, name)
        if limit and found != limit:
            yield f"its {name} is {found}, the budget is for {limit}: measure that workload"


def _device(report: LatencyReport, _: Expected) -> Iterator[str]:
    if report.device.simulator or report.device.simulator is None:
        what = "a simulator" if report.device.simulator else "perhaps a simulator"
        yield f"it ran on {what}: run it on a device"
    if report.app.build != "release":
        yield f"the app is a {report.app.build} build: measure a release build"
    for message in report.errors:
        yield f"the run reported an error: {message[:200]}"


def _accelerator(report: LatencyReport, _: Expected) -> Iterator[str]:
    if report.device.platform not in PHONES:
        return
    if not report.placement:
        yield "it does not say where its graphs ran: record placement"
    for place in report.placement:
        if not place.fully_accelerated:
            off = "fell off the accelerator" if place.fully_accelerated is False else "may have"
            yield f"{place.component} {off}: see placement and `nanoflux inspect --lint`"


def _numerics(report: LatencyReport, wanted: Expected) -> Iterator[str]:
    found = report.numerics
    if found is None or found.golden_psnr_db is None:
        yield "it did not replay the golden run: a fast wrong picture would look like a fast one"
        return
    if found.non_finite:
        yield f"{found.non_finite} values were not finite: the pictures are wrong"
    if found.golden_psnr_db < wanted.golden_psnr_db:
        floor = f"{wanted.golden_psnr_db:g} dB"
        yield f"its golden run reaches {found.golden_psnr_db:.1f} dB, below {floor}: wrong pictures"


def _conditions(report: LatencyReport, _: Expected) -> Iterator[str]:
    for i, launch in enumerate(report.launches):
        for text in _unfit(launch, report.device.platform in PHONES):
            yield f"launch {i + 1} {text}"


def _unfit(launch: Launch, phone: bool) -> Iterator[str]:
    found = launch.conditions
    if found.thermal_before != "nominal" and (phone or found.thermal_before):
        yield f"began {found.thermal_before or 'at an unknown temperature'}: let the device cool"
    asked: tuple[tuple[str, bool | None, str], ...] = (
        ("low power mode", found.low_power, "switch it off"),
        ("a debugger", found.debugger, "start the app without one"),
        ("the app in the background", _not(found.foreground), "keep it in front"),
    )
    for what, present, advice in asked:
        if present or (phone and present is None):
            yield f"ran with {what if present else f'perhaps {what}'}: {advice}"


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _clocks(report: LatencyReport, _: Expected) -> Iterator[str]:
    for i, (first, then) in enumerate(pairwise(report.launches)):
        if first.start and then.start and then.start <= first.start:
            yield f"launch {i + 2} says that it started before launch {i + 1}: its clock went back"
    for i, launch in enumerate(report.launches):
        problems = dict.fromkeys(text for a, b in pairwise(launch.images) for text in _step(a, b))
        yield from (f"launch {i + 1}: {text}" for text in problems)


def _step(a: Image, b: Image) -> Iterator[str]:
    """What is odd between the start of one image and the start of the next."""
    if a.uptime_ms is None or b.uptime_ms is None:
        return
    passed = b.uptime_ms - a.uptime_ms
    idle = passed - (a.total_ms or 0.0)
    if passed < 0 or idle < -CLOCKS_MS:
        yield "its clock went back: restart the device and measure again"
    elif idle > IDLE_MS and not b.warmup:
        yield f"a pause of {idle / 1000:.1f} s let the accelerator sleep: warm up after pauses"
    if a.wall_ms is None or b.wall_ms is None:
        return
    if abs(b.wall_ms - a.wall_ms - passed) > CLOCKS_MS:
        yield "its two clocks disagree: the device slept, or its clock was set"


def _enough(report: LatencyReport, wanted: Expected) -> Iterator[str]:
    if (count := len(report.launches)) < wanted.launches:
        yield f"it has {count} launches; at least {wanted.launches} tell a change from chance"
    fewest = min((len(launch.measured) for launch in report.launches), default=0)
    if fewest < wanted.images:
        yield f"a launch has {fewest} images after the warm-up; at least {wanted.images} are needed"
    for (i, a), (j, b) in combinations(enumerate(report.launches), 2):
        if a.measured and a.measured == b.measured:
            yield f"launches {i + 1} and {j + 1} hold the very same samples: one is a copy"


RULES: tuple[Callable[[LatencyReport, Expected], Iterator[str]], ...] = (
    _about,
    _device,
    _accelerator,
    _numerics,
    _conditions,
    _clocks,
    _enough,
)
