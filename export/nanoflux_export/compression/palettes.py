"""Palettes: the best few half-precision values to stand for many, found exactly.

A group of weights has few distinct half-precision values, so it is counted first, or what its
values weigh is added up; `exact_kmeans` then finds the clusters of least (weighted) squared error.
Groups are shared among threads.

What is exact: the partition into clusters and their means, but for the rounding of double
precision. What is not: an entry is its mean rounded to half precision.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nanoflux_export.compression.distinct_values import (
    INFINITY,
    RANKS,
    ZERO,
    Patterns,
    count,
    distinct,
    ends,
    rank,
    values_by_rank,
    weigh,
)
from nanoflux_export.compression.exact_kmeans import Below, Floats, best_cuts

Half = NDArray[np.float16]
Codes = NDArray[np.uint8]


def palette(values: Half, bits: int) -> tuple[Half, Codes]:
    """The palette of 2**bits entries with the least squared error, and each value's index in it.

    Returns the entries (2**bits,) in ascending order, and indices shaped as `values`. With no more
    distinct values than entries the palette holds them all, the greatest repeated to fill it.

    Raises:
        ValueError: `values` is empty or not float16, holds infinities or NaN, or `bits` is not
            in 1..8.
    """
    luts, codes = palette_groups(values.reshape(-1), bits, 1)
    return luts[0], codes.reshape(values.shape)


def palette_groups(
    values: Half, bits: int, groups: int, axis: int = 0, weights: NDArray[Any] | None = None
) -> tuple[Half, Codes]:
    """The palettes of all groups of a weight: `axis` is cut into `groups` equal parts.

    An entry is the mean of its cluster rounded to half precision, and each value gets the index of
    the entry nearest to it. The groups are shared among as many threads as OMP_NUM_THREADS says,
    or the machine has cores; their number never changes the result.

    `weights`, of a shape that broadcasts to that of `values`, say what the squared error of each
    value counts for; only their ratios within a group matter. Values that weigh nothing are left
    out of the fit, unless nothing in the group weighs anything: then all count alike. A distinct
    value that weighs less than 2**-40 of its group counts for that much.

    Returns the entries (groups, 2**bits), each row as `palette` has it, and indices shaped as
    `values`.

    Raises:
        ValueError: as `palette` does, groups that do not fill the axis, or weights that are
            negative or not finite.
    """
    if values.dtype != np.float16 or not values.size or not 1 <= bits <= 8:
        raise ValueError(f"cannot make a {bits}-bit palette of {values.size} {values.dtype} values")
    if groups < 1 or values.shape[axis] % groups:
        raise ValueError(f"cannot make a palette of each of {groups} parts of {values.shape[axis]}")
    if weights is not None and not (np.isfinite(weights) & (np.asarray(weights) >= 0)).all():
        raise ValueError("cannot make a palette with weights that are negative or not finite")
    ahead = np.ascontiguousarray(np.moveaxis(values, axis, 0))
    parts = None if weights is None else _parts(weights, values.shape, groups, axis)
    luts, codes = _fit_all(ahead.view(np.int16).reshape(groups, -1), 1 << bits, parts)
    return luts, np.ascontiguousarray(np.moveaxis(codes.reshape(ahead.shape), 0, axis))


def snapped(
    values: Half,
    bits: int,
    *,
    groups: int = 1,
    axis: int = 0,
    weights: NDArray[Any] | None = None,
) -> Half:
    """`values` replaced by their palette entries; `axis` is cut into `groups`, a palette each."""
    luts, codes = palette_groups(values, bits, groups, axis, weights)
    parts = zip(luts, np.split(codes, groups, axis), strict=True)
    return np.concatenate([lut[indices] for lut, indices in parts], axis)


def _parts(weights: NDArray[Any], shape: tuple[int, ...], groups: int, axis: int) -> NDArray[Any]:
    """A view of the weights whose first axis counts groups; broadcast axes take no memory."""
    ahead = np.moveaxis(np.broadcast_to(weights, shape), axis, 0)
    return ahead.reshape(groups, len(ahead) // groups, *ahead.shape[1:])


def _fit_all(
    patterns_GN: Patterns, entries: int, weights_GX: NDArray[Any] | None
) -> tuple[Half, Codes]:
    groups, threads = len(patterns_GN), thread_count()
    luts_GE = np.empty((groups, entries), np.float16)
    codes_GN = np.empty(patterns_GN.shape, np.uint8)
    step = math.ceil(groups / (4 * threads))  # small enough that no thread is left with much

    def fit(start: int) -> None:
        span = slice(start, start + step)
        weights_GN = None if weights_GX is None else _normal_weights(weights_GX[span])
        _fit_span(patterns_GN[span], weights_GN, luts_GE[span], codes_GN[span])

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fit, range(0, groups, step)):  # raises what a thread raised
            pass
    return luts_GE, codes_GN


def _normal_weights(weights_GX: NDArray[Any]) -> Floats:
    """A row for each group, the greatest of it 1; ones for a group without any weight."""
    weights_GN = weights_GX.astype(np.float64).reshape(len(weights_GX), -1)
    most_G1 = weights_GN.max(1, keepdims=True)
    weights_GN /= np.where(most_G1 > 0, most_G1, 1)
    weights_GN[most_G1[:, 0] == 0] = 1
    return weights_GN


def thread_count() -> int:
    """Threads to share work among: what OMP_NUM_THREADS says, or one for each core."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(asked) if asked.isdigit() and int(asked) else os.cpu_count() or 1


