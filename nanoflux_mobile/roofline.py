"""How long a processor of a phone takes for a part of a graph, by the roofline.

A block takes as long as the slower of two things: computing, and moving its weights and its values
to and from memory. Five constants say how much of a stated rate real graphs reach; they were fitted
to published measurements and are checked on those they were not fitted to
(benchmarks/prediction_study).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nanoflux_mobile.cost import BlockCost
from nanoflux_mobile.device import Device, Fact, Kind, Unit
from nanoflux_mobile.errors import InputError

Guess = Literal["fast", "likely", "slow"]
GUESSES: tuple[Guess, ...] = ("fast", "likely", "slow")
UnitName = Literal["npu", "gpu"]
UNITS: Mapping[str, UnitName] = {"cpuAndNeuralEngine": "npu", "gpu": "gpu"}
"""The unit of a device file behind what apps call a processor."""
Array = NDArray[np.float64]

BANDWIDTH_SHARE = 60.0 / 76.8
"""Of the nominal bandwidth: a Hexagon reads 60 of 76.8 GB/s (arXiv 2509.23324, table 2)."""
APP_SHARE = 0.75
"""Of all memory, where the limit of one app is unknown: 6 GB of 8 on iPadOS 26.3."""

DEVIATIONS = 2.576
"""Spreads on either side of a prediction: 99 of 100 measurements, were their errors normal."""


@dataclass(frozen=True)
class Range:
    """Seconds: the likely time, and bounds a measurement should fall between."""

    low: float
    mid: float
    high: float


@dataclass(frozen=True)
class Constants:
    """What published measurements taught.

    `compute` is the share of the stated rate that graphs reach; `spilled` the share of the values
    read and written that goes through memory where they do not fit on the chip; `spread` the
    standard deviation of ln(predicted / measured).
    """

    compute: Mapping[Kind, float]
    spilled: Mapping[Kind, float]
    spread: float


CALIBRATION = Constants(
    compute={"neural_engine": 0.3486, "hexagon": 0.8652, "gpu": 0.6554},
    spilled={"neural_engine": 0.5362, "hexagon": 0.0223, "gpu": 0.5362},
    spread=0.1769,
)
"""Fitted to 43 published rows; benchmarks/prediction_study/leave_one_out.py prints these."""


@dataclass(frozen=True)
class Engine:
    """One unit of a device in numbers; a cache of 0 holds nothing, an infinite one everything."""

    kind: Kind
    ops_per_s: float
    bytes_per_s: float
    cache_bytes: float
    dispatch_s: float
    app_bytes: float
    storage_bytes_per_s: float


@dataclass(frozen=True)
class Work:
    """The costs of blocks, one array entry each."""

    macs: Array
    weight_bytes: Array
    activation_bytes: Array
    working_set_bytes: Array


@dataclass(frozen=True)
class Times:
    """Seconds of every block by what takes them, and of reading the weights from storage."""

    compute: Array
    memory: Array
    storage: float

    @property
    def blocks(self) -> Array:
        """What each block takes."""
        return np.maximum(self.compute, self.memory)

    @property
    def total(self) -> float:
        """All blocks, or as long as reading their weights from storage."""
        return max(float(self.blocks.sum()), self.storage)


def work(blocks: Sequence[BlockCost]) -> Work:
    """The costs of blocks as arrays."""
    names = ("macs", "weight_bytes", "activation_bytes", "working_set_bytes")
    return Work(*(np.array([getattr(b, name) for b in blocks], np.float64) for name in names))


def engine(device: Device, unit: UnitName, guess: Guess = "likely") -> Engine:
    """A unit of a device; `guess` says how to take what the device file leaves open.

    Raises:
        InputError: the file states too little of it, naming what is missing.
    """
    part: Unit | None = getattr(device, unit)
    if part is None:
        raise _lacking(device, f"[{unit}]")
    if device.memory_bytes_per_s is None:
        raise _lacking(device, "memory_bytes_per_s")
    if part.kind == "other":
        raise InputError(
            f"no measurement of a {part.name} is known to calibrate a prediction; "
            f"{device.name} can be predicted for bundles that run on its GPU"
        )
    ram = device.ram_bytes.value if device.ram_bytes else float("inf")
    return Engine(
        kind=part.kind,
        ops_per_s=_rate(device, unit, part, guess),
        bytes_per_s=device.memory_bytes_per_s.value * BANDWIDTH_SHARE,
        cache_bytes=_or(part.cache_bytes, float("inf") if guess == "fast" else 0.0),
        dispatch_s=_or(part.dispatch_s, 0.0),
        app_bytes=_or(device.app_bytes, APP_SHARE * ram),
        storage_bytes_per_s=_or(device.storage_bytes_per_s, float("inf")),
    )


def times(done: Work, on: Engine, constants: Constants) -> Times:
    """How long blocks take that run one after the other, their weights read once.

    Weights of which the app may not hold all are read from storage, every time anew: the first are
    gone again when the last have come.
    """
    moved = np.where(done.working_set_bytes > on.cache_bytes, done.activation_bytes, 0.0)
    spilled = moved * constants.spilled[on.kind]
    weights = float(done.weight_bytes.sum())
    return Times(
        compute=2.0 * done.macs / (on.ops_per_s * constants.compute[on.kind]),
        memory=(done.weight_bytes + spilled) / on.bytes_per_s,
        storage=weights / on.storage_bytes_per_s if weights > on.app_bytes else 0.0,
    )


def widened(seconds: Callable[[Guess], float], spread: float) -> Range:
    """The range of a prediction; `seconds` is it for each way to take what is not known."""
    factor = math.exp(DEVIATIONS * spread)
    return Range(seconds("fast") / factor, seconds("likely"), seconds("slow") * factor)


def _or(fact: Fact | None, otherwise: float) -> float:
    return fact.value if fact else otherwise


def _rate(device: Device, unit: str, part: Unit, guess: Guess) -> float:
    if part.fp16_ops_per_s:
        return part.fp16_ops_per_s.value
    if part.fp32_ops_per_s is None:
        raise _lacking(device, f"{unit}.fp16_ops_per_s")
    # A GPU computes in half precision as fast as in single, or twice as fast.
    return part.fp32_ops_per_s.value * {"fast": 2.0, "likely": math.sqrt(2.0), "slow": 1.0}[guess]


def _lacking(device: Device, field: str) -> InputError:
    return InputError(
        f"the device file of {device.name} does not state {field}; "
        f"add it, with its source, to a copy of {device.id}.toml and name that file"
    )
