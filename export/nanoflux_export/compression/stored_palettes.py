"""Palettes with their entries in 8 bits or their weights divided by scales, chosen as stored.

Shapes: G groups of R output channels, v of them to a vector, P = R / v; N inputs; E entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanoflux_export.compression.integers import in_integers
from nanoflux_export.compression.palettes import Codes, Half, palette_groups
from nanoflux_export.compression.table_lookup import Single, levels, looked_up
from nanoflux_export.compression.vector_palettes import nearest_vectors, vector_palettes
from nanoflux_mobile.spec import Scheme

_ROUNDS = 3
_LEAST_SCALE, _HALF_MAX = 2.0**-14, 65504.0  # none that a processor may take for zero


@dataclass(frozen=True)
class Palettes:
    """Indices, and what they look up: entries, times a scale of them all, times one of the row."""

    codes_PN: Codes
    luts: NDArray[Any]
    lut_scales: Half | None = None
    scales: Half | None = None

    def errors(self, values_RN: Single, weights_RN: NDArray[Any] | None) -> NDArray[np.float64]:
        """The (weighted) squared error of each group."""
        levels_RE = levels(self.luts, self.lut_scales, self.scales, len(values_RN))
        with np.errstate(invalid="ignore"):
            errors_RN = np.square(values_RN - looked_up(self.codes_PN, levels_RE))
            errors_R = (errors_RN * _or_one(weights_RN)).sum(1, dtype=np.float64)
        return errors_R.reshape(len(self.luts), -1).sum(1)


def fitted(
    half_RN: Half,
    weights_RN: NDArray[Any] | None,
    scheme: Scheme,
    groups: int,
    scales_R: Half | None = None,
) -> Palettes:
    """The palettes of each group of rows, and the nearest index of each value or vector of them.

    With scales of the rows, those of the values divided by them, where errors count for as much as
    they do when multiplied again. Entries in 8 bits are the nearest ones to the palette's.
    """
    values, weights = half_RN, weights_RN
    if scales_R is not None:
        wide_R1 = scales_R.astype(np.float32)[:, None]
        values = (half_RN / wide_R1).astype(np.float16)
        weights = np.square(wide_R1) * _or_one(weights_RN)
    luts: NDArray[Any]
    if scheme.vector == 1:
        luts, codes_PN = palette_groups(values, scheme.bits, groups, weights=weights)
        luts = luts[..., None]
    else:
        luts, codes_PN = vector_palettes(values, scheme.bits, groups, scheme.vector, weights)
    if scales_R is None and not scheme.int8_lut:
        return Palettes(codes_PN, luts)
    luts, lut_scales = _in_int8(luts) if scheme.int8_lut else (luts, None)
    levels_RE = levels(luts, lut_scales, scales_R, len(half_RN))
    codes_PN = _nearest(half_RN.astype(np.float32), weights_RN, levels_RE, scheme.vector)
    return Palettes(codes_PN, luts, lut_scales, scales_R)


def scaled(half_RN: Half, weights_RN: NDArray[Any] | None, scheme: Scheme, groups: int) -> Palettes:
    """Palettes of rows divided by scales; in no group worse than the palettes of rows as they are.

    From root mean squares, scales and palettes take turns: each is the best for the other.
    """
    values_RN, weights = half_RN.astype(np.float32), _or_one(weights_RN)
    plain = fitted(half_RN, weights_RN, scheme, groups)
    ones = np.ones(len(half_RN), np.float16)
    best = Palettes(plain.codes_PN, plain.luts, plain.lut_scales, ones)
    errors_G = best.errors(values_RN, weights_RN)
    squares_R = (np.square(values_RN) * weights).sum(1, dtype=np.float64)
    scales_R = np.sqrt(_ratio(squares_R, np.broadcast_to(weights, half_RN.shape).sum(1), 1.0))
    for _ in range(_ROUNDS):
        stored_R = np.clip(scales_R, _LEAST_SCALE, _HALF_MAX).astype(np.float16)
        tried = fitted(half_RN, weights_RN, scheme, groups, stored_R)
        found_G = tried.errors(values_RN, weights_RN)
        best, errors_G = _better(best, errors_G, tried, found_G)
        unscaled_RE = levels(tried.luts, tried.lut_scales, None, len(half_RN))
        entries_RN = looked_up(tried.codes_PN, unscaled_RE)
        products_R = (values_RN * entries_RN * weights).sum(1, dtype=np.float64)
        squares_R = (np.square(entries_RN) * weights).sum(1, dtype=np.float64)
        scales_R = _ratio(products_R, squares_R, stored_R.astype(np.float64))
    return best


def _better(
    one: Palettes, one_G: NDArray[np.float64], other: Palettes, other_G: NDArray[np.float64]
) -> tuple[Palettes, NDArray[np.float64]]:
    """The groups with the smaller errors of two, and these errors."""
    groups = len(one_G)
    chosen_G = other_G < one_G

    def mix(mine: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
        split = mine.reshape(groups, -1), others.reshape(groups, -1)
        return np.where(chosen_G[:, None], split[1], split[0]).reshape(mine.shape)

    both = zip(
        (one.codes_PN, one.luts, one.lut_scales, one.scales),
        (other.codes_PN, other.luts, other.lut_scales, other.scales),
        strict=True,
    )
    mixed = [None if a is None or b is None else mix(a, b) for a, b in both]
    return Palettes(*mixed), np.where(chosen_G, other_G, one_G)  # type: ignore[arg-type]


def _in_int8(luts_GEv: Half) -> tuple[NDArray[np.int8], Half]:
    """Entries as integers, and the scale of each palette."""
    entries, scales_G1 = in_integers(luts_GEv.astype(np.float32).reshape(len(luts_GEv), 1, -1), 8)
    return entries.reshape(luts_GEv.shape), scales_G1[:, 0]


def _nearest(
    values_RN: Single, weights_RN: NDArray[Any] | None, levels_RE: Single, vector: int
) -> Codes:
    if vector > 1:
        weights = np.broadcast_to(_or_one(weights_RN), values_RN.shape)
        return nearest_vectors(values_RN, weights, levels_RE, vector)
    between = (levels_RE[:, 1:].astype(np.float64) + levels_RE[:, :-1]) / 2  # they ascend
    codes_RN = np.empty(values_RN.shape, np.uint8)
    for codes, values, edges in zip(codes_RN, values_RN, between, strict=True):
        codes[:] = np.searchsorted(edges, values)
    return codes_RN


def _ratio(above: NDArray[Any], below: NDArray[Any], otherwise: Any) -> NDArray[np.float64]:
    """Quotients of what is positive; otherwise that."""
    sound = (above > 0) & (below > 0)
    return np.where(sound, above / np.where(sound, below, 1), otherwise)


def _or_one(weights_RN: NDArray[Any] | None) -> Any:
    return np.float32(1) if weights_RN is None else weights_RN
