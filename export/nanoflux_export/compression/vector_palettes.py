"""Palettes of short vectors: an index stands for one input of neighbouring output channels.

Lloyd's algorithm from two starts, of which the better is kept: all combinations of the entries of
exact palettes of each component, where the bits divide among them, and repeated halving of what
spreads widest. It ends where no entry and no index can better the error alone; other palettes may
be better still. Many vectors are fitted on a sample first, drawn alike on every machine, then all
together. The number of threads never changes the result.

Shapes: R output channels; v of them to a vector; N inputs; M vectors; E entries.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nanoflux_export.compression.palettes import Codes, Half, palette_groups, thread_count

Single = NDArray[np.float32]

_SAMPLES = 256  # vectors for each entry
_FEWEST_SAMPLES = 1 << 13
_ROUNDS, _ROUNDS_OF_A_START, _ROUNDS_OF_A_SPLIT, _ROUNDS_OF_ALL = 40, 8, 3, 3
_SETTLED = 1e-4  # of the error: a round that betters it by less is the last
_APART = 0.5  # deviations from where it was to each half of an entry
_PIECE = 512  # vectors, few enough for the first cache
_GOLDEN = 0.6180339887498949  # its multiples, less whole numbers, spread evenly at any length


def vector_palettes(
    values_RN: Half, bits: int, groups: int, vector: int, weights_RN: NDArray[Any] | None = None
) -> tuple[Half, Codes]:
    """Palettes of 2**bits vectors for each of `groups` equal parts of the rows.

    `weights_RN`, of a shape that broadcasts to that of `values_RN`, say what the squared error of
    each value counts for; if all in a group are zero, its values count alike.

    Returns the entries (groups, 2**bits, v), and indices (R / v, N) of the entries with the least
    weighted squared error.

    Raises:
        ValueError: rows that groups of vectors do not fill, or values that are not finite.
    """
    rows = len(values_RN) // max(groups, 1)
    if groups < 1 or len(values_RN) % groups or rows % vector:
        raise ValueError(f"{len(values_RN)} rows are not {groups} groups of {vector}-vectors")
    if not np.isfinite(values_RN).all():
        raise ValueError("cannot make a palette of values that are not finite")
    weights = np.broadcast_to(1.0 if weights_RN is None else weights_RN, values_RN.shape)

    def fit(start: int) -> tuple[Half, Codes]:
        span = slice(start, start + rows)
        lut_vE, codes_M = _fit(
            _as_vectors(values_RN[span], vector), _normal(_as_vectors(weights[span], vector)), bits
        )
        return lut_vE.T, codes_M.reshape(rows // vector, -1)

    with ThreadPoolExecutor(thread_count()) as pool:
        luts, codes = zip(*pool.map(fit, range(0, len(values_RN), rows)), strict=True)
    return np.stack(luts), np.concatenate(codes)


def nearest_vectors(
    values_RN: Single, weights_RN: NDArray[Any], levels_RE: Single, v: int
) -> Codes:
    """Indices (R / v, N) of the least weighted squared errors; `levels` has each row's values."""
    codes = np.empty((len(values_RN) // v, values_RN.shape[1]), np.uint8)
    for at in range(len(codes)):
        rows = slice(at * v, at * v + v)
        weights_vN = np.ascontiguousarray(weights_RN[rows], np.float32)
        _assign(values_RN[rows], weights_vN, levels_RE[rows], codes[at])
    return codes


def _as_vectors(values_RN: NDArray[Any], vector: int) -> NDArray[Any]:
    split = values_RN.reshape(len(values_RN) // vector, vector, -1)
    return np.ascontiguousarray(split.transpose(1, 0, 2)).reshape(vector, -1)


def _normal(weights_vM: NDArray[Any]) -> Single:
    most = float(weights_vM.max())
    if not most:
        return np.ones(weights_vM.shape, np.float32)
    return (weights_vM / most).astype(np.float32)


def _fit(values_vM: Half, weights_vM: Single, bits: int) -> tuple[Half, Codes]:
    wide_vM = values_vM.astype(np.float32)
    counted = np.flatnonzero(weights_vM.any(0))
    most = max(_FEWEST_SAMPLES, _SAMPLES << bits)
    some = counted
    if counted.size > most:
        some = counted[(np.arange(most) * _GOLDEN % 1 * counted.size).astype(np.int64)]
    sample = wide_vM[:, some], weights_vM[:, some]
    starts = [_halved(*sample, bits), *_combined(values_vM[:, some], weights_vM[:, some], bits)]
    tried = [_settled(*sample, start, _ROUNDS_OF_A_START) for start in starts]
    lut_vE, _ = _settled(*sample, min(tried, key=lambda fit: fit[1])[0], _ROUNDS)
    if some is not counted:
        lut_vE, _ = _settled(wide_vM, weights_vM, lut_vE, _ROUNDS_OF_ALL)
    stored = lut_vE.astype(np.float16)
    codes_M = np.empty(wide_vM.shape[1], np.uint8)
    _assign(wide_vM, weights_vM, stored.astype(np.float32), codes_M)
    return stored, codes_M


def _combined(values_vM: Half, weights_vM: Single, bits: int) -> list[Single]:
    """All combinations of entries of exact palettes of the components, if the bits divide."""
    vector = len(values_vM)
    if bits % vector:
        return []
    luts, _ = palette_groups(values_vM, bits // vector, vector, weights=weights_vM)
    every = np.meshgrid(*luts.astype(np.float32), indexing="ij")
    return [np.stack([each.reshape(-1) for each in every])]


def _halved(values_vM: Single, weights_vM: Single, bits: int) -> Single:
    """Entries from the mean of all, each halved along its widest component, `bits` times."""
    lut_vE = _moved(values_vM, weights_vM, np.zeros((len(values_vM), 1), np.float32))[0]
    for _ in range(bits):
        spread_vE = _spreads(values_vM, weights_vM, lut_vE)
        step_vE = np.where(spread_vE == spread_vE.max(0), _APART * spread_vE, 0)
        lut_vE = np.concatenate([lut_vE - step_vE, lut_vE + step_vE], 1, dtype=np.float32)
        lut_vE, _ = _settled(values_vM, weights_vM, lut_vE, _ROUNDS_OF_A_SPLIT)
    return lut_vE


def _settled(
    values_vM: Single, weights_vM: Single, lut_vE: Single, rounds: int
) -> tuple[Single, float]:
    """Entries after that many rounds, or when they settle, and the error of those before."""
    before = np.inf
    for _ in range(rounds):
        moved_vE, error = _moved(values_vM, weights_vM, lut_vE)
        if error >= before * (1 - _SETTLED):
            break
        lut_vE, before = moved_vE, error
    return lut_vE, error


def _moved(values_vM: Single, weights_vM: Single, lut_vE: Single) -> tuple[Single, float]:
    """The means of the vectors nearest to each entry, and the error they had before.

    Entries that no vector is nearest to move to the vectors with the greatest errors.
    """
    codes_M = np.empty(values_vM.shape[1], np.uint8)
    errors_M = _assign(values_vM, weights_vM, lut_vE, codes_M)
    masses_vE, firsts_vE, _ = _moments(values_vM, weights_vM, codes_M, lut_vE.shape[1])
    moved_vE = np.where(masses_vE > 0, firsts_vE / np.where(masses_vE > 0, masses_vE, 1), lut_vE)
    idle = np.flatnonzero(np.bincount(codes_M, minlength=lut_vE.shape[1]) == 0)
    worst = np.argsort(-errors_M, kind="stable")[: idle.size] if idle.size else idle
    moved_vE[:, idle[: worst.size]] = values_vM[:, worst]
    return moved_vE.astype(np.float32), float(errors_M.sum(dtype=np.float64))


def _spreads(values_vM: Single, weights_vM: Single, lut_vE: Single) -> NDArray[Any]:
    """The deviation of every component of the vectors nearest to each entry."""
    codes_M = np.empty(values_vM.shape[1], np.uint8)
    _assign(values_vM, weights_vM, lut_vE, codes_M)
    masses, firsts, seconds = _moments(values_vM, weights_vM, codes_M, lut_vE.shape[1])
    masses = np.where(masses > 0, masses, 1)
    return np.sqrt(np.maximum(seconds / masses - (firsts / masses) ** 2, 0))


@njit(cache=True, nogil=True)
def _assign(values_vM: Single, weights_vM: Single, levels_vE: Single, codes_M: Codes) -> Any:
    """Fill the indices of the entries with the least weighted squared errors; these errors."""
    vector, entries = levels_vE.shape
    least_M = np.full(values_vM.shape[1], np.inf, np.float32)
    errors, codes = np.empty(_PIECE, np.float32), np.empty(_PIECE, np.int32)
    for start in range(0, least_M.size, _PIECE):  # in pieces and without branches: many at a time
        least = least_M[start : start + _PIECE]
        error, code = errors[: least.size], codes[: least.size]
        code[:] = 0
        for entry in range(entries):
            error[:] = 0
            for part in range(vector):
                value = values_vM[part][start : start + _PIECE]
                weight = weights_vM[part][start : start + _PIECE]
                level = levels_vE[part, entry]
                for at in range(error.size):
                    away = value[at] - level
                    error[at] += weight[at] * away * away
            for at in range(error.size):
                better = error[at] < least[at]
                least[at] = error[at] if better else least[at]
                code[at] = entry if better else code[at]
        codes_M[start : start + _PIECE] = code
    return least_M


@njit(cache=True, nogil=True)
def _moments(values_vM: Single, weights_vM: Single, codes_M: Codes, entries: int) -> Any:
    """What the vectors of each entry weigh, add up to, and their squares add up to."""
    vector = len(values_vM)
    masses, firsts = np.zeros((vector, entries)), np.zeros((vector, entries))
    seconds = np.zeros((vector, entries))
    for part in range(vector):
        for at in range(values_vM.shape[1]):
            value, weight = np.float64(values_vM[part, at]), np.float64(weights_vM[part, at])
            masses[part, codes_M[at]] += weight
            firsts[part, codes_M[at]] += weight * value
            seconds[part, codes_M[at]] += weight * value * value
    return masses, firsts, seconds
