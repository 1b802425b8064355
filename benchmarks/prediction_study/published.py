"""Published run times beside what the predictor would say of them: reading, costing, fitting."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import flux
import numpy as np
import snapgen
import stable_diffusion as sd
from layers import Graph
from numpy.typing import NDArray

from nanoflux_mobile.cost import BlockCost
from nanoflux_mobile.device import Kind, load_device
from nanoflux_mobile.roofline import (
    GUESSES,
    Constants,
    Engine,
    Guess,
    Range,
    Work,
    engine,
    times,
    widened,
    work,
)
from nanoflux_mobile.strict_json import from_plain

Array = NDArray[np.float64]
ROWS = Path(__file__).with_name("rows.toml")
VALUE_BYTES = 2  # every published graph computes on values of 16 bits
FREE: tuple[tuple[str, tuple[Kind, ...]], ...] = (
    ("compute", ("neural_engine",)),
    ("compute", ("hexagon",)),
    ("compute", ("gpu",)),
    ("spilled", ("neural_engine", "gpu")),
    ("spilled", ("hexagon",)),
)
"""The fitted constants; a GPU spills like a Neural Engine, through the same cache of the system."""
START = (0.4, 0.8, 0.6, 0.5, 0.1)

GRAPHS: Mapping[str, Callable[[], Graph]] = {
    "flux_12b": lambda: flux.step(flux.TEACHER),
    "flux_5b": lambda: flux.step(flux.FIVE),
    "flux_3b": lambda: flux.step(flux.THREE),
    "flux_2_5b": lambda: flux.step(flux.TWO_AND_HALF),
    "flux_2_5b_low": lambda: flux.low_step(flux.TWO_AND_HALF),
    "flux_1_8b": lambda: flux.step(flux.STATIC),
    "flux_1_8b_low": lambda: flux.low_step(flux.STATIC),
    "snapgen_unet": lambda: snapgen.unet(128),
    "snapgen_decoder": lambda: snapgen.decoder(128),
    "snapgen_dit_0_3b": lambda: snapgen.dit(768),
    "snapgen_dit_0_4b": lambda: snapgen.dit(1024),
    "snapgen_dit_1_6b": lambda: snapgen.dit(2048),
    "sd1_text_encoder": lambda: sd.text_encoder(12, 768, 12),
    "sd1_unet": lambda: sd.unet(sd.SD1, 64),
    "sd21_text_encoder": lambda: sd.text_encoder(23, 1024, 16),
    "sd21_unet": lambda: sd.unet(sd.SD21, 64),
    "sd21_decoder": lambda: sd.decoder(64, 4),
    "sdxl_unet_768": lambda: sd.unet(sd.SDXL, 96),
    "sdxl_unet_1024": lambda: sd.unet(sd.SDXL, 128),
    "sdxl_decoder": lambda: sd.decoder(128, 4),
}


@dataclass(frozen=True)
class Run:
    """A graph, how often it runs, and over how many samples at once."""

    graph: str
    times: int
    batch: int


@dataclass(frozen=True)
class Row:
    """One published time and what it is the time of."""

    name: str
    system: str
    device: str
    unit: Literal["npu", "gpu"]
    weight_bits: float
    seconds: float
    source: str
    runs: tuple[Run, ...]
    note: str = ""


@dataclass(frozen=True)
class Rows:
    """The file of them."""

    schema: Literal["published-rows/1"]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Case:
    """A row, the costs of its graphs, and its device taken in three ways."""

    row: Row
    runs: tuple[tuple[int, Work], ...]
    engines: Mapping[Guess, Engine]

    def seconds(self, constants: Constants, guess: Guess = "likely") -> float:
        """What the roofline says."""
        on = self.engines[guess]
        return sum(count * times(done, on, constants).total for count, done in self.runs)

    def predicted(self, constants: Constants) -> Range:
        """What a prediction says."""
        return widened(lambda guess: self.seconds(constants, guess), constants.spread)


def read_rows() -> tuple[Row, ...]:
    """All rows of rows.toml; InputError names a wrong field."""
    return from_plain(Rows, tomllib.loads(ROWS.read_text("utf-8")), ROWS.name).rows


def case(row: Row) -> Case:
    """A row ready to be predicted."""
    device = load_device(row.device)
    runs = tuple(
        (run.times, work(costs(run.graph, run.batch, row.weight_bits))) for run in row.runs
    )
    return Case(row, runs, {guess: engine(device, row.unit, guess) for guess in GUESSES})


@cache
def costs(graph: str, batch: int, weight_bits: float) -> tuple[BlockCost, ...]:
    """A published graph in the words of a bundle's cost.json."""
    return tuple(
        BlockCost(
            component=graph,
            function="main",
            block=block.name,
            macs=block.macs * batch,
            weight_bytes=round(block.weights * weight_bits / 8),
            activation_bytes=block.traffic * batch * VALUE_BYTES,
            working_set_bytes=(block.largest + block.kept) * batch * VALUE_BYTES,
            ops=block.ops,
        )
        for block in GRAPHS[graph]()
    )


def constants_of(logs: Array, spread: float = 0.0) -> Constants:
    """The constants whose logarithms these are."""
    shares: dict[str, dict[Kind, float]] = {"compute": {}, "spilled": {}}
    for (name, kinds), log in zip(FREE, logs, strict=True):
        shares[name].update(dict.fromkeys(kinds, float(np.exp(log))))
    return Constants(shares["compute"], shares["spilled"], spread)


def errors(cases: Sequence[Case], logs: Array) -> Array:
    """ln(predicted / measured) of every case."""
    constants = constants_of(logs)
    return np.array([np.log(c.seconds(constants) / c.row.seconds) for c in cases])


def fit(cases: Sequence[Case], start: Sequence[float] = START) -> Constants:
    """The constants of least squared error, by damped Gauss-Newton in logarithms."""
    logs, damping = np.log(np.array(start, np.float64)), 1e-3
    found = errors(cases, logs)
    for _ in range(60):
        slopes = np.stack(
            [(errors(cases, logs + 1e-4 * axis) - found) / 1e-4 for axis in np.eye(len(logs))], 1
        )
        curve = slopes.T @ slopes
        move = np.linalg.solve(curve + damping * np.eye(len(logs)), -slopes.T @ found)
        # Shares end at 1 and, where a row says nothing of one, stay where they are.
        tried = np.clip(logs + np.clip(move, -0.5, 0.5), np.log(0.01), 0.0)
        after = errors(cases, tried)
        better = after @ after < found @ found
        damping = max(damping / 4, 1e-6) if better else damping * 8
        settled = abs(found @ found - after @ after) < 1e-9
        if better:
            logs, found = tried, after
        if settled or damping > 1e6:
            break
    spread = float(np.sqrt(found @ found / (len(cases) - len(logs))))
    return constants_of(logs, spread)
