"""One-dimensional k-means solved to the optimum by pricing the clusters.

The best clusters of sorted values are runs of neighbours, and what a run costs, its squared error
`c(i, j)` from cut i to cut j, obeys the quadrangle inequality
`c(a, c) + c(b, d) <= c(a, d) + c(b, c)` for a <= b <= c <= d (Wu, Journal of Algorithms 12, 1991).

Optimality: let every run cost `price` more. If the cheapest partition at some price has k runs, no
partition into k runs has less error, for at that price it would be cheaper. One pass over the
values finds it, however many runs it has, where the plain recurrence takes a pass for each run.

Existence: the quadrangle inequality makes the least error convex in the number of runs, so every k
has its price (Aggarwal, Schieber and Tokuyama, Discrete & Computational Geometry 12, 1994). Where
it is the price of other numbers too, a partition with fewer runs and one with more are both
cheapest; then there is a run of the first that holds one of the second with k - 1 runs around the
two, and by the inequality, changing over from the second to the first there costs nothing.

Cut i is the place above i distinct values; cut 0 is below them all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Cuts = NDArray[np.int64]
Below = tuple[Floats, Floats, Floats]
"""How many values there are from some fixed cut up to each cut, what they add up to, and what their
squares add up to; negative before that cut. Only differences matter."""

_COARSER = 8  # from one pass to the coarser one before it
_ENOUGH = 8  # cuts for each cluster that tell its price roughly
_NORMAL = 5.4  # price * clusters**3 / error of one cluster, for a normal distribution
_LEAPS = 8  # guesses before the price is only ever taken from two partitions around it


@njit(cache=True, nogil=True, error_model="numpy")
def best_cuts(below: Below, clusters: int) -> Any:
    """The cuts around the clusters with the least squared error: (clusters + 1,), ascending.

    There are more distinct values than `clusters`, which is at least 2. Counted from the cut at
    zero, `below` loses the least in rounding: half-precision values that differ do so by 2**-11 of
    their size, and nothing larger than the values of a run enters its error.
    """
    size, stride = below[0].size - 1, 1
    while stride * _COARSER * _ENOUGH * clusters <= size:
        stride *= _COARSER
    price = _NORMAL * _error(below, np.array([0, size])) / clusters**3
    while True:  # some of the cuts make a small problem whose price is nearly the same
        some = _every(below[0], stride), _every(below[1], stride), _every(below[2], stride)
        cuts, price = _search(some, clusters, price)
        if stride == 1:
            return cuts
        stride //= _COARSER


@njit(cache=True, nogil=True, error_model="numpy")
def _every(sums: Floats, stride: int) -> Any:
    """Every stride-th sum and the last."""
    size = sums.size - 1
    thinned = np.empty((size + stride - 1) // stride + 1)
    for at in range(thinned.size):
        thinned[at] = sums[min(at * stride, size)]
    return thinned


@njit(cache=True, nogil=True, error_model="numpy")
def _search(below: Below, clusters: int, price: float) -> Any:
    """The best cuts and a price at which they are cheapest; `price` is a first guess.

    At the price that makes a partition of too few runs and one of too many cost the same, the
    cheapest has a number between theirs, which narrows the search, or no partition beats them.
    """
    size = below[0].size - 1
    few, many = np.zeros(2, np.int64), np.empty(size + 1, np.int64)
    few[1] = size
    for cut in range(size + 1):
        many[cut] = cut
    dearest = _error(below, few)  # at which one run is cheapest
    few_found = many_found = chord = False
    attempt = 0
    while True:
        cuts = _cheapest(below, price)
        runs = cuts.size - 1
        if runs == clusters:
            return cuts, price
        if chord and not few.size < cuts.size < many.size:
            return _spliced(few, many, clusters), price
        if runs < clusters:
            few, few_found = cuts, True
        else:
            many, many_found = cuts, True
        attempt += 1
        chord = attempt > _LEAPS or (few_found and many_found)
        if chord:
            saved = _error(below, few) - _error(below, many)
            price = max(0.0, saved / (many.size - few.size))
        else:  # the error falls with the square of the number, at first, the price with its cube
            price = min(price * (runs / clusters) ** (3.0 * 2.0 ** (attempt - 1)), dearest)


@njit(cache=True, nogil=True, error_model="numpy")
def _spliced(few: Cuts, many: Cuts, clusters: int) -> Any:
    """Cuts of `many`, then of `few`, `clusters` runs in all; cheapest at any price both are."""
    ahead = clusters + 1 - few.size
    last = 0
    while few[last + 1] <= many[last + 1 + ahead]:
        last += 1
    cuts = np.empty(clusters + 1, np.int64)
    for at in range(clusters + 1):
        cuts[at] = many[at] if at <= last + ahead else few[at - ahead]
    return cuts


@njit(cache=True, nogil=True, error_model="numpy")
def _error(below: Below, cuts: Cuts) -> float:
    """The squared error of the runs between the cuts."""
    totals, sums, squares = below
    error = 0.0
    for run in range(cuts.size - 1):
        start, end = cuts[run], cuts[run + 1]
        share = sums[end] - sums[start]
        error += squares[end] - squares[start] - share * share / (totals[end] - totals[start])
    return error


@njit(cache=True, nogil=True, error_model="numpy")
def _cheapest(below: Below, price: float) -> Any:
    """The cuts of the partition that is cheapest with `price` for each run.

    `costs[j]` is the least for runs up to cut j, `starts[j]` where the last of them starts. Cuts
    are visited from the left. At each, every cut that halves the gap to one further on is given
    its best start up to the visited one: it lies between those of the gap's ends, as they do in
    totally monotone rows. Starts inside a gap are tried for its end when the gap's middle is
    visited, unless they are hopeless: the least cost up to a cut never falls, so that no start
    inside costs less than the gap's first.
    """
    size = below[0].size - 1
    costs, starts = np.zeros(size + 1), np.zeros(size + 1, np.int64)
    for cut in range(1, size + 1):
        costs[cut] = np.inf
    _try_starts(below, price, costs, starts, size, 0, 0)
    half = 1
    while half < size:
        half *= 2
    for left in range(size):
        if left:
            half = left & -left
            first, end = left - half + 1, min(left + half, size)
            if costs[first] + price < costs[end]:
                _try_starts(below, price, costs, starts, end, first, left)
        half //= 2
        while half:
            middle = left + half
            if middle < size:
                low, high = starts[left], starts[min(middle + half, size)]
                _try_starts(below, price, costs, starts, middle, low, high)
            half //= 2
    return _followed(starts)


@njit(cache=True, nogil=True, error_model="numpy")
def _try_starts(
    below: Below, price: float, costs: Floats, starts: Cuts, end: int, low: int, high: int
) -> None:
    """Give cut `end` the best start of its run in low..high if it is better than what it has."""
    totals, sums, squares = below
    best, best_start = costs[end] - price, starts[end]
    end_sum, end_total, end_square = sums[end], totals[end], squares[end]  # in registers
    for cut in range(low, high + 1):  # all the work is here
        share = end_sum - sums[cut]
        error = end_square - squares[cut] - share * share / (end_total - totals[cut])
        if costs[cut] + error < best:
            best, best_start = costs[cut] + error, cut
    costs[end], starts[end] = best + price, best_start


@njit(cache=True, nogil=True, error_model="numpy")
def _followed(starts: Cuts) -> Any:
    """The starts that lead from the last cut back to cut 0, in ascending order."""
    runs, cut = 0, starts.size - 1
    while cut:
        runs, cut = runs + 1, starts[cut]
    cuts = np.zeros(runs + 1, np.int64)
    cuts[runs] = starts.size - 1
    for run in range(runs, 0, -1):
        cuts[run - 1] = starts[cuts[run]]
    return cuts
