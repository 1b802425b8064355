"""How often ways of comparing two versions cry wolf, and how often they see a real slowdown.

    python benchmarks/gate_study/simulate.py --trials 1000

Sessions are drawn from a model of a phone whose truth is known, and every method judges the same
sessions. Prints Markdown tables, then one line of JSON. Exit code 1 when the gate's own method,
eight pairs A B B A, breaks its promise: at most 2 % false alarms, at least 90 % of slowdowns of 5 %
caught.

Shapes: T trials, N launches, I images, V images of all launches, R resamples.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nanoflux_benchmarks import stats

Array = NDArray[np.float64]
Slots = tuple[NDArray[np.int_], NDArray[np.int_]]
CHANGES = (0.0, 0.03, 0.05, 0.10)
LAUNCHES = (3, 5, 8)
IMAGES = stats.MIN_IMAGES
MS = 250.0
SEED = 20260131
RESAMPLES = 300
MOST_FALSE_ALARMS, LEAST_CAUGHT = 0.02, 0.90


@dataclass(frozen=True)
class Noise:
    """A phone's mood; all sizes are shares of the time. A promised one binds the exit code."""

    name: str
    launch: float = 0.02
    image: float = 0.015
    outliers: float = 0.06
    outlier: float = 0.12
    drift: float = 0.0
    heating: float = 0.0
    wander: float = 0.0
    throttled: float = 0.0
    stray: float = 0.0
    promised: bool = True


PLAIN = Noise("launch noise, outliers")
HEAVY = replace(PLAIN, name="heavy outliers", outliers=0.15, outlier=0.40)
DRIFT = replace(PLAIN, name="drift of 3 %", drift=0.03)
ALL = replace(PLAIN, name="drift, throttling, outliers", drift=0.03, throttled=0.5)
NOISES = (
    PLAIN,
    DRIFT,
    replace(PLAIN, name="heating up by 6 %", heating=0.06),
    replace(PLAIN, name="throttling in launches", throttled=0.5),
    HEAVY,
    ALL,
    replace(
        HEAVY, name="drift, throttling, heavy outliers", drift=0.03, throttled=0.5, promised=False
    ),
    replace(PLAIN, name="wandering by 1 % a launch", wander=0.01, promised=False),
    replace(PLAIN, name="every tenth launch +10 %", stray=0.10, promised=False),
)


def _abba(count: int) -> Slots:
    first = np.arange(count) * 2
    swapped = np.arange(count) % 2
    return first + swapped, first + 1 - swapped


DESIGNS: dict[str, Callable[[int], Slots]] = {
    "A B B A": _abba,
    "all A, then all B": lambda count: (np.arange(count), np.arange(count) + count),
    "A and B on two days": lambda count: (np.arange(count), np.arange(count)),
}
"""When each launch of either side starts, counted in launches since its session began."""
DAY = 0.01


def session(
    noise: Noise, design: str, count: int, trials: int, random: np.random.Generator
) -> list[Array]:
    """Times in ms of both sides (T, N, I), equally fast in truth."""
    slots = DESIGNS[design](count)
    apart = design.endswith("days")
    last = max(int(slot.max()) for slot in slots)
    steps_TS = random.normal(0, noise.wander, (trials, last + 1))
    sides = []
    for slot_N in slots:
        if apart:
            steps_TS = random.normal(0, noise.wander, (trials, last + 1))
        log_TN = random.normal(0, noise.launch, (trials, count)) + steps_TS.cumsum(1)[:, slot_N]
        log_TN += np.log1p(noise.drift * slot_N / last)
        log_TN += np.log1p(noise.heating * (1 - np.exp(-slot_N / 3)))
        log_TN += np.log1p(0.10) * (random.random((trials, count)) < noise.stray)
        log_TN += DAY * apart * random.normal(size=(trials, 1))
        sides.append(MS * np.exp(log_TN[:, :, None] + _images(noise, trials, count, random)))
    return sides


def _images(noise: Noise, trials: int, count: int, random: np.random.Generator) -> Array:
    shape = trials, count, IMAGES
    log_TNI = random.normal(0, noise.image, shape)
    # Heavy outliers have a long tail of their own, light ones one size.
    size = random.exponential(noise.outlier, shape) if noise.outlier > 0.2 else noise.outlier
    log_TNI += np.log1p(size) * (random.random(shape) < noise.outliers)
    begins_TN1 = random.integers(6, IMAGES, (trials, count, 1))
    hot_TN1 = random.random((trials, count, 1)) < noise.throttled
    return log_TNI + 0.05 * hot_TN1 * np.clip(np.arange(IMAGES) - begins_TN1 + 1, 0, None)


