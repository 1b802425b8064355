"""What a device says back: the contract `latency-report/1` that apps write and the gate reads.

Raw samples only, in the order they were taken; every statistic is computed later, in one place.
All durations are milliseconds. `None` means that the source could not tell: such a report can be
looked at, but a gate that needs the value finds no evidence in it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import ComponentName
from nanoflux_mobile.strict_json import from_plain, parse_json, to_plain

SCHEMA: Final = "latency-report/1"
FILE = "latency-report.json"
MOST_BYTES = 64 << 20
"""Larger than any honest report: 100 launches of 1,000 images of 100 steps take 60 MB."""
ROUNDING_MS = 1.0
"""Parts of an image are rounded apart from their sum."""

Part = Literal["image", "text_encoder", "step", "decoder"]
Thermal = Literal["nominal", "fair", "serious", "critical"]
"""iOS's thermalState. Android: none, light, moderate, then severe and everything above it."""
LoadState = Literal["first", "relaunch", "warm"]
"""First ever (compiles for the device), a new process (reads the cache), a process that has it."""


def _check_ms(name: str, *values: float | None) -> None:
    for value in values:
        if value is not None and not (math.isfinite(value) and 0 <= value <= 1e9):
            raise ValueError(f"{name} is {value}; accepted: 0 to 1e9 milliseconds")


def _check_share(name: str, *values: float | None) -> None:
    for value in values:
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; accepted: 0 to 1")


@dataclass(frozen=True)
class Program:
    """A piece of software and its version."""

    name: str
    version: str


@dataclass(frozen=True)
class App:
    """Who measured."""

    id: str
    version: str
    build: Literal["release", "debug"]


@dataclass(frozen=True)
class BundleRef:
    """The bundle that was measured: the digest of its manifest, and where it says it belongs."""

    digest: str | None
    recipe: str | None
    target: str | None


@dataclass(frozen=True)
class Device:
    """The thing in the hand; `model` is the maker's identifier (iPhone17,2 or SM-S938B)."""

    platform: Literal["ios", "android", "macos", "linux"]
    model: str
    soc: str | None
    ram_bytes: int | None
    os_version: str
    os_build: str | None
    simulator: bool | None


@dataclass(frozen=True)
class Runtime:
    """What executed the graphs, and on which units it was asked to."""

    name: str
    version: str
    compute_units: str
    threads: int | None


@dataclass(frozen=True)
class Workload:
    """One picture: pixels along a side, denoising steps, and the seed of its noise."""

    image_side: int | None
    steps: int | None
    seed: int | None

    def __post_init__(self) -> None:
        """Steps and sides are at least one."""
        for name, value in (("image_side", self.image_side), ("steps", self.steps)):
            if value is not None and not 1 <= value <= 1 << 16:
                raise ValueError(f"{name} is {value}; accepted: 1 to 65536")


@dataclass(frozen=True)
class Conditions:
    """The state of the device while one launch measured."""

    thermal_before: Thermal | None
    thermal_after: Thermal | None
    battery_level: float | None
    charging: bool | None
    low_power: bool | None
    debugger: bool | None
    foreground: bool | None

    def __post_init__(self) -> None:
        """A battery holds between nothing and all."""
        _check_share("battery_level", self.battery_level)


@dataclass(frozen=True)
class Load:
    """How long one graph took to become ready."""

    component: ComponentName
    state: LoadState
    ms: float

    def __post_init__(self) -> None:
        """Times are finite."""
        _check_ms("ms", self.ms)


@dataclass(frozen=True)
class Memory:
    """The most memory a launch held, and the call that said so (phys_footprint, VmHWM, ...)."""

    peak_bytes: int
    method: str

    def __post_init__(self) -> None:
        """A process holds some memory."""
        if not 0 < self.peak_bytes < 1 << 48:
            raise ValueError(f"peak_bytes is {self.peak_bytes}; accepted: 1 to 2**48")


@dataclass(frozen=True)
class Image:
    """One picture, or as much of it as the source measured.

    `uptime_ms` and `wall_ms` say when it began, counted from the start of its launch by a clock
    that never goes back and by the clock on the wall.
    """

    warmup: bool
    uptime_ms: float | None
    wall_ms: float | None
    total_ms: float | None
    text_encoder_ms: float | None
    step_ms: tuple[float, ...]
    decoder_ms: float | None
    thermal: Thermal | None

    def __post_init__(self) -> None:
        """Something was measured, times are finite, and parts fit into their whole."""
        times = self.total_ms, self.text_encoder_ms, self.decoder_ms, *self.step_ms
        _check_ms("an image", *times, self.uptime_ms)
        if self.wall_ms is not None and not abs(self.wall_ms) <= 1e12:
            raise ValueError(f"wall_ms is {self.wall_ms}; accepted: within 1e12 milliseconds")
        if all(value is None for value in times):
            raise ValueError("an image has no time at all; give one of total_ms, step_ms, ...")
        parts = sum(value for value in times[1:] if value is not None)
        if self.total_ms is not None and parts > self.total_ms + ROUNDING_MS:
            raise ValueError(f"total_ms is {self.total_ms}, but its parts take {parts:.3f}")

    def ms(self, part: Part) -> float | None:
        """How long a part took, or the whole; for a step the mean of all steps.

        Token downsampling makes half of the steps cheap, so a single one says little of a picture.
        """
        if part == "step":
            return sum(self.step_ms) / len(self.step_ms) if self.step_ms else None
        whole = {"text_encoder": self.text_encoder_ms, "decoder": self.decoder_ms}
        return self.total_ms if part == "image" else whole[part]


