"""Limits that a release must keep, per device and stage, read from TOML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from nanoflux_benchmarks.stats import MIN_IMAGES, MIN_LAUNCHES
from nanoflux_benchmarks.verdict import Stage
from nanoflux_mobile import shipped_toml
from nanoflux_mobile.strict_json import from_plain

SHIPPED = resources.files("nanoflux_benchmarks") / "budgets"
MISSION = "nanoflux-512"


@dataclass(frozen=True)
class Limits:
    """The most that each stage may take; None: not limited. Times in milliseconds."""

    image_ms: float | None = None
    text_encoder_ms: float | None = None
    step_ms: float | None = None
    decoder_ms: float | None = None
    load_first_ms: float | None = None
    load_relaunch_ms: float | None = None
    peak_bytes: float | None = None

    def __post_init__(self) -> None:
        """A limit of nothing would fail everything."""
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not 0 < value < 1e15:
                raise ValueError(f"{name} is {value}; accepted: above 0")

    def of(self, stage: Stage) -> float | None:
        """The limit of one stage, bytes for memory and milliseconds for the rest."""
        name = "peak_bytes" if stage == "memory" else f"{stage}_ms"
        limit: float | None = getattr(self, name)
        return limit


@dataclass(frozen=True)
class Budget:
    """One budget file: the workload it is for, limits for any device, and for some by model."""

    schema: Literal["budget/1"]
    summary: str
    limits: Limits
    image_side: int | None = None
    steps: int | None = None
    golden_psnr_db: float = 30.0
    launches: int = MIN_LAUNCHES
    images: int = MIN_IMAGES
    devices: Mapping[str, Limits] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        """Fewer launches than the statistics need would be no evidence."""
        for name, least in (("launches", 3), ("images", 3)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: {least} or more")

    def limits_for(self, model: str) -> Limits:
        """The limits of a device: those of its model where given, else those of any device."""
        special = dataclasses.asdict(self.devices.get(model, Limits()))
        return dataclasses.replace(
            self.limits, **{name: value for name, value in special.items() if value is not None}
        )


def shipped_budgets() -> tuple[str, ...]:
    """Names of the budgets that come with the package."""
    return shipped_toml.shipped(SHIPPED)


def load_budget(name: str) -> Budget:
    """A shipped budget by name, or one from a .toml file.

    Raises:
        InputError: neither; or a key or value that is not accepted, with its place.
    """
    data, where = shipped_toml.load_toml(SHIPPED, "budget", name)
    return from_plain(Budget, {"name": Path(name).stem, **data}, where)
