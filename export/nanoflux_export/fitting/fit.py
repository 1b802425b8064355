"""A budget kept: what every layer costs in every scheme, the best choice, and what it really costs.

Damages of single layers add up only while they are small, so the solver's answer is run as a whole,
and looked around for a better one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanoflux_export.fitting.budget import Choice, Limits, Solution, solve
from nanoflux_export.fitting.calibration import Calibration
from nanoflux_export.fitting.refining import assess, refine
from nanoflux_export.fitting.sensitivity import Sensitivity, damage_of
from nanoflux_export.fitting.step_time import StepTime
from nanoflux_export.fitting.stored import Store
from nanoflux_export.graph import MobileGraph
from nanoflux_export.work import Journal
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Budget, ComponentName, Scheme

_SAME = 1 + 1e-9
"""Two sums of the same seconds in another order."""


@dataclass(frozen=True)
class Question:
    """A graph whose layers are to be stored within a budget, and how its damages are found.

    target: whose schemes they are.
    choices: the schemes each layer may get, one where a recipe fixed it.
    resident_bits: bits of a weight in memory while the graph runs, by scheme.
    timing: seconds by bytes of weights, where time is limited.
    cache: the file that keeps measurements.
    """

    graph: MobileGraph
    target: str
    calibration: Calibration
    choices: Mapping[str, Sequence[Scheme]]
    store: Store
    resident_bits: Callable[[Scheme], float]
    timing: StepTime | None
    cache: Path


@dataclass(frozen=True)
class Fit:
    """How the layers of a graph were chosen for a budget.

    predicted, real: damage of the choice as damages of single layers add up, and of the whole graph
        with every layer stored; mean squared error of the output.
    """

    component: ComponentName
    target: str
    budget: Budget
    sensitivity: Sensitivity
    solution: Solution
    predicted: float
    real: float

    @property
    def schemes(self) -> Mapping[str, Scheme]:
        """The scheme of every layer."""
        return self.solution.schemes

    @property
    def bits(self) -> float:
        """Mean bits of a weight, palettes and scales counted."""
        values = {row.layer: row.values for row in self.sensitivity.rows}
        return 8 * self.solution.bytes / sum(values.values())


def fit(asked: Question, budget: Budget, journal: Journal) -> Fit:
    """The schemes that keep a budget with the least damage found; InputError where none does."""
    graph, inputs, store = asked.graph, asked.calibration, asked.store
    with journal.step(f"measure what storing {graph.name} smaller costs, layer by layer"):
        rows = assess(graph, inputs, asked.choices, store, cache=asked.cache, journal=journal)

    def answer(known: Sensitivity) -> Solution:
        return _solved(asked, known, budget)

    with journal.step(f"choose the schemes of {graph.name}, and look around the choice"):
        best = refine(graph, inputs, rows, answer, store, journal=journal).best.solution
        real, _ = damage_of(graph, inputs, best.schemes, store)
    return Fit(graph.name, asked.target, budget, rows, best, rows.predicted(best.schemes), real)


def _solved(asked: Question, rows: Sensitivity, budget: Budget) -> Solution:
    """The solver's answer; where time is limited, its sum over layers is never below the roofline.

    Each block counts with its time without weights and with that of moving them, of which only the
    longer may be spent: a block whose weights get small may be bound by its arithmetic. What the
    sum does not know are weights that do not fit into an app: those are read from storage.

    Raises:
        InputError: no choice keeps the budget, or its weights are read from storage too slowly.
    """
    found = solve(_choices(asked, rows), _limits(asked, rows, budget))
    if asked.timing is not None:
        spent_ms = 1e3 * asked.timing.seconds(_bytes_by_block(asked.timing, rows, found))
        if spent_ms > budget.step_ms * _SAME:
            raise InputError(
                f"a budget of {budget.step_ms:g} ms cannot be kept: {found.bytes / 1e6:.0f} MB of "
                f"weights do not fit into one app of {budget.device}, and reading them from "
                f"storage takes {spent_ms:.0f} ms; limit megabytes as well"
            )
    return found


def _choices(asked: Question, rows: Sensitivity) -> list[Choice]:
    timing, pace = asked.timing, asked.timing.per_byte if asked.timing else {}
    return [
        Choice(
            row.layer,
            row.scheme,
            row.damage,
            row.bytes,
            row.bytes * pace.get(timing.block_of(row.layer), 0.0) if timing else 0.0,
            round(row.bytes * asked.resident_bits(row.scheme) / row.scheme.bits_per_weight),
        )
        for row in rows.rows
        if row.damage < float("inf")
    ]


def _limits(asked: Question, rows: Sensitivity, budget: Budget) -> Limits:
    values = sum({row.layer: row.values for row in rows.rows}.values())
    sizes = [8 * budget.megabytes * 1e6, budget.bits * values]
    most_bits = min((size for size in sizes if size), default=float("inf"))
    seconds = float("inf")
    if asked.timing:
        empty = dict.fromkeys((asked.timing.block_of(row.layer) for row in rows.rows), 0.0)
        least = asked.timing.seconds(empty)
        if 1e3 * least > budget.step_ms:
            raise InputError(
                f"a budget of {budget.step_ms:g} ms cannot be kept: {asked.graph.name} takes "
                f"{1e3 * least:.3g} ms on {budget.device} without any weights to move; raise the "
                "limit"
            )
        seconds = budget.step_ms / 1e3 - least
    peak = budget.peak_megabytes * 1e6 or float("inf")
    return Limits(most_bits / 8, seconds, peak)


def _bytes_by_block(timing: StepTime, rows: Sensitivity, found: Solution) -> dict[str, float]:
    total: dict[str, float] = {}
    for row in rows.rows:
        if found.schemes[row.layer] == row.scheme:
            block = timing.block_of(row.layer)
            total[block] = total.get(block, 0.0) + row.bytes
    return total
