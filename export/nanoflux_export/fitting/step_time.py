"""How long a graph takes on a device, as far as the bytes of its weights decide it.

The roofline is that of the predictions (`nanoflux_mobile.roofline`): a block takes as long as its
arithmetic, or as moving its weights and values, whichever is slower. Storing weights smaller makes
those blocks faster that wait for memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from nanoflux_mobile.cost import BlockCost, Cost
from nanoflux_mobile.device import Device
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.roofline import CALIBRATION, Engine, engine, times, work

UNITS: Mapping[str, Literal["npu", "gpu"]] = {"cpuAndNeuralEngine": "npu", "gpu": "gpu"}
"""The unit of a device file behind what apps call a processor."""


@dataclass(frozen=True)
class StepTime:
    """The blocks of a graph's slowest function on one unit of a device."""

    blocks: tuple[BlockCost, ...]
    engine: Engine

    def seconds(self, weight_bytes: Mapping[str, float]) -> float:
        """The function's time when blocks, by name, hold so many bytes of weights."""
        held = [
            replace(block, weight_bytes=round(weight_bytes.get(block.block, block.weight_bytes)))
            for block in self.blocks
        ]
        return times(work(held), self.engine, CALIBRATION).total + self.engine.dispatch_s

    @property
    def per_byte(self) -> dict[str, float]:
        """Seconds that each byte of weights costs, by block; 0 where arithmetic takes longer."""
        spent = times(work(self.blocks), self.engine, CALIBRATION)
        waits = np.asarray(spent.memory > spent.compute)
        pace = 1.0 / self.engine.bytes_per_s
        return {
            block.block: pace if wait else 0.0
            for block, wait in zip(self.blocks, waits, strict=True)
        }


def step_time(cost: Cost, device: Device, compute_unit: str) -> StepTime:
    """The timing of a graph from the cost of its file with half-precision weights.

    InputError for a processor that device files do not describe, or a device that lacks it.
    """
    if compute_unit not in UNITS:
        raise InputError(
            f"no device file says how fast a {compute_unit} is; limit bits, megabytes or "
            "peak_megabytes, or choose another profile"
        )
    on = engine(device, UNITS[compute_unit])
    names = dict.fromkeys(block.function for block in cost.blocks)
    each = (StepTime(tuple(b for b in cost.blocks if b.function == name), on) for name in names)
    return max(each, key=lambda one: one.seconds({}))
