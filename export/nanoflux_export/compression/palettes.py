"""Palettes: the best few half-precision values to stand for many, found exactly.

One-dimensional k-means is solved to the optimum by dynamic programming over the distinct values
(Wang and Song, The R Journal 3(2), 2011): a cluster is a run of neighbours, and the best start of
the last run moves right as values are added or as clusters are, which bounds each search.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Half = NDArray[np.float16]
Codes = NDArray[np.uint8]
Floats = NDArray[np.float64]

_KEYS = 1 << 16


def palette(values: Half, bits: int) -> tuple[Half, Codes]:
    """The palette of 2**bits entries with the least squared error, and each value's index in it.

    Returns the entries (2**bits,) in ascending order, and indices shaped as `values`. With no more
    distinct values than entries the palette holds them all, the greatest repeated to fill it.

    Raises:
        ValueError: `values` is empty or not float16, holds infinities or NaN, or `bits` is not
            in 1..8.
    """
    if values.dtype != np.float16 or not values.size or not 1 <= bits <= 8:
        raise ValueError(f"cannot make a {bits}-bit palette of {values.size} {values.dtype} values")
    keys = _ordered_keys(values)
    counts = np.bincount(keys.ravel(), minlength=_KEYS)
    present = np.flatnonzero(counts)
    distinct = _values_of(present)
    if not np.isfinite(distinct[[0, -1]]).all():
        raise ValueError("cannot make a palette of values that are not finite")
    entries = _best_entries(distinct, counts[present], 1 << bits)
    codes = np.zeros(_KEYS, np.uint8)
    codes[present] = _nearest(distinct, entries)
    filled = np.concatenate((entries, np.repeat(entries[-1:], (1 << bits) - entries.size)))
    return filled, codes[keys]


def snapped(values: Half, bits: int, *, groups: int = 1, axis: int = 0) -> Half:
    """`values` replaced by their palette entries; `axis` is cut into `groups`, a palette each."""
    parts = (palette(part, bits) for part in np.split(values, groups, axis))
    return np.concatenate([lut[indices] for lut, indices in parts], axis)


def _ordered_keys(values: Half) -> NDArray[np.uint16]:
    """Integers in the order of the values; the two zeros share one."""
    signed = np.ascontiguousarray(values).view(np.int16)
    keys: NDArray[np.uint16] = (signed ^ ((signed >> 15) | np.int16(-0x8000))).view(np.uint16)
    keys[keys == 0x7FFF] = 0x8000
    return keys


def _values_of(keys: NDArray[np.intp]) -> Half:
    """The values that `_ordered_keys` gives these keys."""
    bits = np.where(keys >= 0x8000, keys ^ 0x8000, keys ^ 0xFFFF)
    return bits.astype(np.uint16).view(np.float16)


def _best_entries(distinct: Half, counts: NDArray[np.intp], most: int) -> Half:
    if distinct.size <= most:
        return distinct
    wide, weights = distinct.astype(np.float64), counts.astype(np.float64)
    middle = np.average(wide, weights=weights)  # sums of deviations cancel less than sums of values
    sums = np.concatenate(([0.0], np.cumsum((wide - middle) * weights)))
    totals = np.concatenate(([0.0], np.cumsum(weights)))
    edges = _cluster_edges(sums, totals, most)
    means: Floats = middle + np.diff(sums[edges]) / np.diff(totals[edges])
    return means.astype(np.float16)


def _nearest(distinct: Half, entries: Half) -> NDArray[np.intp]:
    """For each value its nearest entry: means moved when they were rounded to half precision."""
    wide = entries.astype(np.float64)
    return np.searchsorted((wide[:-1] + wide[1:]) / 2, distinct.astype(np.float64))


@njit(cache=True)
def _cluster_edges(sums: Floats, totals: Floats, clusters: int) -> Any:
    """Where the best clusters begin, and the end of the last: (clusters + 1,).

    The squared error is what the values have at all less `sum**2 / total` of every cluster, so the
    search gathers as much of that as it can.
    """
    size = sums.size - 1
    starts = np.zeros((clusters, size), np.int32)
    gathered = sums[1:] ** 2 / totals[1:]
    for cluster in range(1, clusters):
        gathered = _add_cluster(sums, totals, gathered, starts[cluster - 1], starts[cluster])
    edges = np.empty(clusters + 1, np.int64)
    edges[clusters] = size
    for cluster in range(clusters - 1, -1, -1):
        edges[cluster] = starts[cluster, edges[cluster + 1] - 1]
    return edges


@njit(cache=True)
def _add_cluster(sums: Floats, totals: Floats, before: Floats, lower: Any, starts: Any) -> Any:
    """What one cluster more gathers up to each value; its best start goes to `starts`.

    Values are visited coarse to fine, so that the starts of two visited neighbours bound the
    search; the start with one cluster less, `lower`, bounds it too.
    """
    size = before.size
    gathered = np.empty(size)
    stride = 1
    while stride < size:
        stride *= 2
    while stride:
        for last in range(stride - 1, size, 2 * stride):
            low, high = max(1, lower[last]), last
            if last >= stride:
                low = max(low, starts[last - stride])
            if last + stride < size:
                high = min(high, starts[last + stride])
            found = _best_start(sums, totals, before, last, low, high)
            starts[last], gathered[last] = found
        stride //= 2
    return gathered


@njit(cache=True)
def _best_start(
    sums: Floats, totals: Floats, before: Floats, last: int, low: int, high: int
) -> tuple[int, float]:
    """Where in low..high the cluster that ends at `last` starts best, and what is gathered then."""
    best, best_start = -np.inf, 0
    end_sum, end_total = sums[last + 1], totals[last + 1]  # in registers: this loop is all the work
    for start in range(low, high + 1):
        share = end_sum - sums[start]
        gathered = before[start - 1] + share * share / (end_total - totals[start])
        if gathered > best:
            best, best_start = gathered, start
    return best_start, best
