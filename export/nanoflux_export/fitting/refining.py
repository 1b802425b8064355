"""From what single layers do to a plan that is good as a whole.

Damages of single layers add up roughly, so many plans are foretold to be as good as the best, and
the whole graph tells them apart by a few tenths of a decibel, at low bits by more. Such plans are
found by doubting every layer's damage a little, and the graph runs each of them. One that is better
by more than chance takes the place of the best, and the doubts that led to it are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nanoflux_export.fitting.budget import Solution
from nanoflux_export.fitting.calibration import Calibration
from nanoflux_export.fitting.gradients import estimate
from nanoflux_export.fitting.sensitivity import Sensitivity, damages, measure, outputs
from nanoflux_export.fitting.shortlists import worthwhile
from nanoflux_export.fitting.stored import Store
from nanoflux_export.graph import MobileGraph
from nanoflux_export.work import Journal
from nanoflux_mobile.spec import Scheme

Answer = Callable[[Sensitivity], Solution]
"""The best plan within its limits by what is known of every layer."""

_SEED = 0
_SURE = 3.0  # standard errors; inputs of one prompt are alike, and there are many tries
_DOUBT = 0.35  # standard deviation of the logarithm of a damage, 1.5 dB


@dataclass(frozen=True)
class Tried:
    """A plan, and the damage it does to the output of the whole graph, every layer stored.

    parts: what every input has of that damage.
    """

    solution: Solution
    damage: float
    parts: tuple[float, ...]


@dataclass(frozen=True)
class Refined:
    """The best plan tried, and the one that refining began with."""

    best: Tried
    first: Tried


def assess(
    graph: MobileGraph,
    calibration: Calibration,
    choices: Mapping[str, Sequence[Scheme]],
    store: Store,
    *,
    cache: Path,
    journal: Journal,
    most_inputs: int = 8,
) -> Sensitivity:
    """The damage of every choice that can be in a good plan: all by gradients, those by running."""
    rough = estimate(graph, calibration, choices, store, journal=journal)
    return measure(
        graph,
        calibration,
        worthwhile(rough),
        store,
        cache=cache,
        journal=journal,
        most_inputs=most_inputs,
    )


def refine(
    graph: MobileGraph,
    calibration: Calibration,
    sensitivity: Sensitivity,
    answer: Answer,
    store: Store,
    *,
    journal: Journal,
    most_inputs: int = 80,
    tries: int = 16,
) -> Refined:
    """The plan of least damage to the whole graph among those that doubting the damages leads to.

    Every try runs the graph on `most_inputs` inputs. The doubts are drawn from a fixed seed.
    """

    plain = outputs(graph, calibration, {}, store, most_inputs=most_inputs)

    def tried(solution: Solution) -> Tried:
        schemes = solution.schemes
        got = outputs(graph, calibration, schemes, store, most_inputs=most_inputs)
        parts = damages(got, plain, calibration, graph)
        honest = replace(solution, damage=sensitivity.predicted(schemes))
        return Tried(honest, math.fsum(parts), tuple(parts))

    layers = tuple(dict.fromkeys(row.layer for row in sensitivity.rows))
    rng = np.random.default_rng(_SEED)
    kept = np.zeros(len(layers))
    first = best = tried(answer(sensitivity))
    for done in range(tries):
        doubts = kept + rng.normal(0.0, _DOUBT, len(layers))
        weighs = dict(zip(layers, np.exp(doubts).tolist(), strict=True))
        solution = answer(_weighed(sensitivity, weighs))
        if solution.schemes != best.solution.schemes:
            new = tried(solution)
            if _surely_less(new.parts, best.parts):
                best, kept = new, doubts
        journal.part(done + 1, tries)
    return Refined(best, first)


def _weighed(sensitivity: Sensitivity, weighs: Mapping[str, float]) -> Sensitivity:
    rows = (replace(row, damage=weighs[row.layer] * row.damage) for row in sensitivity.rows)
    return replace(sensitivity, rows=tuple(row for row in rows if math.isfinite(row.damage)))


def _surely_less(new: Sequence[float], best: Sequence[float]) -> bool:
    """Whether the sum of `new` is less by more than the spread from input to input explains."""
    gains = np.subtract(best, new)
    if len(gains) < 2 or not np.isfinite(gains).all():
        return math.fsum(new) < math.fsum(best)
    return bool(gains.sum() > _SURE * math.sqrt(len(gains)) * gains.std(ddof=1))
