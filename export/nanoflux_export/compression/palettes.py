"""Palettes: the best few half-precision values to stand for many, found exactly.

A group of weights has few distinct half-precision values, so it is counted first; `exact_kmeans`
then finds the clusters of least squared error. Groups are shared among threads.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nanoflux_export.compression.exact_kmeans import Below, Floats, best_cuts

Half = NDArray[np.float16]
Codes = NDArray[np.uint8]
Patterns = NDArray[np.int16]

_RANKS = 1 << 16
_ZERO = 1 << 15  # its rank
_INFINITY = 0x7C00  # its pattern, and so how many ranks it is above zero


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


def palette_groups(values: Half, bits: int, groups: int, axis: int = 0) -> tuple[Half, Codes]:
    """The palettes of all groups of a weight: `axis` is cut into `groups` equal parts.

    An entry is the mean of its cluster rounded to half precision, and each value gets the index of
    the entry nearest to it. The groups are shared among as many threads as OMP_NUM_THREADS says,
    or the machine has cores; their number never changes the result.

    Returns the entries (groups, 2**bits), each row as `palette` has it, and indices shaped as
    `values`.

    Raises:
        ValueError: as `palette` does, or groups that do not fill the axis.
    """
    if values.dtype != np.float16 or not values.size or not 1 <= bits <= 8:
        raise ValueError(f"cannot make a {bits}-bit palette of {values.size} {values.dtype} values")
    if groups < 1 or values.shape[axis] % groups:
        raise ValueError(f"cannot make a palette of each of {groups} parts of {values.shape[axis]}")
    ahead = np.ascontiguousarray(np.moveaxis(values, axis, 0))
    luts, codes = _fit_all(ahead.view(np.int16).reshape(groups, -1), 1 << bits)
    return luts, np.ascontiguousarray(np.moveaxis(codes.reshape(ahead.shape), 0, axis))


def snapped(values: Half, bits: int, *, groups: int = 1, axis: int = 0) -> Half:
    """`values` replaced by their palette entries; `axis` is cut into `groups`, a palette each."""
    luts, codes = palette_groups(values, bits, groups, axis)
    parts = zip(luts, np.split(codes, groups, axis), strict=True)
    return np.concatenate([lut[indices] for lut, indices in parts], axis)


def _fit_all(patterns_GN: Patterns, entries: int) -> tuple[Half, Codes]:
    groups, threads = len(patterns_GN), _threads()
    luts_GE = np.empty((groups, entries), np.float16)
    codes_GN = np.empty(patterns_GN.shape, np.uint8)
    step = math.ceil(groups / (4 * threads))  # small enough that no thread is left with much

    def fit(start: int) -> None:
        span = slice(start, start + step)
        _fit_span(patterns_GN[span], luts_GE[span], codes_GN[span])

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fit, range(0, groups, step)):  # raises what a thread raised
            pass
    return luts_GE, codes_GN


def _threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(asked) if asked.isdigit() and int(asked) else os.cpu_count() or 1


def _fit_span(patterns_GN: Patterns, luts_GE: Half, codes_GN: Codes) -> None:
    """Fill `luts_GE` and `codes_GN`."""
    ranked = _values_by_rank()
    means = np.empty(luts_GE.shape)
    if not _fill_means(patterns_GN, ranked, means):
        raise ValueError("cannot make a palette of values that are not finite")
    luts_GE[:] = means  # rounded: an entry moves, so the nearest may not be that of the cluster
    wide = luts_GE.astype(np.float64)
    finite = slice(_ZERO - _INFINITY + 1, _ZERO + _INFINITY)
    ends = np.searchsorted(ranked[finite], (wide[:, :-1] + wide[:, 1:]) / 2, side="right")
    _fill_codes(patterns_GN, ends + finite.start, codes_GN)


@cache
def _values_by_rank() -> Floats:
    ranks = np.arange(_RANKS)
    bits = np.where(ranks < _ZERO, _RANKS - ranks, ranks - _ZERO)
    values: Floats = bits.astype(np.uint16).view(np.float16).astype(np.float64)
    return values


@njit(cache=True, nogil=True)
def _rank(pattern: int) -> int:
    """A place in the order of the values, given the bits as a signed integer; zeros share one."""
    return pattern + _ZERO if pattern >= 0 else 0 - pattern  # 0 - widens: -pattern overflows


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_means(patterns: Patterns, ranked: Floats, means: Floats) -> bool:
    """The exact means of the best clusters of every row; False if a value is not finite."""
    counts = np.zeros(_RANKS, np.int32)
    most = min(patterns.shape[1], _RANKS) + 1
    values, weights = np.empty(most), np.empty(most)
    for group in range(len(patterns)):
        size = _distinct(patterns[group], ranked, counts, values, weights)
        if not size:
            return False
        if size <= means.shape[1]:
            for entry in range(means.shape[1]):
                means[group, entry] = values[min(entry, size - 1)]
        else:
            _cluster_means(values[:size], weights[:size], means[group])
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def _distinct(patterns: Any, ranked: Floats, counts: Any, values: Floats, weights: Floats) -> int:
    """How many distinct values there are, written in ascending order with their counts.

    0 if one is not finite. `counts`, by rank, is zero before and after.
    """
    lowest, highest = _RANKS, 0
    for pattern in patterns:
        lowest, highest = min(lowest, _rank(pattern)), max(highest, _rank(pattern))
    if lowest <= _ZERO - _INFINITY or highest >= _ZERO + _INFINITY:
        return 0
    for pattern in patterns:
        counts[_rank(pattern)] += 1
    size = 0
    for rank in range(lowest, highest + 1):  # without a branch, which would be a coin's toss
        values[size], weights[size] = ranked[rank], counts[rank]
        size += counts[rank] > 0
        counts[rank] = 0
    return size


@njit(cache=True, nogil=True, error_model="numpy")
def _cluster_means(values: Floats, weights: Floats, means: Floats) -> None:
    totals, sums, squares = _below(values, weights)
    cuts = best_cuts((totals, sums, squares), means.size)
    for run in range(means.size):
        start, end = cuts[run], cuts[run + 1]
        means[run] = (sums[end] - sums[start]) / (totals[end] - totals[start])


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
def _fill_codes(patterns: Patterns, ends: Any, codes: Codes) -> None:
    """The indices of the entries nearest to the values of every row.

    `ends` (rows, entries - 1) has the first rank above the values of each entry but the last.
    """
    by_rank = np.empty(_RANKS, np.uint8)
    for group in range(len(patterns)):
        start = 0
        for entry in range(ends.shape[1]):
            by_rank[start : ends[group, entry]] = entry
            start = ends[group, entry]
        by_rank[start:] = ends.shape[1]
        for at in range(patterns.shape[1]):
            codes[group, at] = by_rank[_rank(patterns[group, at])]