def _fit_span(
    patterns_GN: Patterns, weights_GN: Floats | None, luts_GE: Half, codes_GN: Codes
) -> None:
    """Fill `luts_GE` and `codes_GN`."""
    ranked = values_by_rank()
    means = np.empty(luts_GE.shape)
    masses = np.zeros(RANKS, np.int32 if weights_GN is None else np.float64)
    if not _fill_means(patterns_GN, weights_GN, ranked, masses, means):
        raise ValueError("cannot make a palette of values that are not finite")
    luts_GE[:] = means  # rounded: an entry moves, so the nearest may not be that of the cluster
    wide = luts_GE.astype(np.float64)
    finite = slice(ZERO - INFINITY + 1, ZERO + INFINITY)
    tops = np.searchsorted(ranked[finite], (wide[:, :-1] + wide[:, 1:]) / 2, side="right")
    _fill_codes(patterns_GN, tops + finite.start, codes_GN)


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_means(
    patterns: Patterns, weights: Any, ranked: Floats, masses: Any, means: Floats
) -> bool:
    """The exact means of the best clusters of every row; False if a value is not finite."""
    most = min(patterns.shape[1], RANKS) + 1
    values, totals = np.empty(most), np.empty(most)
    for group in range(len(patterns)):
        lowest, highest = ends(patterns[group])
        if lowest <= ZERO - INFINITY or highest >= ZERO + INFINITY:
            return False
        if weights is None:
            count(patterns[group], masses)
        else:
            weigh(patterns[group], weights[group], masses)
        size = distinct(lowest, highest, ranked, masses, values, totals)
        if size <= means.shape[1]:
            for entry in range(means.shape[1]):
                means[group, entry] = values[min(entry, size - 1)]
        else:
            _cluster_means(values[:size], totals[:size], means[group])
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def _cluster_means(values: Floats, weights: Floats, means: Floats) -> None:
    cuts = best_cuts(_below(values, weights), means.size)
    for run in range(means.size):
        total = product = 0.0  # not from the sums below, where a light cluster drowns
        for at in range(cuts[run], cuts[run + 1]):
            total += weights[at]
            product += weights[at] * values[at]
        means[run] = product / total


@njit(cache=True, nogil=True, error_model="numpy")
def _below(values: Floats, weights: Floats) -> Below:
    size, zero = values.size, 0
    while zero < size and values[zero] < 0:
        zero += 1
    totals, sums, squares = np.zeros(size + 1), np.zeros(size + 1), np.zeros(size + 1)
    for at in range(zero, size):
        totals[at + 1] = totals[at] + weights[at]
        sums[at + 1] = sums[at] + weights[at] * values[at]
        squares[at + 1] = squares[at] + weights[at] * values[at] * values[at]
    for at in range(zero - 1, -1, -1):
        totals[at] = totals[at + 1] - weights[at]
        sums[at] = sums[at + 1] - weights[at] * values[at]
        squares[at] = squares[at + 1] - weights[at] * values[at] * values[at]
    return totals, sums, squares


@njit(cache=True, nogil=True)
def _fill_codes(patterns: Patterns, tops: Any, codes: Codes) -> None:
    """The indices of the entries nearest to the values of every row.

    `tops` (rows, entries - 1) has the first rank above the values of each entry but the last.
    """
    by_rank = np.empty(RANKS, np.uint8)
    for group in range(len(patterns)):
        start = 0
        for entry in range(tops.shape[1]):
            by_rank[start : tops[group, entry]] = entry
            start = tops[group, entry]
        by_rank[start:] = tops.shape[1]
        for at in range(patterns.shape[1]):
            codes[group, at] = by_rank[rank(patterns[group, at])]
