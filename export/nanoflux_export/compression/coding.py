"""One weight as a file stores it: palettes, integers, masks, and back.

Every form here is decided by the values and the scheme alone, so a file's writer and the eager twin
that the file is compared with hold the same numbers. Targets turn a `Coded` into their own records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanoflux_export.compression.integers import in_integers
from nanoflux_export.compression.selection import (
    input_blocks,
    is_coded,
    left_out,
    palette_groups,
)
from nanoflux_export.compression.table_lookup import levels, looked_up, product
from nanoflux_mobile.spec import Scheme

Array = NDArray[Any]
Half = NDArray[np.float16]


@dataclass(frozen=True)
class Coded:
    """A weight in the form of its scheme.

    scheme: how it is stored.
    shape, axis: of the dense weight, and its axis of output channels.
    codes: palette indices (uint8) or integers (int8), shaped as the weight; with `scheme.vector`
        v > 1 the output axis is v times shorter; with a mask only those under a one, in C order,
        one axis.
    luts: palettes, (groups, entries, vector), float16, or int8 with `lut_scales` (groups,) float16
        that they are multiplied with; None for integers.
    scales: float16, (outputs,) of a scaled palette; (outputs, blocks) of integers, a scale for each
        equal run of input channels.
    mask: uint8 of 0 and 1, shaped as the weight; None where nothing is left out.
    """

    scheme: Scheme
    shape: tuple[int, ...]
    axis: int
    codes: Array
    luts: Array | None = None
    lut_scales: NDArray[np.float16] | None = None
    scales: NDArray[np.float16] | None = None
    mask: NDArray[np.uint8] | None = None


def code(
    values: NDArray[np.float32],
    axis: int,
    scheme: Scheme,
    importance: NDArray[np.float64] | None = None,
) -> Coded | None:
    """A weight in the form of a palette or integer scheme; None where it is better left dense.

    That is where `selection.is_coded` says so, and for fp16 of which nothing is left out.
    `importance` (input channels,) weighs the errors of each, for `scheme.weighted`; without it, or
    where all is zero, they weigh alike. The rank and the activations of a scheme are not looked at.

    Values are rounded to half precision first. Scalar palettes are exact (`palettes`), vectors are
    Lloyd's (`vector_palettes`), a scale of 4-bit integers is the best of some (`integers`), and
    scaled palettes take turns with their scales, and never err more than palettes without. Luts and
    scales are rounded as they are stored, then each value gets the nearest code. What is left out
    are the smallest magnitudes of the whole weight, weighed by importance; of vectors, those with
    the least sum of squares.

    Raises:
        ValueError: values that half precision cannot hold, importance that does not fit the
            weight, or a scheme of a kind no file has.
    """
    if scheme.kind == "bits":
        raise ValueError(f"{scheme} is a wish that no file has: name a form of storage")
    dense = scheme.kind == "fp16" and not scheme.sparse
    if dense or not is_coded(scheme, values.shape, axis):
        return None
    with np.errstate(over="ignore"):
        half_RN = _rows(values.astype(np.float16), axis)
    if not np.isfinite(half_RN).all():
        raise ValueError("cannot code values that are not finite in half precision")
    weights_RN = _weights(values.shape, axis, importance) if scheme.weighted else None
    kept_RN = _kept(half_RN, weights_RN, scheme) if scheme.sparse else None
    if kept_RN is not None:
        half_RN = np.where(kept_RN, half_RN, np.float16(0))
        weights_RN = kept_RN * (1.0 if weights_RN is None else weights_RN)
    if scheme.kind == "int":
        blocks = input_blocks(scheme, values.shape, axis)
        coded = _in_integers(half_RN, weights_RN, scheme, blocks)
    elif scheme.kind == "palette":
        coded = _in_palettes(half_RN, weights_RN, scheme)
    else:
        coded = Coded(scheme, half_RN.shape, 0, half_RN)
    return _shaped(coded, kept_RN, values.shape, axis)


def decode(coded: Coded) -> NDArray[np.float32]:
    """The dense values that a runtime takes from what is stored.

    Every product is rounded to half precision, as Core ML's constant expressions are.
    """
    codes = coded.codes
    if coded.mask is not None:
        codes = np.zeros(_thinned(coded.mask, coded).shape, codes.dtype)
        codes[_thinned(coded.mask, coded) == 1] = coded.codes
    codes_PN = dense_RN = _rows(codes, coded.axis)
    if coded.luts is not None:
        dense_RN = looked_up(
            codes_PN, levels(coded.luts, coded.lut_scales, coded.scales, coded.shape[coded.axis])
        )
    elif coded.scales is not None:
        outputs, blocks = coded.scales.shape
        codes_OBN = codes_PN.reshape(outputs, blocks, -1).astype(np.float32)
        dense_RN = product(codes_OBN, coded.scales[..., None]).reshape(outputs, -1)
    dense = _unrowed(dense_RN.astype(np.float32), coded.shape, coded.axis)
    return dense if coded.mask is None else np.where(coded.mask, dense, np.float32(0))


def coded_bytes(coded: Coded) -> int:
    """Bytes that its arrays take in a file, codes and masks packed."""
    bits = coded.codes.size * coded.scheme.bits
    arrays = (coded.luts, coded.lut_scales, coded.scales)
    mask = 0 if coded.mask is None else math.ceil(coded.mask.size / 8)
    return math.ceil(bits / 8) + mask + sum(each.nbytes for each in arrays if each is not None)


def _rows(values: Array, axis: int) -> Array:
    """A row for each output channel: its inputs in order, each with its taps."""
    ahead = np.moveaxis(values, axis, 0)
    return np.ascontiguousarray(ahead).reshape(len(ahead), -1)


def _unrowed(values_RN: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Rows back in the order of a weight of `shape`, whose output axis may have been shorter."""
    others = [length for at, length in enumerate(shape) if at != axis]
    return np.ascontiguousarray(np.moveaxis(values_RN.reshape(-1, *others), 0, axis))


