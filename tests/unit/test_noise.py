"""Portable noise: Random123's published vectors, a scalar twin in plain Python, and statistics."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.noise import box_muller, gaussian, philox4x32

WORD = 2**32 - 1
SEEDS = st.integers(0, 2**64 - 1)
SHAPES = st.lists(st.integers(0, 6), max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_words_are_those_random123_publishes(counter, key, words):
    column = np.array([[int(word, 16)] for word in counter.split()], np.uint64)
    k0, k1 = (int(word, 16) for word in key.split())
    drawn = philox4x32(np.repeat(column, 3, axis=1), (k0, k1))
    assert drawn.T.tolist() == [[int(word, 16) for word in words.split()]] * 3


def _scalar(seed: int, index: int) -> float:
    """Value `index` of the noise by the letter of the definition, in Python's own numbers."""
    block = index // 4
    c = [block & WORD, block >> 32, 0, 0]
    k = [seed & WORD, seed >> 32]
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b & WORD, (a >> 32) ^ c[3] ^ k[1], a & WORD]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    first, second = c[:2] if index % 4 < 2 else c[2:]
    radius = math.sqrt(-2.0 * math.log((first + 1) / 2**32))
    turn = math.sin if index % 2 else math.cos
    value = radius * turn(2.0 * math.pi * (second / 2**32))
    return struct.unpack("<f", struct.pack("<f", value))[0]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 0x123456789ABCDEF0, 2**64 - 1])
def test_values_are_those_of_the_scalar_definition(seed):
    count = 1001
    assert gaussian(seed, (count,)).tolist() == [_scalar(seed, i) for i in range(count)]


def test_first_values_never_change():
    expected = [0.9911377, -0.9246626, -0.61760896, -0.4820686, -0.15363823, 0.1808259]
    assert gaussian(0, (6,)).tolist() == [float(np.float32(value)) for value in expected]


def test_extreme_words_stay_finite():
    """Cosines of quarter turns are not quite zero in double: 1e-6 covers that and float32."""
    words = np.array([[0, WORD, 0], [0, WORD, WORD], [0, 0, 0], [2**30, 2**31, 2**31]], np.uint64)
    far = math.sqrt(64 * math.log(2))
    values = box_muller(words)
    assert values.dtype == np.float32
    assert values[:2, 0].tolist() == pytest.approx([far, 0.0])
    assert values[:2, 1].tolist() == [0.0, 0.0]
    assert values[2:, 0].tolist() == pytest.approx([0.0, far], abs=1e-6)
    assert values[2:, 1].tolist() == pytest.approx([-far, 0.0], abs=1e-6)


@given(SEEDS, SHAPES)
def test_a_seed_and_a_shape_decide_everything(seed, shape):
    noise = gaussian(seed, shape)
    assert noise.shape == shape
    assert noise.dtype == np.float32
    assert np.array_equal(noise, gaussian(seed, shape))
    assert np.array_equal(noise.ravel(), gaussian(seed, (noise.size,)))


@given(SEEDS, st.integers(0, 50), st.integers(0, 50))
def test_short_noise_begins_long_noise(seed, short, more):
    assert np.array_equal(gaussian(seed, (short + more,))[:short], gaussian(seed, (short,)))


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    """Many values of one seed, in double for the statistics."""
    return gaussian(20_240_801, (200_000,)).astype(float)


def test_moments_are_those_of_a_normal_number(sample):
    sigmas = 4.0
    """Standard errors allowed: with a fixed seed this cannot flake, and a bias cannot hide."""
    n = len(sample)
    assert abs(sample.mean()) < sigmas * math.sqrt(1 / n)
    assert abs((sample**2).mean() - 1) < sigmas * math.sqrt(2 / n)
    assert abs((sample**3).mean()) < sigmas * math.sqrt(15 / n)
    assert abs((sample**4).mean() - 3) < sigmas * math.sqrt(96 / n)


def test_distribution_passes_kolmogorov_smirnov(sample):
    ordered = np.sort(sample)
    cdf = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in ordered])
    rank = np.arange(len(ordered) + 1) / len(ordered)
    distance = max((rank[1:] - cdf).max(), (cdf - rank[:-1]).max())
    critical_at_one_in_a_thousand = 1.95 / math.sqrt(len(ordered))
    assert distance < critical_at_one_in_a_thousand


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 64])
def test_values_do_not_follow_one_another(sample, lag):
    assert abs((sample[:-lag] * sample[lag:]).mean()) < 4 / math.sqrt(len(sample))


@pytest.mark.parametrize("other", [20_240_802, 20_240_801 + 2**32])
def test_seeds_do_not_follow_one_another(sample, other):
    product = sample * gaussian(other, sample.shape)
    assert abs(product.mean()) < 4 / math.sqrt(len(sample))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(InputError, match=r"2\*\*64 - 1"):
        gaussian(seed, (4,))
