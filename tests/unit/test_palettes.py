"""Palettes against every partition there is, and against coremltools' own k-means."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from nanoflux_export.compression.exact_kmeans import _spliced, best_cuts
from nanoflux_export.compression.palettes import palette, palette_groups, snapped

# An entry is a mean rounded to half precision: it moves by at most half a unit in the last place.
HALF_ULP = 2.0**-11
# Sums of some hundred numbers below 1e9 in double precision, of which the errors are differences.
DOUBLES = 1e-9


def _error(values: np.ndarray, lut: np.ndarray, indices: np.ndarray) -> float:
    return float(np.square(values.astype(np.float64) - lut.astype(np.float64)[indices]).sum())


def _least_error(values: np.ndarray, clusters: int) -> float:
    """The least squared error over all ways to cut the sorted values into that many runs."""
    ordered = np.sort(values.astype(np.float64))
    cuts = combinations(range(1, ordered.size), min(clusters, ordered.size) - 1)
    return min(sum(part.var() * part.size for part in np.split(ordered, cut)) for cut in cuts)


def _least_errors(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The least squared errors with 1, 2, 3 ... clusters by the plain recurrence over all starts.

    Errors of clusters are summed in whole numbers: `values` are integers.
    """
    size = values.size
    totals, sums, squares = (
        [0, *np.cumsum(terms).tolist()] for terms in (counts, counts * values, counts * values**2)
    )
    one = np.full((size + 1, size + 1), np.inf)
    for start, end in combinations(range(size + 1), 2):
        total, share = totals[end] - totals[start], sums[end] - sums[start]
        one[start, end] = (total * (squares[end] - squares[start]) - share**2) / total
    best, found = np.append(0.0, np.full(size, np.inf)), []
    for _ in range(size):
        best = (best[:, None] + one).min(0)
        found.append(best[-1])
    return np.array(found)


def _error_of_cuts(values: np.ndarray, counts: np.ndarray, cuts: np.ndarray) -> float:
    runs = [np.repeat(values[a:b], counts[a:b]).astype(np.float64) for a, b in pairwise(cuts)]
    return math.fsum(run.var() * run.size for run in runs)


