"""Gaussian noise that every phone can draw again from a seed.

Exactly this, so that the Swift and Kotlin twins give the same numbers:

1. The generator is Philox4x32-10 (Salmon et al., 2011; the Random123 library). Its key is
   (seed mod 2**32, seed div 2**32). Block i = 0, 1, 2, ... has the counter
   (i mod 2**32, i div 2**32, 0, 0) and gives four 32-bit words w0, w1, w2, w3.
2. Words become uniforms in double precision, without rounding. A radius word gives
   u = (w + 1) / 2**32, in (0, 1]; an angle word gives v = w / 2**32, in [0, 1).
3. Box-Muller in double precision on (u, v) from (w0, w1), then from (w2, w3):
   r = sqrt(-2 * ln(u)), a = 2 * pi * v; first r * cos(a), then r * sin(a).
4. Values 4i .. 4i+3 of the noise are those four, each rounded to the nearest float32. They fill
   the shape in C order; what is left of the last block is dropped.

No value lies beyond sqrt(64 * ln(2)) = 6.66. Mathematics libraries differ in the last bit of a
double; that survives the rounding to float32 about once in a hundred million values.
"""

from __future__ import annotations

import math

import numpy as np

from nanoflux_mobile.errors import InputError

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox4x32(counter_4N: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """The words of N blocks, uint64 below 2**32, (4, N): counters of the same form, one key."""
    c0, c1, c2, c3 = counter_4N.astype(np.uint64)
    k0, k1 = key
    for _ in range(ROUNDS):
        even, odd = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (odd >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            odd & np.uint64(_WORD),
            (even >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            even & np.uint64(_WORD),
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & _WORD, (k1 + KEY_STEPS[1]) & _WORD
    return np.stack((c0, c1, c2, c3))


def box_muller(words_4N: np.ndarray) -> np.ndarray:
    """Four normal numbers from each block of words, float32, (4, N)."""
    radius = np.sqrt(-2.0 * np.log((words_4N[0::2] + 1.0) / 2.0**32))
    angle = 2.0 * math.pi * (words_4N[1::2] / 2.0**32)
    pairs = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return pairs.reshape(words_4N.shape).astype(np.float32)


def gaussian(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise of a shape, float32; a longer one begins with the shorter one.

    Args:
        seed: 0 to 2**64 - 1.
        shape: of the result; filled in C order.

    Raises:
        InputError: a seed outside that range.
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"seed {seed} is out of range; give a whole number from 0 to 2**64 - 1")
    count = math.prod(shape)
    block = np.arange(-(-count // 4), dtype=np.uint64)
    zero = np.zeros_like(block)
    counter_4N = np.stack((block & np.uint64(_WORD), block >> np.uint64(32), zero, zero))
    values_4N = box_muller(philox4x32(counter_4N, (seed & _WORD, seed >> 32)))
    return values_4N.T.reshape(-1)[:count].reshape(shape)