def pooled_bootstrap(a_TNI: Array, b_TNI: Array) -> NDArray[np.bool_]:
    """Resample images as if launches did not exist; the lower bound of the ratio is above 1."""
    random = np.random.default_rng(SEED)
    medians = [_resampled_medians(side.reshape(len(side), -1), random) for side in (a_TNI, b_TNI)]
    return np.quantile(medians[1] / medians[0], 0.025, axis=1) > 1


def _resampled_medians(x_TV: Array, random: np.random.Generator) -> Array:
    """Medians of resamples, drawn as what they are: order statistics k and k + 1 of V draws."""
    count = x_TV.shape[1]
    k = count // 2
    low_R = random.beta(k, count - k + 1, RESAMPLES)
    high_R = low_R + (1 - low_R) * (1 - random.random(RESAMPLES) ** (1 / (count - k)))
    places = [np.minimum((count * at_R).astype(int), count - 1) for at_R in (low_R, high_R)]
    sorted_TV = np.sort(x_TV, axis=1)
    return (sorted_TV[:, places[0]] + sorted_TV[:, places[1]]) / 2


def pooled_ranks(a_TNI: Array, b_TNI: Array) -> NDArray[np.bool_]:
    """Mann-Whitney over all images, 5 % two-sided and slower; simulated times have no ties."""
    a_TV, b_TV = (side.reshape(len(side), -1) for side in (a_TNI, b_TNI))
    count = a_TV.shape[1]
    order_TV = np.argsort(np.concatenate([a_TV, b_TV], axis=1), axis=1)
    # Ranks of b are the places where the order names one of its columns.
    rank_sum_T = ((order_TV >= count) * np.arange(1, 2 * count + 1)).sum(1)
    u_T = rank_sum_T - count * (count + 1) / 2
    return (u_T - count**2 / 2) / np.sqrt(count**2 * (2 * count + 1) / 12) > 1.96


def mean_threshold(a_TNI: Array, b_TNI: Array) -> NDArray[np.bool_]:
    """The mean of everything grew by more than 5 %."""
    return b_TNI.mean((1, 2)) > 1.05 * a_TNI.mean((1, 2))


def launch_bootstrap(a_TNI: Array, b_TNI: Array) -> NDArray[np.bool_]:
    """Percentiles of resampled launches; the lower bound of the ratio is above 1."""
    return percentile_bounds(*_log_medians(a_TNI, b_TNI))[0] > 0


def percentile_bounds(a_TN: Array, b_TN: Array) -> Array:
    """The 2.5 and 97.5 % percentiles (2, T) of log ratios over resampled launches."""
    random, count = np.random.default_rng(SEED), a_TN.shape[1]
    weights = [random.multinomial(count, [1 / count] * count, RESAMPLES) / count for _ in "ab"]
    return np.quantile(b_TN @ weights[1].T - a_TN @ weights[0].T, [0.025, 0.975], axis=1)


def ours_unpaired(a_TNI: Array, b_TNI: Array) -> NDArray[np.bool_]:
    """What the gate does with two reports of separate sessions."""
    return stats.shortfall(*stats.run_ratio(*_log_medians(a_TNI, b_TNI))) < 0


def ours_paired(a_TNI: Array, b_TNI: Array) -> NDArray[np.bool_]:
    """What the gate does with two reports of one session A B B A."""
    return stats.shortfall(*stats.pair_ratio(*_log_medians(a_TNI, b_TNI))) < 0


def _log_medians(*sides_TNI: Array) -> list[Array]:
    return [np.log(np.median(side, axis=2)) for side in sides_TNI]


METHODS: dict[str, Callable[[Array, Array], NDArray[np.bool_]]] = {
    "images pooled, bootstrap": pooled_bootstrap,
    "images pooled, Mann-Whitney": pooled_ranks,
    "means, 5 % threshold": mean_threshold,
    "launches, percentile bootstrap": launch_bootstrap,
    "gate, unpaired": ours_unpaired,
    "gate, pairs": ours_paired,
}


@dataclass(frozen=True)
class Row:
    """One situation, and the share that each method flagged at each true change."""

    design: str
    noise: str
    launches: int
    promised: bool
    flagged: dict[str, list[float]]


