"""What stored palettes decode to, in half precision as Core ML's constant expressions have it.

Shapes: G groups of R output channels, v of them to a vector, P = R / v; N inputs; E entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Half = NDArray[np.float16]
Single = NDArray[np.float32]


def product(values: NDArray[Any], scales: NDArray[Any]) -> Half:
    """Products rounded to half precision; those beyond it are infinite."""
    with np.errstate(over="ignore"):  # exact in single precision, so rounded once
        return (values.astype(np.float32) * scales.astype(np.float32)).astype(np.float16)


def levels(
    luts_GEv: NDArray[Any],
    lut_scales_G: Half | None,
    scales_R: Half | None,
    outputs: int,
) -> Single:
    """What every index stands for in each output channel, (R, E)."""
    if lut_scales_G is not None:
        luts_GEv = product(luts_GEv, lut_scales_G[:, None, None])
    groups, entries, vector = luts_GEv.shape
    tiled = np.broadcast_to(
        luts_GEv.transpose(0, 2, 1)[:, None], (groups, outputs // groups // vector, vector, entries)
    )
    levels_RE = tiled.reshape(outputs, entries)
    if scales_R is not None:
        levels_RE = product(levels_RE, scales_R[:, None])
    return levels_RE.astype(np.float32)


def looked_up(codes_PN: NDArray[np.uint8], levels_RE: Single) -> Single:
    """The dense values (R, N) of indices, given what they stand for in each output channel."""
    vector = len(levels_RE) // len(codes_PN)
    values_RN = np.empty((len(levels_RE), codes_PN.shape[1]), np.float32)
    for row, own in enumerate(levels_RE):
        values_RN[row] = own[codes_PN[row // vector]]
    return values_RN
