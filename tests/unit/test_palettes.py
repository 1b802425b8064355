"""Palettes against every partition there is, and against coremltools' own k-means."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from nanoflux_export.compression.palettes import palette, snapped

# An entry is a mean rounded to half precision: it moves by at most half a unit in the last place.
HALF_ULP = 2.0**-11


def _error(values: np.ndarray, lut: np.ndarray, indices: np.ndarray) -> float:
    return float(np.square(values.astype(np.float64) - lut.astype(np.float64)[indices]).sum())


def _least_error(values: np.ndarray, clusters: int) -> float:
    """The least squared error over all ways to cut the sorted values into that many runs."""
    ordered = np.sort(values.astype(np.float64))
    cuts = combinations(range(1, ordered.size), min(clusters, ordered.size) - 1)
    return min(sum(part.var() * part.size for part in np.split(ordered, cut)) for cut in cuts)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-60000, 60000, width=16), min_size=1, max_size=11),
    st.integers(1, 3),
)
def test_no_partition_has_less_error(numbers: list[float], bits: int) -> None:
    values = np.array(numbers, np.float16)
    rounding = values.size * (HALF_ULP * float(np.abs(values).max())) ** 2
    best = _least_error(values, 1 << bits)
    assert _error(values, *palette(values, bits)) <= best * (1 + 1e-9) + rounding


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
@pytest.mark.parametrize("shape", ["normal", "laplace", "shifted"])
def test_never_worse_than_the_k_means_of_coremltools(bits: int, shape: str) -> None:
    pytest.importorskip("coremltools")
    from coremltools.optimize.coreml._quantization_passes import palettize_weights

    generator = np.random.default_rng(bits)
    draw = {
        "normal": generator.normal(0, 0.02, (24, 500)),
        "laplace": generator.laplace(0, 0.02, (24, 500)),
        "shifted": generator.normal(1, 0.05, (24, 500)),
    }[shape]
    values = draw.astype(np.float16)
    theirs = palettize_weights.blockwise_compress(values, "KMEANS", bits, [0, 0])
    reference = _error(values, theirs.lut.reshape(-1), theirs.indices.astype(np.intp))
    ours = _error(values, *palette(values, bits))
    assert ours <= reference
    assert ours >= 0.99 * reference  # theirs is the optimum but for the rounding of its entries


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_entries_ascend_and_each_value_has_the_nearest(bits: int) -> None:
    values = np.random.default_rng(3).normal(size=(40, 50)).astype(np.float16)
    lut, indices = palette(values, bits)
    assert (lut.dtype, lut.shape) == (np.float16, (1 << bits,))
    assert (indices.dtype, indices.shape) == (np.uint8, values.shape)
    assert (np.diff(lut) > 0).all()
    distances = np.abs(values[..., None].astype(np.float64) - lut.astype(np.float64))
    chosen = np.take_along_axis(distances, indices[..., None].astype(np.intp), -1)[..., 0]
    np.testing.assert_array_equal(chosen, distances.min(-1))


def test_few_distinct_values_are_kept_exactly() -> None:
    some = np.array([-65504, -1, -(2.0**-24), 0, 2.0**-24, 0.1, 65504], np.float16)
    values = np.random.default_rng(0).choice(some, (9, 11))
    lut, indices = palette(values, 3)
    np.testing.assert_array_equal(lut[indices], values)
    np.testing.assert_array_equal(lut, np.append(some, some[-1]))


def test_both_zeros_are_one_value() -> None:
    lut, indices = palette(np.array([0.0, -0.0, 1.0], np.float16), 2)
    assert lut.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert indices.tolist() == [0, 0, 1]


def test_groups_have_palettes_of_their_own() -> None:
    values = np.random.default_rng(1).normal(size=(6, 8, 3)).astype(np.float16)
    values[:, 4:] *= 100
    whole = snapped(values, 2, groups=2, axis=1)
    parts = [palette(part, 2) for part in (values[:, :4], values[:, 4:])]
    np.testing.assert_array_equal(whole, np.concatenate([lut[at] for lut, at in parts], 1))


@pytest.mark.parametrize(
    ("values", "bits"),
    [
        (np.zeros(4, np.float32), 4),
        (np.zeros(0, np.float16), 4),
        (np.zeros(4, np.float16), 0),
        (np.zeros(4, np.float16), 9),
        (np.array([1, np.inf], np.float16), 4),
        (np.array([1, -np.inf], np.float16), 4),
        (np.array([1, np.nan], np.float16), 4),
        (np.array([1, -np.nan], np.float16), 4),
    ],
)
def test_refuses_what_has_no_palette(values: np.ndarray, bits: int) -> None:
    with pytest.raises(ValueError, match="palette of"):
        palette(values, bits)
