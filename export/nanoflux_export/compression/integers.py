"""Weights as small integers times a scale, for Core ML and, as its quantiser has it, for LiteRT.

Shapes: O output channels; B equal runs of input channels with a scale each; N values in a run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int8]
Single = NDArray[np.float32]

_HALF_MAX = 65504.0
_LEAST_HALF = 2.0**-24
_LEAST_BOUND = 1e-9  # what ai-edge-quantizer takes for a channel of zeros


def in_runs(values: NDArray[Any], axis: int, blocks: int) -> NDArray[Any]:
    """A weight as (O, B, N); `axis` counts outputs, and the first of the others inputs."""
    ahead = np.moveaxis(values, axis, 0)
    return ahead.reshape(len(ahead), blocks, -1)


def in_integers(
    values_OBN: Single, bits: int, weights_OBN: NDArray[Any] | None = None
) -> tuple[Integers, NDArray[np.float16]]:
    """Symmetric integers of 4 or 8 bits, and a half-precision scale (O, B) for every run.

    Of 8 bits, -127 to 127, the last stands for the greatest magnitude of the run. Of 4 bits, -8 to
    7, the scale is the best of twenty ways to clip, each refined to the scale with the least
    (weighted) squared error for its integers; no proof that there is no better one. All integers
    are those nearest to the values at the scale as it is stored.
    """
    most = (1 << (bits - 1)) - 1
    scales = np.abs(values_OBN).max(-1) / np.float32(most)
    if bits < 8:
        from nanoflux_export.compression.clipping import clipped_scales  # brings numba

        scales = clipped_scales(values_OBN, weights_OBN, scales, most)
    stored_OB = _in_half(scales, most)
    wide_OB = stored_OB.astype(np.float32)
    codes = _nearest(values_OBN, wide_OB, bits)
    reach = np.minimum(_HALF_MAX // wide_OB, 127).astype(np.int8)[..., None]
    return np.clip(codes, -reach, reach, out=codes), stored_OB  # products that half can hold


def litert_integers(values_OBN: Single, bits: int, *, blocks: bool) -> tuple[Integers, Single]:
    """Integers and float32 scales (O, B) as ai-edge-quantizer 0.10 has them, to the bit.

    The greatest magnitude of a run over the last integer is its scale. Those of `blocks` are
    rounded to what bfloat16 and half precision both hold; where that is zero, which kernels refuse
    though the quantiser writes it, it is the least that half precision holds.
    """
    most = (1 << (bits - 1)) - 1
    bounds = np.maximum(np.abs(values_OBN).max(-1), np.float32(_LEAST_BOUND))
    scales: Single = bounds / np.float32(most)
    if blocks:
        scales = np.maximum(_bfloat16(scales), np.float32(_LEAST_HALF))
        scales = np.minimum(scales, np.float32(_HALF_MAX)).astype(np.float16).astype(np.float32)
    return _nearest(values_OBN, scales, bits), scales


def _in_half(scales_OB: Single, most: int) -> NDArray[np.float16]:
    """The nearest half-precision scales that are not zero and keep `most` times them finite."""
    nearest = np.clip(scales_OB, _LEAST_HALF, _HALF_MAX).astype(np.float16)
    below = np.nextafter(nearest, np.float16(0))
    nearest = np.where(nearest.astype(np.float32) * most > _HALF_MAX, below, nearest)
    return np.where(scales_OB > 0, nearest, np.float16(1))


def _nearest(values_OBN: Single, scales_OB: Single, bits: int) -> Integers:
    most = (1 << (bits - 1)) - 1
    ratios = np.rint(values_OBN / scales_OB[..., None])
    return np.clip(ratios, -most - (bits < 8), most, out=ratios).astype(np.int8)


def _bfloat16(values: Single) -> Single:
    """The nearest values with the upper 16 bits of float32 alone, ties to even."""
    bits = values.view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + (bits >> 16 & 1)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)