def study(trials: int) -> Iterator[Row]:
    """Every situation, in the table's order."""
    for d, design in enumerate(DESIGNS):
        noises = NOISES if design == "A B B A" else (PLAIN, DRIFT, ALL)
        for noise in noises:
            for count in LAUNCHES:
                random = np.random.default_rng([SEED, d, NOISES.index(noise), count])
                a_TNI, b_TNI = session(noise, design, count, trials, random)
                flagged = {
                    name: [float(method(a_TNI, b_TNI * (1 + c)).mean()) for c in CHANGES]
                    for name, method in METHODS.items()
                    if method is not ours_paired or design == "A B B A"
                }
                promised = noise.promised and design == "A B B A" and count == max(LAUNCHES)
                yield Row(design, noise.name, count, promised, flagged)


def coverage(count: int, trials: int) -> dict[str, float]:
    """Shares of 95 % intervals that hold the truth, and whether `power` keeps its word."""
    random = np.random.default_rng([SEED, count])
    a_TNI, b_TNI = session(PLAIN, "A B B A", count, trials, random)
    logs = _log_medians(a_TNI, b_TNI)
    low_T, high_T = percentile_bounds(*logs)
    value_T, reach_T = stats.pair_ratio(*logs)
    crowd = session(PLAIN, "A B B A", 2000, 20, random)[0]
    found = {
        "ratio, percentile bootstrap": float(((low_T <= 0) & (high_T >= 0)).mean()),
        "ratio, gate": float((np.abs(value_T) <= reach_T).mean()),
    }
    for name, q in (("median, gate", 0.5), ("90 % quantile, gate", 0.9)):
        truth = float(np.quantile(crowd, q))
        bounds = [stats.quantile_interval(run, q) for run in a_TNI]
        found[name] = sum(each.low <= truth <= each.high for each in bounds) / trials
    told = [stats.power(a, b, "image", True) for a, b in zip(a_TNI, b_TNI, strict=True)]
    floors_T = np.log([power.noise_floor for power in told])
    caught_T = np.log([power.smallest_caught for power in told])
    value_T, reach_T = stats.pair_ratio(
        *_log_medians(*session(PLAIN, "A B B A", count, 4000, random))
    )
    found["noise floor as told"] = float(np.expm1(np.median(floors_T)))
    found["equal runs within"] = _share_below(np.abs(value_T), floors_T)
    found["smallest slowdown as told"] = float(np.expm1(np.median(caught_T)))
    found["such a one caught"] = _share_below(stats.shortfall(value_T, reach_T), caught_T)
    return found


def _share_below(fresh_T: Array, told_T: Array) -> float:
    """How often a fresh session stays below what another session told, over all of both."""
    return float(np.searchsorted(np.sort(fresh_T), told_T).mean() / len(fresh_T))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Run, print, and say whether the promise holds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=400, help="sessions per row of the table")
    trials = parser.parse_args().trials
    rows = []
    for row in study(trials):
        rows.append(row)
        print(f"{row.design}, {row.noise}, {row.launches} launches", file=sys.stderr)
    checks = {count: coverage(count, min(trials, 400)) for count in LAUNCHES}
    cells = [[r.design, r.noise, str(r.launches), *_cells(r.flagged)] for r in rows]
    print(table(["order", "noise", "launches", *METHODS], cells), end="\n\n")
    names = list(next(iter(checks.values())))
    print(table(["launches", *names], [_check_row(n, found) for n, found in checks.items()]))
    promised = [row.flagged["gate, pairs"] for row in rows if row.promised]
    most, least = max(r[0] for r in promised), min(r[CHANGES.index(0.05)] for r in promised)
    kept = most <= MOST_FALSE_ALARMS and least >= LEAST_CAUGHT
    summary = {"trials": trials, "seed": SEED, "kept": kept, "false_alarms": most, "caught": least}
    print("\n" + json.dumps({**summary, "rows": [vars(row) for row in rows], "checks": checks}))
    return 0 if kept else 1


def _cells(flagged: dict[str, list[float]]) -> list[str]:
    texts = {
        name: f"{100 * none:.1f} / " + " / ".join(f"{100 * share:.0f}" for share in rest)
        for name, (none, *rest) in flagged.items()
    }
    return [texts.get(name, "") for name in METHODS]


def _check_row(count: int, found: dict[str, float]) -> list[str]:
    return [str(count), *(f"{100 * share:.1f} %" for share in found.values())]


if __name__ == "__main__":
    sys.exit(main())