def _below(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums from the cut at zero outwards, as `best_cuts` takes them."""
    terms = (counts, counts * values, counts * values**2)
    sums = [np.append(0, np.cumsum(term)) for term in terms]
    zero = np.searchsorted(values, 0)
    totals, firsts, squares = ((each - each[zero]).astype(np.float64) for each in sums)
    return totals, firsts, squares


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_every_number_of_clusters_has_the_least_error(data: st.DataObject) -> None:
    """Small whole numbers, so that many partitions are equally good and few prices tell them."""
    spread = data.draw(st.sampled_from([12, 40, 1000]))
    distinct = data.draw(st.sets(st.integers(-spread, spread), min_size=4, max_size=40))
    values = np.array(sorted(distinct))
    counts = np.array(
        data.draw(st.lists(st.integers(1, 5), min_size=values.size, max_size=values.size))
    )
    least = _least_errors(values, counts)
    for clusters in range(2, values.size):
        cuts = best_cuts(_below(values, counts), clusters)
        assert cuts.size == clusters + 1
        assert (np.diff(cuts) > 0).all()
        assert (cuts[0], cuts[-1]) == (0, values.size)
        assert _error_of_cuts(values, counts, cuts) == pytest.approx(
            least[clusters - 1], rel=DOUBLES, abs=DOUBLES
        )


@pytest.mark.parametrize("size", [2, 3, 9, 31, 32, 33])
def test_equally_spaced_values_have_no_price_of_their_own(size: int) -> None:
    """With 8 values and 4 clusters, say, ever more cost the same; partitions are spliced then."""
    values, counts = np.arange(size) - size // 3, np.ones(size, np.int64)
    least = _least_errors(values, counts)
    for clusters in range(2, size):
        cuts = best_cuts(_below(values, counts), clusters)
        assert _error_of_cuts(values, counts, cuts) == pytest.approx(least[clusters - 1])


def test_a_splice_is_as_cheap_as_its_parts() -> None:
    values, counts = np.arange(12), np.ones(12, np.int64)
    least = _least_errors(values, counts)
    few, many = np.arange(0, 13, 2), np.arange(13)  # 6 pairs and 12 single values
    for clusters in range(7, 12):
        cuts = _spliced(few, many, clusters)
        assert cuts.size == clusters + 1
        assert _error_of_cuts(values, counts, cuts) == pytest.approx(least[clusters - 1])


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


def _weighted_error(values: np.ndarray, weights: np.ndarray, stored: np.ndarray) -> float:
    away = values.astype(np.float64) - stored.astype(np.float64)
    return math.fsum((weights * np.square(away)).reshape(-1))


def _by_coremltools(values: np.ndarray, clusters: int, weights: np.ndarray) -> np.ndarray:
    """What the k-means bundled with coremltools stores, its centroids rounded as ours are."""
    from coremltools._deps import kmeans1d

    flat = values.reshape(-1).astype(np.float64)
    theirs = kmeans1d.cluster(flat, clusters, weights=weights.reshape(-1).astype(np.float64))
    stored = np.array(theirs.centroids).astype(np.float16)[np.array(theirs.clusters)]
    return stored.reshape(values.shape)


WEIGHTS = st.one_of(st.just(0.0), st.floats(2.0**-10, 2.0**10))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.floats(-60000, 60000, width=16), WEIGHTS), min_size=1, max_size=11),
    st.integers(1, 3),
)
def test_no_partition_has_less_weighted_error(pairs: list[tuple[float, float]], bits: int) -> None:
    values, weights = (np.array(column) for column in zip(*sorted(pairs), strict=True))
    counted = weights if weights.any() else np.ones(weights.size)
    some, masses = values[counted > 0], counted[counted > 0]

    def off(start: int, end: int) -> float:
        mean = np.average(some[start:end], weights=masses[start:end])
        return float((masses[start:end] * np.square(some[start:end] - mean)).sum())

    cuts = combinations(range(1, some.size), min(1 << bits, some.size) - 1)
    best = min(sum(off(a, b) for a, b in pairwise([0, *cut, some.size])) for cut in cuts)
    stored = snapped(values.astype(np.float16), bits, weights=weights)
    rounding = masses.sum() * (HALF_ULP * float(np.abs(some).max())) ** 2
    assert _weighted_error(values, counted, stored) <= best * (1 + 1e-9) + rounding


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
@pytest.mark.parametrize("spread", [0.5, 3.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_never_worse_than_the_weighted_k_means_of_coremltools(
    bits: int, spread: float, seed: int
) -> None:
    pytest.importorskip("coremltools")
    generator = np.random.default_rng(seed)
    values = generator.laplace(0.01 * seed, 0.02, (24, 60)).astype(np.float16)
    weights = generator.lognormal(0, spread, 60)
    every = np.broadcast_to(weights, values.shape)
    reference = _weighted_error(values, every, _by_coremltools(values, 1 << bits, every))
    ours = _weighted_error(values, every, snapped(values, bits, weights=weights))
    assert 0.99 * reference <= ours <= reference * (1 + DOUBLES)


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize(("axis", "groups"), [(0, 6), (1, 4), (-1, 1)])
def test_weights_belong_to_their_groups(
    monkeypatch: pytest.MonkeyPatch, axis: int, groups: int, threads: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    generator = np.random.default_rng(1)
    values = generator.normal(size=(6, 8, 3)).astype(np.float16)
    weights = generator.lognormal(size=(6, 8, 3))
    luts, codes = palette_groups(values, 2, groups, axis, weights)
    parts = (np.split(each, groups, axis) for each in (values, weights, codes))
    for lut, part, heavy, indices in zip(luts, *parts, strict=True):
        alone, alone_indices = palette_groups(part.reshape(-1), 2, 1, 0, heavy.reshape(-1))
        np.testing.assert_array_equal(lut, alone[0])
        np.testing.assert_array_equal(indices.reshape(-1), alone_indices)


@pytest.mark.parametrize("weight", [1, np.float32(0.1), 1e-300, 1e300, 0.0])
def test_equal_weights_are_none(weight: float) -> None:
    values = np.random.default_rng(4).normal(size=(8, 90)).astype(np.float16)
    for alone, alike in zip(
        palette_groups(values, 3, 4), palette_groups(values, 3, 4, 0, np.array(weight)), strict=True
    ):
        np.testing.assert_array_equal(alone, alike)


def test_weights_spread_over_channels() -> None:
    generator = np.random.default_rng(5)
    values = generator.normal(size=(8, 30, 2)).astype(np.float16)
    weights = generator.lognormal(size=(30, 1))
    spread = np.broadcast_to(weights, values.shape).copy()
    for narrow, wide in zip(
        palette_groups(values, 3, 2, 0, weights),
        palette_groups(values, 3, 2, 0, spread),
        strict=True,
    ):
        np.testing.assert_array_equal(narrow, wide)


def test_what_weighs_nothing_takes_no_entry() -> None:
    values = np.array([1, 2, 3, 4, 70, 80, 90], np.float16)
    weights = np.array([1, 1, 1, 1, 0, 0, 0])
    luts, codes = palette_groups(values, 2, 1, 0, weights)
    assert luts[0].tolist() == [1, 2, 3, 4]
    assert codes.tolist() == [0, 1, 2, 3, 3, 3, 3]


def test_weights_of_any_ratio_end_well() -> None:
    """Those below 2**-40 of the rest count for that much, so that no cluster weighs nothing."""
    values = np.linspace(-3, 3, 400).astype(np.float16)
    weights = 2.0 ** np.random.default_rng(6).uniform(-1000, 1000, 400)
    luts, _ = palette_groups(values, 4, 1, 0, weights)
    assert np.isfinite(luts).all()
    assert (np.diff(luts) > 0).all()
    heaviest = values[weights.argmax()]
    assert heaviest in luts


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_refuses_weights_that_are_none(weight: float) -> None:
    with pytest.raises(ValueError, match="weights that are"):
        palette_groups(np.ones((2, 3), np.float16), 2, 1, 0, np.array([1, weight, 1]))


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


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize(("axis", "groups"), [(0, 6), (0, 1), (1, 4), (2, 3), (-1, 1)])
def test_groups_have_palettes_of_their_own(
    monkeypatch: pytest.MonkeyPatch, axis: int, groups: int, threads: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    values = np.random.default_rng(1).normal(size=(6, 8, 3)).astype(np.float16)
    luts, codes = palette_groups(values, 2, groups, axis)
    assert (luts.dtype, luts.shape) == (np.float16, (groups, 4))
    assert (codes.dtype, codes.shape) == (np.uint8, values.shape)
    parts = zip(np.split(values, groups, axis), np.split(codes, groups, axis), strict=True)
    for lut, (part, indices) in zip(luts, parts, strict=True):
        alone, alone_indices = palette(part, 2)
        np.testing.assert_array_equal(lut, alone)
        np.testing.assert_array_equal(indices, alone_indices)
    whole = snapped(values, 2, groups=groups, axis=axis)
    dense = [lut[part] for lut, part in zip(luts, np.split(codes, groups, axis), strict=True)]
    np.testing.assert_array_equal(whole, np.concatenate(dense, axis))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_the_whole_range_of_half_precision(bits: int) -> None:
    """Values of every size at once, against the k-means bundled with coremltools."""
    pytest.importorskip("coremltools")
    from coremltools._deps import kmeans1d

    generator = np.random.default_rng(bits)
    sizes = 2.0 ** generator.uniform(-24, 15.99, 600)
    values = (generator.choice([-1, 1], 600) * sizes).astype(np.float16)
    distinct, counts = np.unique(values.astype(np.float64), return_counts=True)
    theirs = kmeans1d.cluster(distinct, 1 << bits, weights=counts.astype(np.float64))
    entries = np.array(theirs.centroids).astype(np.float16)
    indices = np.array(theirs.clusters)[np.searchsorted(distinct, values.astype(np.float64))]
    reference = _error(values, entries, indices)
    assert 0.99 * reference <= _error(values, *palette(values, bits)) <= reference * (1 + DOUBLES)


@pytest.mark.parametrize("value", [0.0, -0.0, 65504, -65504, 2.0**-24, 0.1])
def test_values_that_are_all_equal(value: float) -> None:
    values = np.full((3, 5), value, np.float16)
    lut, indices = palette(values, 4)
    np.testing.assert_array_equal(lut, np.full(16, value, np.float16))
    assert not indices.any()


def test_one_group_that_is_not_finite_spoils_the_weight() -> None:
    values = np.ones((4, 3), np.float16)
    values[2, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        palette_groups(values, 4, 4)


@pytest.mark.parametrize("groups", [0, 4, 7])
def test_refuses_groups_that_do_not_fill_the_axis(groups: int) -> None:
    with pytest.raises(ValueError, match="palette of each"):
        palette_groups(np.zeros((6, 2), np.float16), 4, groups)


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