def _weights(
    shape: tuple[int, ...], axis: int, importance: NDArray[np.float64] | None
) -> Array | None:
    """What the error of each value counts for, as one row that all output channels share."""
    if importance is None:
        return None
    inputs = shape[0 if axis else 1]
    if importance.shape != (inputs,):
        raise ValueError(f"importance {importance.shape} does not fit {inputs} input channels")
    if not (np.isfinite(importance) & (importance >= 0)).all():
        raise ValueError("importance is negative or not finite")
    if not importance.any():
        return None
    return np.repeat(importance, math.prod(shape) // (shape[axis] * inputs))[None]


def _kept(half_RN: Half, weights_RN: Array | None, scheme: Scheme) -> NDArray[np.bool_]:
    """All but the smallest values; of equally small ones the first go."""
    scores_RN = np.square(half_RN.astype(np.float32)) * (1 if weights_RN is None else weights_RN)
    scores = scores_RN.reshape(len(half_RN) // scheme.vector, scheme.vector, -1).sum(1).reshape(-1)
    count = left_out(scheme, half_RN.shape) // scheme.vector
    dropped = np.zeros(scores.size, np.bool_)
    if count:
        edge = np.partition(scores, count - 1)[count - 1]
        dropped = scores < edge
        dropped[np.flatnonzero(scores == edge)[: count - np.count_nonzero(dropped)]] = True
    return np.repeat(~dropped.reshape(-1, half_RN.shape[1]), scheme.vector, 0)


def _thinned(values: Array, coded: Coded) -> Array:
    """One of every vector."""
    return values.take(range(0, values.shape[coded.axis], coded.scheme.vector), coded.axis)


def _shaped(
    coded: Coded, kept_RN: NDArray[np.bool_] | None, shape: tuple[int, ...], axis: int
) -> Coded:
    """What rows were coded as, in the shape of the weight and without what is left out."""
    codes = _unrowed(coded.codes, shape, axis)
    coded = replace(coded, shape=shape, axis=axis, codes=codes)
    if kept_RN is None:
        return coded
    mask = _unrowed(kept_RN.astype(np.uint8), shape, axis)
    return replace(coded, codes=codes[_thinned(mask, coded) == 1], mask=mask)


def _in_integers(half_RN: Half, weights_RN: Array | None, scheme: Scheme, blocks: int) -> Coded:
    values_OBN = half_RN.astype(np.float32).reshape(len(half_RN), blocks, -1)
    weights_OBN = None if weights_RN is None else weights_RN.reshape(len(weights_RN), blocks, -1)
    codes, scales = in_integers(values_OBN, scheme.bits, weights_OBN)
    return Coded(scheme, half_RN.shape, 0, codes.reshape(half_RN.shape), scales=scales)


def _in_palettes(half_RN: Half, weights_RN: Array | None, scheme: Scheme) -> Coded:
    from nanoflux_export.compression.stored_palettes import fitted, scaled  # brings numba

    groups = palette_groups(scheme, half_RN.shape, 0)
    make = scaled if scheme.scaled else fitted
    made = make(half_RN, weights_RN, scheme, groups)
    return Coded(scheme, half_RN.shape, 0, made.codes_PN, made.luts, made.lut_scales, made.scales)
