"""Statistics of launches: what a time is, whether two differ, and what could have been seen.

Images of one launch share whatever that process was given (memory layout, clocks, temperature), so
they are not independent measurements: every interval here comes from how *launches* differ.
With five to eight of them, the percentiles of resampled launches are too narrow (an interval of
95 % holds in 88 % of cases at five), because few launches understate their own spread. So
their variance is scaled by n / (n - 1), and Student's t with n - 1 degrees of freedom takes the
place of the normal 1.96; `benchmarks/gate_study` shows that this keeps what it promises.
Images inside a resampled launch stay as they are: the spread of launches already holds their
noise, and resampling them as well would count it twice.

Shapes: R repeats, N launches, V values of all launches. `launches` means one row of times per
launch, in time order; rows may differ in length and weigh the same. Logs turn ratios into sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Final, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from nanoflux_benchmarks.verdict import Interval, Power, Stage
from nanoflux_mobile.errors import InputError

MIN_EFFECT: Final = 0.03
"""A slowdown this small is left alone, however sure it is."""
MIN_LAUNCHES: Final = 5
MIN_IMAGES: Final = 10
CONFIDENCE: Final = 0.95
CAUGHT: Final = 0.8
REPEATS: Final = 2000
SHORTEST_MS: Final = 1e-6
"""A nanosecond: what takes less was not measured, and its ratio to anything means nothing."""
_CELLS = 1 << 22

Launches = Sequence[Sequence[float]]
Array = NDArray[np.float64]


def quantile_interval(launches: Launches, quantile: float, seed: int = 0) -> Interval:
    """A quantile of all images, and bounds for more launches of the same kind.

    The bounds are the standard error over resampled launches times Student's t. A high quantile
    leans on few images: at 0.9 the upper bound is passed in up to 10 % of runs, not in 2.5 %.

    Raises:
        InputError: fewer than two launches, or one without times, or times not finite.
    """
    _check(launches, least=0.0)
    count = len(launches)
    sizes = np.array([len(row) for row in launches])
    values_V = np.concatenate([np.asarray(row, float) for row in launches])
    order_V = np.argsort(values_V, kind="stable")
    launch_V, values_V = np.repeat(np.arange(count), sizes)[order_V], values_V[order_V]
    value = float(_quantiles(values_V, launch_V, np.ones((1, count)) / sizes, quantile)[0])
    draws_RN = np.random.default_rng(seed).multinomial(count, [1 / count] * count, REPEATS)
    pieces = np.array_split(draws_RN / sizes, math.ceil(REPEATS * len(values_V) / _CELLS))
    found_R = np.concatenate([_quantiles(values_V, launch_V, rows, quantile) for rows in pieces])
    reach = student(count - 1) * float(found_R.std()) * math.sqrt(count / (count - 1))
    return Interval(value, max(0.0, value - reach), value + reach)


def compare(baseline: Launches, candidate: Launches) -> Interval:
    """The ratio of launch medians, candidate over baseline, of two separate runs.

    Raises:
        InputError: fewer than two launches, or one whose median no clock could tell from 0.
    """
    return _ratio(*run_ratio(_log_medians(baseline), _log_medians(candidate)))


def compare_pairs(baseline: Launches, candidate: Launches) -> Interval:
    """The same ratio when launch i of one ran next to launch i of the other, by turns A B B A.

    Whatever neighbours share cancels. A steady drift favours each side in turn, so over an even
    number of pairs it cancels too.

    Raises:
        InputError: as for `compare`, or the two have different numbers of launches.
    """
    return _ratio(*pair_ratio(*_pairs(baseline, candidate)))


def regressed(ratio: Interval) -> bool:
    """Whether a comparison claims a slowdown: surely above none, and probably worth stopping for.

    Noise is ruled out by the lower bound; the least effect is asked of the estimate, not of the
    bound, because that would take a slowdown of two such effects to be caught.
    """
    return ratio.low > 1 and ratio.value > 1 + MIN_EFFECT


def power(
    baseline: Launches,
    candidate: Launches,
    stage: Stage,
    paired: bool,
    min_effect: float = MIN_EFFECT,
    seed: int = 0,
) -> Power:
    """What a comparison of runs like these two can see.

    Equal runs of as many launches are drawn again and again, as widely spread as these launches
    allow their spread to be. The noise floor is the ratio that 95 % of such comparisons stay
    within; the smallest slowdown caught is the one that, put on the candidate, is claimed in 80 %.

    Raises:
        InputError: as for `compare` or `compare_pairs`.
    """
    random = np.random.default_rng(seed)
    if paired:
        a_N, b_N = _pairs(baseline, candidate)
        b_RN = _redrawn(b_N - a_N, random)
        value_R, reach_R = pair_ratio(np.zeros_like(b_RN), b_RN)
    else:
        a_RN = _redrawn(_log_medians(baseline), random)
        value_R, reach_R = run_ratio(a_RN, _redrawn(_log_medians(candidate), random))
    floor = np.quantile(np.abs(value_R), CONFIDENCE)
    caught = np.quantile(shortfall(value_R, reach_R, min_effect), CAUGHT)
    return Power(stage, _factor(floor), _factor(caught))


def shortfall(value_R: Array, reach_R: Array, min_effect: float = MIN_EFFECT) -> Array:
    """How much slower (log) a candidate would have to be to be claimed; below 0: it is claimed."""
    return np.maximum(reach_R, math.log1p(min_effect)) - value_R


def pair_ratio(baseline_RN: Array, candidate_RN: Array) -> tuple[Array, Array]:
    """Log ratio of neighbouring launches, and how far its bounds reach to each side.

    Takes logs of launch medians. The standard error is the one that resampling pairs tends to.
    """
    ratio_RN = candidate_RN - baseline_RN
    count = ratio_RN.shape[-1]
    error_R = ratio_RN.std(-1, ddof=1) / math.sqrt(count)
    return ratio_RN.mean(-1), student(count - 1) * error_R


def run_ratio(baseline_RN: Array, candidate_RN: Array) -> tuple[Array, Array]:
    """As `pair_ratio` for launches that have nothing to do with each other (Welch 1947)."""
    squares = [side.var(-1, ddof=1) / side.shape[-1] for side in (baseline_RN, candidate_RN)]
    freedoms = [side.shape[-1] - 1 for side in (baseline_RN, candidate_RN)]
    total_R = squares[0] + squares[1]
    share_R = np.divide(squares[0], total_R, out=np.full_like(total_R, 0.5), where=total_R > 0)
    freedom_R = 1 / (share_R**2 / freedoms[0] + (1 - share_R) ** 2 / freedoms[1])
    # Student's t bends upwards, so straight lines between whole numbers err to the wide side.
    whole = np.arange(1, sum(freedoms) + 1)
    t_R = np.interp(freedom_R, whole, [student(int(n)) for n in whole])
    return candidate_RN.mean(-1) - baseline_RN.mean(-1), t_R * np.sqrt(total_R)


@cache
def student(freedom: int) -> float:
    """Student's t that 95 % of the distribution stays within, by integrating its density.

    With t = sqrt(freedom) * tan(angle) the density is cos(angle) ** (freedom - 1): bounded, smooth.
    """
    angle = np.linspace(0, math.pi / 2, 8193)
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(np.interp(CONFIDENCE * below[-1], below, angle))


def _quantiles(values_V: Array, launch_V: NDArray[np.int_], weight_RN: Array, q: float) -> Array:
    """Quantiles of sorted values for each row of weights; where two values divide it, their mean.

    This is the inverse of the stepwise distribution, which at 0.5 is the ordinary median.
    """
    below_RV = np.cumsum(weight_RN[:, launch_V], axis=1)
    below_RV /= below_RV[:, -1:]
    low_R = np.sum(below_RV < q - 1e-9, axis=1)
    high_R = np.minimum(np.sum(below_RV < q + 1e-9, axis=1), len(values_V) - 1)
    return (values_V[low_R] + values_V[high_R]) / 2


def _redrawn(log_N: Array, random: np.random.Generator) -> Array:
    """Launches (R, N) of runs at log speed 0.

    Drawing the N at hand anew would promise too much: so few may well look calmer than they are.
    Each repeat therefore draws a true spread first, from those that could have shown this one.
    """
    freedom = len(log_N) - 1
    spread_R1 = log_N.std(ddof=1) * np.sqrt(freedom / random.chisquare(freedom, (REPEATS, 1)))
    return spread_R1 * random.standard_normal((REPEATS, len(log_N)))


def _ratio(value: Array, reach: Array) -> Interval:
    return Interval(_factor(value), _factor(value - reach), _factor(value + reach))


def _factor(log: SupportsFloat) -> float:
    # Two launches that have nothing in common leave room for more than a float can hold.
    return math.exp(min(float(log), 700.0))


def _pairs(baseline: Launches, candidate: Launches) -> tuple[Array, Array]:
    if len(baseline) != len(candidate):
        counts = f"{len(baseline)} and {len(candidate)} launches"
        raise InputError(f"{counts} make no pairs; measure both sides equally often, A B B A")
    return _log_medians(baseline), _log_medians(candidate)


def _log_medians(launches: Launches) -> Array:
    _check(launches, least=SHORTEST_MS)
    return np.log([np.median(row) for row in launches])


def _check(launches: Launches, least: float) -> None:
    if len(launches) < 2:
        raise InputError(f"launches: {len(launches)}, which have no spread; measure {MIN_LAUNCHES}")
    for i, row in enumerate(launches, 1):
        middle = float(np.median(row)) if len(row) else math.nan
        if not (np.isfinite(row).all() and middle >= least):
            raise InputError(f"launch {i}, of median {middle} ms, measured nothing; measure again")
