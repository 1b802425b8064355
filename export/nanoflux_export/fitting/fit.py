"""A budget kept: what every layer costs in every scheme, the best choice, and what it really costs.

Damages of single layers add up only while they are small, so the solver's answer is run as a whole,
and looked around for a better one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanoflux_export.fitting.budget import Choice, Limits, Solution, solve
from nanoflux_export.fitting.calibration import Calibration
from nanoflux_export.fitting.refining import assess, refine
from nanoflux_export.fitting.sensitivity import Sensitivity, Store, damage_of
from nanoflux_export.fitting.step_time import StepTime
from nanoflux_export.graph import MobileGraph
from nanoflux_export.layers import Layer
from nanoflux_export.work import Journal
from nanoflux_mobile.spec import Budget, ComponentName, Scheme


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
    layers: Sequence[Layer]
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
    """The solver's answer; where time is limited, its sum of layers is held to the roofline's.

    A block that waits for memory may be bound by its arithmetic once its weights are small, which
    no sum over layers knows: the limit is lowered by what such an answer runs over.
    """
    choices, limits = _choices(asked, rows), _limits(asked, rows, budget)
    found = solve(choices, limits)
    if asked.timing is None:
        return found
    for _ in range(8):
        excess = asked.timing.seconds(_bytes_by_segment(asked, rows, found)) - budget.step_ms / 1e3
        if excess <= 0:
            break
        limits = dataclasses.replace(limits, seconds=limits.seconds - excess)
        found = solve(choices, limits)
    return found


def _choices(asked: Question, rows: Sensitivity) -> list[Choice]:
    segment = {layer.name: layer.segment for layer in asked.layers}
    pace = asked.timing.per_byte if asked.timing else {}
    return [
        Choice(
            row.layer,
            row.scheme,
            row.damage,
            row.bytes,
            row.bytes * pace.get(segment[row.layer], 0.0),
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
        empty = dict.fromkeys({layer.segment for layer in asked.layers}, 0.0)
        seconds = budget.step_ms / 1e3 - asked.timing.seconds(empty)
    peak = budget.peak_megabytes * 1e6 or float("inf")
    return Limits(most_bits / 8, seconds, peak)


def _bytes_by_segment(asked: Question, rows: Sensitivity, found: Solution) -> dict[str, float]:
    sizes = {(row.layer, row.scheme): row.bytes for row in rows.rows}
    total: dict[str, float] = {}
    for layer in asked.layers:
        size = sizes[layer.name, found.schemes[layer.name]]
        total[layer.segment] = total.get(layer.segment, 0.0) + size
    return total
