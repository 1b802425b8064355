"""PSNR against an independent formula, and what a floor decides at its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoflux_mobile.parity import CEILING_DB, Parity, psnr_db

SAME_DB = 1e-9
"""Two ways to write one formula in double precision."""


def independent(actual: np.ndarray, expected: np.ndarray) -> float:
    """20 log10(range / RMSE), in Python numbers."""
    pairs = list(zip(actual.ravel().tolist(), expected.ravel().tolist(), strict=True))
    rmse = math.sqrt(math.fsum((a - e) ** 2 for a, e in pairs) / len(pairs))
    span = max(e for _, e in pairs) - min(e for _, e in pairs)
    return 20 * math.log10(span / rmse)


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1.0), st.sampled_from([np.float32, np.float64]))
def test_psnr_is_that_of_the_textbook(seed: int, noise: float, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    expected = rng.normal(3.0, 2.0, (2, 3, 4)).astype(dtype)
    actual = (expected + noise * rng.standard_normal(expected.shape)).astype(dtype)
    assert psnr_db(actual, expected) == pytest.approx(independent(actual, expected), abs=SAME_DB)


def test_one_known_value() -> None:
    expected = np.array([0.0, 1.0, 0.5, 0.5])
    assert psnr_db(expected + 0.01, expected) == pytest.approx(40.0, abs=SAME_DB)


def test_half_precision_is_compared_in_double() -> None:
    expected = np.array([0.0, 6e4], np.float16)  # the square of the range overflows half
    assert psnr_db(np.array([0.0, 5.4e4], np.float16), expected) == pytest.approx(23.0, abs=0.1)


def test_equal_arrays_reach_the_ceiling_and_no_array_passes_it() -> None:
    x = np.linspace(-1, 1, 7)
    assert psnr_db(x, x) == CEILING_DB
    assert psnr_db(x + 1e-15, x) == CEILING_DB
    assert psnr_db(np.zeros(3), np.zeros(3)) == CEILING_DB


def test_a_constant_reference_counts_as_a_range_of_one() -> None:
    assert psnr_db(np.full(4, 2.1), np.full(4, 2.0)) == pytest.approx(20.0, abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_as_far_as_can_be(bad: float) -> None:
    x = np.linspace(-1, 1, 7)
    broken = x.copy()
    broken[3] = bad
    assert psnr_db(broken, x) == -math.inf
    assert not Parity("denoiser", "fp32", psnr_db(broken, x), -1e9).holds


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reference_that_is_not_finite_never_holds(bad: float) -> None:
    x = np.linspace(-1, 1, 7)
    broken = x.copy()
    broken[3] = bad
    for actual in (x, broken):
        assert not Parity("denoiser", "fp32", psnr_db(actual, broken), 0.0).holds


def test_other_shapes_are_an_error_and_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"shapes differ: \(1, 3\) and \(3,\)"):
        psnr_db(np.zeros((1, 3)), np.zeros(3))


@pytest.mark.parametrize(
    ("measured", "floor", "holds"),
    [
        (60.0, 60.0, True),
        (59.999, 60.0, False),
        (200.0, 60.0, True),
        (-math.inf, 0.0, False),
        (math.nan, 0.0, False),
        (math.nan, math.nan, False),
        (60.0, math.nan, False),
    ],
)
def test_a_floor_holds_from_its_own_value_on(measured: float, floor: float, holds: bool) -> None:
    assert Parity("image", "rounded", measured, floor).holds is holds