@dataclass(frozen=True)
class Launch:
    """One process from its start to its end."""

    started_at: str | None
    conditions: Conditions
    load: tuple[Load, ...]
    images: tuple[Image, ...]
    memory: Memory | None

    def __post_init__(self) -> None:
        """A start is an RFC 3339 time in UTC."""
        pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z"
        if self.started_at is None:
            return
        if not re.fullmatch(pattern, self.started_at, re.ASCII):
            raise ValueError(f"started_at is {self.started_at!r}; write 2026-01-31T12:00:00Z")
        datetime.fromisoformat(self.started_at)

    @property
    def start(self) -> datetime | None:
        """When it started, with its time zone."""
        return None if self.started_at is None else datetime.fromisoformat(self.started_at)

    @property
    def measured(self) -> tuple[Image, ...]:
        """The images after the warm-up."""
        return tuple(image for image in self.images if not image.warmup)


@dataclass(frozen=True)
class Placement:
    """Where one graph ran: shares of its cost by unit, and how many operations were delegated."""

    component: ComponentName
    neural_engine: float | None
    gpu: float | None
    cpu: float | None
    delegated_ops: int | None
    total_ops: int | None
    fully_accelerated: bool | None

    def __post_init__(self) -> None:
        """Shares do not exceed the whole."""
        shares = self.neural_engine, self.gpu, self.cpu
        _check_share("a share", *shares)
        if sum(share for share in shares if share is not None) > 1.001:
            raise ValueError(f"shares {shares} add up to more than 1")
        if (self.delegated_ops or 0) > (self.total_ops or math.inf):
            raise ValueError(f"delegated_ops {self.delegated_ops} of total_ops {self.total_ops}")


@dataclass(frozen=True)
class Numerics:
    """The bundle's golden run replayed: PSNR in dB of its picture, values that were not finite."""

    golden_psnr_db: float | None
    non_finite: int

    def __post_init__(self) -> None:
        """A count and a finite figure."""
        if self.golden_psnr_db is not None and not -1000 <= self.golden_psnr_db <= 1000:
            raise ValueError(f"golden_psnr_db is {self.golden_psnr_db}; accepted: -1000 to 1000")
        if self.non_finite < 0:
            raise ValueError(f"non_finite is {self.non_finite}; it counts values")


@dataclass(frozen=True)
class LatencyReport:
    """Everything one run measured on one device. `complete` is written last, and only when true.

    Reports of one `session` come from one device in one sitting, their launches interleaved
    A B B A, so launch i of one pairs with launch i of the other.
    """

    schema: Literal["latency-report/1"]
    run_id: str
    session: str | None
    created_by: Program
    app: App
    bundle: BundleRef
    device: Device
    runtime: Runtime
    workload: Workload
    launches: tuple[Launch, ...]
    placement: tuple[Placement, ...]
    numerics: Numerics | None
    errors: tuple[str, ...]
    complete: Literal[True]

    def __post_init__(self) -> None:
        """The run has a plain name, and no whole image has another number of steps."""
        for name, value in (("run_id", self.run_id), ("session", self.session)):
            if value is not None and not re.fullmatch(r"[\w.-]{1,64}", value, re.ASCII):
                raise ValueError(f"{name} is {value!r}; use letters, digits, '.', '_' and '-'")
        steps = self.workload.steps
        for where, image in numbered(self.launches):
            if steps and image.total_ms is not None and len(image.step_ms) not in (0, steps):
                raise ValueError(f"{where} has {len(image.step_ms)} steps; workload.steps={steps}")


def numbered(launches: Iterable[Launch]) -> Iterable[tuple[str, Image]]:
    """Every image with its place in the report."""
    for i, launch in enumerate(launches):
        for j, image in enumerate(launch.images):
            yield f"launches[{i}].images[{j}]", image


def parse_report(text: str, where: str) -> LatencyReport:
    """The report of a JSON text; `where` opens every error.

    Raises:
        InputError: no JSON, or not this contract; the message names the field.
    """
    try:
        data = parse_json(text)
    except ValueError as broken:
        raise InputError(f"{where} cannot be read as JSON: {broken}") from broken
    return from_plain(LatencyReport, data, where)


def read_report(path: Path) -> LatencyReport:
    """The report in a file.

    Raises:
        InputError: no readable file, larger than 64 MiB, or not this contract.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path} has over {MOST_BYTES >> 20} MiB; no latency report has")
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"cannot read {path}: {reason}; name a {SCHEMA} file") from error
    return parse_report(text, path.name)


def report_json(report: LatencyReport) -> str:
    """The report as the text of its file."""
    return json.dumps(to_plain(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
