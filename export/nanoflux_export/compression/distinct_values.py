"""The distinct values of half precision among many, by rank: their place in the order of them all.

Where a mass is kept for each rank, one pass over values in any order sorts them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nanoflux_export.compression.exact_kmeans import Floats

Patterns = NDArray[np.int16]
"""The bits of half-precision values, as signed integers."""

RANKS = 1 << 16
ZERO = 1 << 15  # its rank
INFINITY = 0x7C00  # its pattern, and so how many ranks it is above zero
_LEAST_WEIGHT = 2.0**-40
"""Of a value, as a share of what all weigh: less would be lost in sums of double precision."""


@cache
def values_by_rank() -> Floats:
    """What has each rank: 65,536 values, those of NaN beyond both infinities."""
    ranks = np.arange(RANKS)
    bits = np.where(ranks < ZERO, RANKS - ranks, ranks - ZERO)
    values: Floats = bits.astype(np.uint16).view(np.float16).astype(np.float64)
    return values


@njit(cache=True, nogil=True)
def rank(pattern: int) -> int:
    """A place in the order of the values, given the bits as a signed integer; zeros share one."""
    return pattern + ZERO if pattern >= 0 else 0 - pattern  # 0 - widens: -pattern overflows


@njit(cache=True, nogil=True)
def ends(patterns: Any) -> tuple[int, int]:
    """The ranks of the least and the greatest value; beyond those of infinity for NaN."""
    lowest, highest = RANKS, 0
    for pattern in patterns:
        lowest, highest = min(lowest, rank(pattern)), max(highest, rank(pattern))
    return lowest, highest


@njit(cache=True, nogil=True)
def count(patterns: Any, counts: Any) -> None:
    """Add up how often each distinct value occurs."""
    for pattern in patterns:
        counts[rank(pattern)] += 1


@njit(cache=True, nogil=True)
def weigh(patterns: Any, weights: Floats, masses: Floats) -> None:
    """Add up what each distinct value weighs, if anything; never too little to be told."""
    least = _LEAST_WEIGHT * weights.sum()
    for at in range(patterns.size):
        masses[rank(patterns[at])] += weights[at]
    for pattern in patterns:
        mass = masses[rank(pattern)]
        if 0 < mass < least:
            masses[rank(pattern)] = least


@njit(cache=True, nogil=True, error_model="numpy")
def distinct(
    lowest: int, highest: int, ranked: Floats, masses: Any, values: Floats, totals: Floats
) -> int:
    """How many distinct values have a mass, written in ascending order with it.

    `masses`, by rank, has some from `lowest` to `highest` alone, and is zero after.
    """
    size = 0
    for place in range(lowest, highest + 1):  # without a branch, which would be a coin's toss
        values[size], totals[size] = ranked[place], masses[place]
        size += masses[place] > 0
        masses[place] = 0
    return size
