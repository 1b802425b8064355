"""A scheme for every layer within a budget, so that the output suffers least.

A multiple-choice knapsack: one choice per layer, sums of bytes, seconds and peak bytes under their
limits, the least sum of damages. HiGHS solves it by branch and bound and says how far from the best
its answer can be at most (Huangfu and Hall, Mathematical Programming Computation 10, 2018). Sums
are checked here again, bytes in exact integers.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Scheme

_GAP = 1e-6  # of the damage, which is 4e-6 dB
_NODES = 200_000  # of the search tree; a count and not a time, so that answers do not depend on it
_SCALE = 1e6  # what a good answer's damage becomes: HiGHS takes differences below 1e-6 for none
_NARROWER = 0.1
_ATTEMPTS = 20

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """One way to store a layer: what the output suffers by it, and what the layer then takes.

    Damages only need to be comparable within a layer and to add up over layers; they may be
    negative. `seconds` and `peak_bytes` are the layer's share.
    """

    layer: str
    scheme: Scheme
    damage: float
    bytes: int
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Limits:
    """The most that all layers together may take; infinite where nothing is limited."""

    bytes: float = math.inf
    seconds: float = math.inf
    peak_bytes: float = math.inf


@dataclass(frozen=True)
class Solution:
    """The schemes chosen, and their sums.

    bound: damage that no selection within the limits goes below.
    gap: by how much the damage may lie above the least possible, as a share of it.
    """

    schemes: Mapping[str, Scheme]
    damage: float
    bytes: int
    seconds: float
    peak_bytes: int
    bound: float
    gap: float


@dataclass(frozen=True)
class _Limit:
    """One limit: its field, and how a value of it reads and what helps when it is too low."""

    name: str
    most: float
    words: Callable[[float], str]


def solve(choices: Sequence[Choice], limits: Limits) -> Solution:
    """One choice for each layer with the least sum of damages that keeps all limits.

    Raises:
        InputError: no selection keeps the limits; names one, and the least that is possible.
        ValueError: there is no choice, or a damage is not a number.
    """
    if not choices or not all(math.isfinite(one.damage) for one in choices):
        raise ValueError("a budget needs choices, and damages that are finite")
    asked = _asked(limits)
    useful = _undominated(choices, [limit.name for limit in asked])
    _check_possible(useful, asked)
    least = _least_of_layers(useful, "damage")
    costs = np.array([one.damage - least[one.layer] for one in useful])
    picked, above = _narrowed(useful, costs, asked)
    chosen = [useful[i] for i in picked]
    base = math.fsum(least.values())
    damage = math.fsum(one.damage for one in chosen)
    bound = min(base + above, damage)
    return Solution(
        {one.layer: one.scheme for one in chosen},
        damage,
        sum(one.bytes for one in chosen),
        math.fsum(one.seconds for one in chosen),
        sum(one.peak_bytes for one in chosen),
        bound,
        (damage - bound) / abs(damage) if damage else 0.0,
    )


def _asked(limits: Limits) -> tuple[_Limit, ...]:
    every = (
        _Limit("bytes", limits.bytes, lambda value: f"{value / 1e6:.3f} MB"),
        _Limit("seconds", limits.seconds, lambda value: f"{1e3 * value:.3f} ms"),
        _Limit("peak_bytes", limits.peak_bytes, lambda value: f"{value / 1e6:.3f} MB in memory"),
    )
    return tuple(limit for limit in every if math.isfinite(limit.most))


def _undominated(choices: Sequence[Choice], names: Sequence[str]) -> list[Choice]:
    """The choices that no other of their layer matches or beats in everything."""
    kept: dict[str, list[tuple[tuple[float, ...], Choice]]] = {}
    ranked = [((one.damage, *(getattr(one, name) for name in names)), one) for one in choices]
    for terms, one in sorted(ranked, key=lambda pair: (pair[0], str(pair[1].scheme))):
        better = kept.setdefault(one.layer, [])
        if not any(all(a <= b for a, b in zip(t, terms, strict=True)) for t, _ in better):
            better.append((terms, one))
    return [one for layer in dict.fromkeys(c.layer for c in choices) for _, one in kept[layer]]


def _least_of_layers(choices: Sequence[Choice], name: str) -> dict[str, float]:
    least: dict[str, float] = {}
    for one in choices:
        least[one.layer] = min(getattr(one, name), least.get(one.layer, math.inf))
    return least


def _check_possible(choices: Sequence[Choice], asked: Sequence[_Limit]) -> None:
    """Every limit can be kept, at least where the others are not looked at."""
    for limit in asked:
        values = _least_of_layers(choices, limit.name)
        if (least := math.fsum(values.values())) > limit.most:
            raise _too_low(limit, least, "")


def _too_low(limit: _Limit, least: float, others: str) -> InputError:
    return InputError(
        f"a budget of {limit.words(limit.most)} cannot be kept{others}: the least possible is "
        f"{limit.words(least)}; raise the limit, or allow schemes of fewer bits"
    )


def _narrowed(
    choices: Sequence[Choice], costs: Floats, asked: Sequence[_Limit]
) -> tuple[list[int], float]:
    """The best selection and what it costs at least; costs are zero or more.

    The solver tells differences apart down to a fixed size, so costs are scaled to what an answer
    costs. A choice that alone costs more than a whole answer is in no better one and is left out,
    and the rest scaled up, until nothing is left that spoils the scale.
    """
    among, most = list(range(len(choices))), float(costs.max()) or 1.0
    while True:
        picked, bound = _optimum([choices[i] for i in among], costs[among] * (_SCALE / most), asked)
        chosen = [among[i] for i in picked]
        found = math.fsum(costs[chosen])
        if found == 0.0 or found > _NARROWER * most:
            return chosen, bound * most / _SCALE
        among, most = [i for i in among if costs[i] <= found], found


def _optimum(
    choices: Sequence[Choice], costs: Floats, asked: Sequence[_Limit]
) -> tuple[list[int], float]:
    """The selection that costs least, as places among `choices`, and the solver's bound.

    The solver keeps limits and whole numbers within a tolerance only; where a selection exceeds a
    limit by that, the limit is lowered by more and more. The bound is that of the limits as asked.
    """
    room, bounds = {limit.name: limit.most for limit in asked}, []
    for attempt in range(_ATTEMPTS):
        picked, bound = _milp(choices, costs, room)
        if picked is None:
            raise _cannot_meet_together(choices, asked)
        bounds.append(bound)
        sums = {name: math.fsum(getattr(choices[i], name) for i in picked) for name in room}
        over = [limit for limit in asked if sums[limit.name] > limit.most]
        if not over:
            return picked, bounds[0]
        for limit in over:
            room[limit.name] -= 2.0**attempt * (sums[limit.name] - limit.most)
    raise AssertionError("the solver keeps exceeding a limit that was lowered for it")


def _milp(
    choices: Sequence[Choice], costs: Floats, room: Mapping[str, float]
) -> tuple[list[int] | None, float]:
    """The selection HiGHS finds and its dual bound; no selection where the limits allow none."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    layers = {layer: i for i, layer in enumerate(dict.fromkeys(one.layer for one in choices))}
    rows = [layers[one.layer] for one in choices]
    places = np.arange(len(choices))
    one_each = csr_array((np.ones(len(choices)), (rows, places)), (len(layers), len(choices)))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for name, most in room.items():
        values = np.array([getattr(one, name) for one in choices], np.float64)
        unit = values.max() / _SCALE or 1.0
        constraints.append(LinearConstraint(values[None] / unit, -np.inf, most / unit))
    with _silent():
        found = milp(
            costs,
            integrality=np.ones(len(choices)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": _GAP, "node_limit": _NODES},
        )
    if found.x is None:
        return None, math.inf
    best = {rows[i]: int(i) for i in np.argsort(found.x, kind="stable")}
    return [best[row] for row in sorted(best)], float(found.mip_dual_bound)


@contextmanager
def _silent() -> Iterator[None]:
    """Standard output leads nowhere: HiGHS prints notes to itself there, whatever it is told."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _cannot_meet_together(choices: Sequence[Choice], asked: Sequence[_Limit]) -> InputError:
    """Each limit can be kept alone, all of them cannot: how low the first goes beside the rest."""
    first, rest = asked[0], {limit.name: limit.most for limit in asked[1:]}
    values = np.array([getattr(one, first.name) for one in choices], np.float64)
    picked, _ = _milp(choices, values * (_SCALE / (values.max() or 1.0)), rest)
    if picked is None:
        return _cannot_meet_together(choices, asked[1:])
    least = math.fsum(getattr(choices[i], first.name) for i in picked)
    others = " and ".join(limit.words(limit.most) for limit in asked[1:])
    return _too_low(first, least, f" together with {others}")
