"""How far to clip the values of a run so that integers with one scale err least.

Shapes: O output channels; B runs of each, with a scale; N values in a run.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nanoflux_export.compression.palettes import thread_count

Single = NDArray[np.float32]

_CLIPS = np.linspace(0.45, 1, 20)
"""Shares of the greatest magnitude that may become the greatest integer."""

_ROWS = 64  # of output channels, a thread's share


def clipped_scales(
    values_OBN: Single, weights_OBN: NDArray[Any] | None, unclipped_OB: Single, most: int
) -> Single:
    """Scales (O, B) for integers -most - 1 to most, given those at which nothing is clipped."""
    ones = np.float64(1)
    weights = np.broadcast_to(ones if weights_OBN is None else weights_OBN, values_OBN.shape)
    scales_OB = np.empty_like(unclipped_OB)

    def fit(start: int) -> None:
        span = slice(start, start + _ROWS)
        counted = np.ascontiguousarray(weights[span], np.float64)
        _fill_scales(values_OBN[span], counted, unclipped_OB[span], most, scales_OB[span])

    with ThreadPoolExecutor(thread_count()) as pool:
        for _ in pool.map(fit, range(0, len(values_OBN), _ROWS)):  # raises what a thread raised
            pass
    return scales_OB


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_scales(
    values_OBN: Single, weights_OBN: Any, unclipped_OB: Single, most: int, scales_OB: Single
) -> None:
    """The best scales for the integers that any of the clips leads to.

    Of integers q for values x, the best scale is sum(w x q) / sum(w q q); it takes
    sum(w x q)**2 / sum(w q q) off the error that all zeros would have.
    """
    for row in range(values_OBN.shape[0]):
        for block in range(values_OBN.shape[1]):
            best, scale = 0.0, unclipped_OB[row, block]
            for clip in _CLIPS:
                step = 1 / (clip * unclipped_OB[row, block])
                product = square = 0.0
                for at in range(values_OBN.shape[2]):
                    value = np.float64(values_OBN[row, block, at])
                    code = min(max(np.rint(value * step), -most - 1.0), np.float64(most))
                    weighed = weights_OBN[row, block, at] * code
                    product += weighed * value
                    square += weighed * code
                if square > 0 and product * product > best * square:
                    best, scale = product * product / square, product / square
            scales_OB[row, block] = scale
