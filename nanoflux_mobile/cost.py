"""What the saved graphs of a bundle ask of a device: the contract `cost/1`, in `cost.json`."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.strict_json import from_plain, parse_json, to_plain

SCHEMA: Final = "cost/1"
FILE = "cost.json"


@dataclass(frozen=True)
class BlockCost:
    """What one run of one part of a graph computes, reads and writes.

    A block is a part of the network such as a transformer block, named as the saved file names it.
    All counts are of the file as saved, in the types it declares:

    macs: multiply-accumulates of convolutions and matrix products; nothing else counts.
    weight_bytes: constants as stored, with their palettes or scales, each in the first block of a
        function that uses it: the blocks of a function add up to its weights. A table that rows
        are looked up in counts whole.
    activation_bytes: computed values read and written, by every op anew, and constants that an
        earlier block has used already.
    working_set_bytes: the most that all values still needed take while the block runs, its own
        and those kept for later blocks.
    ops: operations, without those that only give a value another shape.
    """

    component: str
    function: str
    block: str
    macs: int
    weight_bytes: int
    activation_bytes: int
    working_set_bytes: int
    ops: int

    def __post_init__(self) -> None:
        """Counts are counts."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{field.name} is {value}; it counts from 0")


@dataclass(frozen=True)
class Cost:
    """All graphs of a bundle, block by block in the order they run.

    `crossings` counts how often work passes between the accelerator and another processor while
    every function runs once, in program order; entering and leaving a function is not counted.
    """

    schema: Literal["cost/1"]
    target: str
    blocks: tuple[BlockCost, ...]
    crossings: int

    def __post_init__(self) -> None:
        """A count, and one entry per block."""
        if self.crossings < 0:
            raise ValueError(f"crossings is {self.crossings}; it counts from 0")
        keys = Counter((block.component, block.function, block.block) for block in self.blocks)
        for key, times in keys.most_common(1):
            if times > 1:
                raise ValueError(f"blocks lists {' '.join(key)} more than once")


def read_cost(bundle: Path) -> Cost:
    """What the graphs of a bundle folder cost.

    Raises:
        InputError: no `cost.json` in it (older bundles have none), or not this contract.
    """
    path = bundle / FILE
    try:
        data = parse_json(path.read_text("utf-8"))
    except FileNotFoundError as missing:
        raise InputError(f"{bundle} has no {FILE}; export the bundle again") from missing
    except (OSError, ValueError) as broken:
        raise InputError(f"{path} cannot be read as JSON: {broken}") from broken
    return from_plain(Cost, data, FILE)


def cost_json(cost: Cost) -> str:
    """The cost as the text of its file."""
    return json.dumps(to_plain(cost), indent=2, ensure_ascii=False) + "\n"
