"""How long a graph takes on a device, as far as the bytes of its weights decide it.

The roofline is that of the predictions (`nanoflux_mobile.roofline`): a block takes as long as its
arithmetic, or as moving its weights and values, whichever is slower. Storing weights smaller makes
those blocks faster that wait for memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from nanoflux_mobile.cost import BlockCost, Cost
from nanoflux_mobile.device import Device
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.roofline import CALIBRATION, UNITS, Engine, engine, times, work


@dataclass(frozen=True)
class StepTime:
    """The blocks of a graph's slowest function on one unit of a device."""

    blocks: tuple[BlockCost, ...]
    engine: Engine

    def block_of(self, layer: str) -> str:
        """The block that holds a layer; "" where the function does not run it.

        Files write a segment's name in their own way, and divide a graph of one segment into the
        parts of its module.
        """
        for told in layer.split("/", 1):
            name = f"{_plain(told)}_"
            held = [b.block for b in self.blocks if name.startswith(f"{_plain(b.block)}_")]
            if held:
                return max(held, key=len)
        return ""

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


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)


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
