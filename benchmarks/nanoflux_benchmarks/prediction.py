"""The words of a prediction: what a bundle should take on a phone nobody has measured it on.

Seconds everywhere. Nothing here is a verdict or can become one: only measurements pass a gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nanoflux_mobile.roofline import Range, UnitName

Limit = Literal["compute", "memory bandwidth", "dispatch", "crossings", "storage"]


@dataclass(frozen=True)
class Plan:
    """What a bundle does for a picture: units and weight bits by component, steps, load order.

    The first `low_steps` of its steps run at low resolution. `resident` are pairs of the component
    that works and the bytes of weights loaded meanwhile.
    """

    target: str
    steps: int
    units: Mapping[str, UnitName]
    weight_bits: Mapping[str, float]
    resident: tuple[tuple[str, int], ...]
    low_steps: int = 0


@dataclass(frozen=True)
class BlockTime:
    """One part of a graph in one run, and what it waits for."""

    block: str
    seconds: float
    limit: Limit


@dataclass(frozen=True)
class Call:
    """One function of a component: how often a picture runs it, and how long one run takes.

    `limit` is what most of that time goes to.
    """

    component: str
    function: str
    unit: UnitName
    runs: int
    seconds: Range
    limit: Limit
    blocks: tuple[BlockTime, ...]


@dataclass(frozen=True)
class MemoryUse:
    """Weights and values held at once, by the bundle's memory plan; None: not known.

    What a runtime keeps for itself is not in `peak_bytes`.
    """

    peak_bytes: int
    app_bytes: int | None
    ram_bytes: int | None
    fits: bool | None


@dataclass(frozen=True)
class Advice:
    """A change, and what an image (the likely time) and the peak would be with it."""

    change: str
    image_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Prediction:
    """What a bundle should take on a device; `step` is the mean of a picture's denoising steps.

    `advice` begins with what saves most time; `notes` say what was assumed.
    """

    kind: Literal["prediction"]
    device: str
    target: str
    steps: int
    step: Range
    image: Range
    calls: tuple[Call, ...]
    memory: MemoryUse
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]
