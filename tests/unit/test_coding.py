"""Every form of a weight: what coremltools decodes it to, how far it is off, what it takes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from nanoflux_export.compression.coding import Coded, code, coded_bytes, decode
from nanoflux_export.compression.selection import stored_sizes
from nanoflux_mobile.spec import Scheme, parse_scheme

# An entry is a mean rounded to half precision: two that differ by that much are the same.
HALF_ULP = 2.0**-11
# Sums of some thousand squares in single precision.
SUMS = 1e-5

SCHEMES = (
    *("palette1", "palette4", "palette6-g16", "palette3-g8", "palette4-weighted"),
    *("palette4-scaled", "palette4-g16-scaled-weighted", "palette4-lut8", "palette2-g8-lut8"),
    *("palette4-v2", "palette6-g16-v2", "palette4-v4", "palette8-v8", "palette4-g8-v2-weighted"),
    *("palette4-g16-v2-scaled-lut8-weighted", "int8", "int4", "int4-b8", "int8-b16"),
    *("sparse50-fp16", "sparse50-palette4", "sparse30-palette2-g16-scaled-weighted"),
    *("sparse40-palette4-v2", "sparse25-palette4-g8-v2-lut8", "sparse50-int8", "sparse70-int4-b8"),
)
SHAPES = {"linear": ((48, 64), 0), "conv": ((48, 32, 3, 3), 0), "transposed": ((32, 48, 2, 2), 1)}


def _weight(shape: tuple[int, ...], axis: int, seed: int = 0) -> np.ndarray:
    """Normal values whose output channels are of different sizes."""
    generator = np.random.default_rng(seed)
    sizes = [shape[axis] if at == axis else 1 for at in range(len(shape))]
    spread = np.exp(generator.normal(size=sizes))
    return (0.02 * spread * generator.normal(size=shape)).astype(np.float32)


def _importance(shape: tuple[int, ...], axis: int) -> np.ndarray:
    return np.random.default_rng(1).lognormal(size=shape[0 if axis else 1])


def _made(scheme: Scheme, shape: tuple[int, ...], axis: int, seed: int = 0) -> Coded:
    made = code(_weight(shape, axis, seed), axis, scheme, _importance(shape, axis))
    assert made is not None
    return made


def _error(values: np.ndarray, coded: Coded | None, weights: float | np.ndarray = 1.0) -> float:
    assert coded is not None
    halves = values.astype(np.float16).astype(np.float64)
    return float((np.square(halves - decode(coded)) * weights).sum())


def _as_operations_do(coded: Coded) -> np.ndarray:
    """What coremltools makes of the stored arrays, one constant expression after another."""
    from coremltools.converters.mil.mil.ops.defs.iOS18 import compression as ops

    shape, axis = coded.shape, coded.axis
    codes, scales, mask = coded.codes, coded.scales, coded.mask
    along = [1] * len(shape)
    if coded.luts is not None:
        luts = coded.luts
        if coded.lut_scales is not None:
            each = coded.lut_scales[:, None, None]
            luts = ops.constexpr_blockwise_shift_scale.decompress(luts, each, None)
        along[axis] = len(luts)
        luts, vector = luts.reshape(*along, *luts.shape[1:]), coded.scheme.vector
        turn = np.int32(axis) if vector > 1 else None
        if mask is not None:
            thin = mask.take(range(0, shape[axis], vector), axis)
            mask, codes = ops.constexpr_lut_to_sparse.decompress(thin, codes, luts, turn)
        else:
            codes = ops.constexpr_lut_to_dense.decompress(codes, luts, turn)
        spread = None if scales is None else scales[:, None]
    else:
        spread = scales
    if spread is not None:
        along[axis], along[0 if axis else 1] = spread.shape
        factors = (spread.T if axis else spread).reshape(along)
        if mask is not None:
            operation = ops.constexpr_sparse_blockwise_shift_scale
            mask, codes = operation.decompress(mask, codes, factors, None)
        else:
            operation = ops.constexpr_blockwise_shift_scale
            codes = operation.decompress(codes, factors, None)
    if mask is not None:
        codes = ops.constexpr_sparse_to_dense.decompress(codes, mask)
    return np.asarray(codes)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("layer", SHAPES)
def test_decodes_as_coremltools_does(name: str, layer: str) -> None:
    pytest.importorskip("coremltools")
    made = _made(parse_scheme(name), *SHAPES[layer])
    dense = decode(made)
    assert (dense.dtype, dense.shape) == (np.float32, made.shape)
    np.testing.assert_array_equal(dense, _as_operations_do(made).astype(np.float32))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("layer", SHAPES)
def test_arrays_are_as_promised(name: str, layer: str) -> None:
    (shape, axis), scheme = SHAPES[layer], parse_scheme(name)
    made = _made(scheme, shape, axis)
    short = tuple(n // scheme.vector if at == axis else n for at, n in enumerate(shape))
    kept = None if made.mask is None else int(made.mask.sum())
    assert (made.scheme, made.shape, made.axis) == (scheme, shape, axis)
    assert made.codes.shape == (short if kept is None else (kept // scheme.vector,))
    types = {"palette": np.uint8, "int": np.int8, "fp16": np.float16}
    assert made.codes.dtype == types[scheme.kind]
    assert (made.luts is None) is (scheme.kind != "palette")
    groups = shape[axis] // (scheme.group or shape[axis])
    if made.luts is not None:
        assert made.luts.shape == (groups, 2**scheme.bits, scheme.vector)
        assert made.luts.dtype == (np.int8 if scheme.int8_lut else np.float16)
        assert made.codes.max() < 2**scheme.bits
    assert (made.lut_scales is None) is not scheme.int8_lut
    if made.lut_scales is not None:
        assert (made.lut_scales.shape, made.lut_scales.dtype) == ((groups,), np.float16)
    inputs = shape[0 if axis else 1]
    runs = {"int": (shape[axis], inputs // (scheme.group or inputs)), "palette": (shape[axis],)}
    if scheme.kind == "int" or scheme.scaled:
        assert made.scales is not None
        assert (made.scales.shape, made.scales.dtype) == (runs[scheme.kind], np.float16)
    assert coded_bytes(made) == sum(stored_sizes(scheme, shape, axis)) < 2 * np.prod(shape)


@pytest.mark.parametrize("name", SCHEMES)
def test_threads_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(decode(_made(parse_scheme(name), *SHAPES["conv"])))
    np.testing.assert_array_equal(*found)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.sampled_from([0, 4, 16]), st.booleans())
def test_more_bits_err_less(seed: int, group: int, scaled: bool) -> None:
    values = _weight((32, 48), 0, seed)
    schemes = [Scheme("palette", bits, group, scaled=scaled) for bits in (1, 2, 3, 4, 6)]
    errors = [_error(values, code(values, 0, scheme)) for scheme in schemes]
    assert all(more < less for less, more in pairwise(errors))
    power = float(np.square(values).sum())
    assert errors[0] < power
    assert errors[-1] < 0.01 * power  # 6 bits of normal values in channels of unlike sizes
    integers = [_error(values, code(values, 0, Scheme("int", bits))) for bits in (4, 8)]
    assert integers[1] < integers[0] < power


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.sampled_from([0, 8]), st.sampled_from([1, 2]), st.booleans())
def test_scales_never_err_more(seed: int, group: int, vector: int, lut8: bool) -> None:
    values = _weight((32, 48), 0, seed)
    plain = Scheme("palette", 4, group, vector, int8_lut=lut8)
    scaled = code(values, 0, replace(plain, scaled=True))
    assert _error(values, scaled) <= _error(values, code(values, 0, plain)) * (1 + SUMS)


@pytest.mark.parametrize("name", ["palette4-scaled", "palette4-g16-scaled"])
def test_scales_help_channels_of_unlike_sizes(name: str) -> None:
    values, scheme = _weight((48, 64), 0), parse_scheme(name)
    plain = _error(values, code(values, 0, replace(scheme, scaled=False)))
    assert _error(values, code(values, 0, scheme)) < 0.7 * plain


@pytest.mark.parametrize("name", ["palette4", "palette3-g8", "palette4-v2", "palette4-g16-scaled"])
@pytest.mark.parametrize("layer", SHAPES)
def test_importance_lowers_what_it_weighs(name: str, layer: str) -> None:
    (shape, axis), scheme = SHAPES[layer], parse_scheme(name)
    values, importance = _weight(shape, axis), _importance(shape, axis) ** 2
    along = [importance.size if at == (0 if axis else 1) else 1 for at in range(len(shape))]
    weights = importance.reshape(along)
    weighted = replace(scheme, weighted=True)
    errors = [
        _error(values, code(values, axis, each, importance), weights) for each in (scheme, weighted)
    ]
    assert errors[1] < errors[0]
    alone = code(values, axis, weighted)
    np.testing.assert_array_equal(decode(alone), decode(code(values, axis, scheme, importance)))


@pytest.mark.parametrize("name", ["palette4-lut8", "palette3-g8-scaled", "palette4-g8-scaled-lut8"])
def test_every_value_has_the_nearest_of_what_is_stored(name: str) -> None:
    values = _weight((48, 64), 0)
    made = code(values, 0, parse_scheme(name))
    halves, dense = values.astype(np.float16).astype(np.float64), decode(made).astype(np.float64)
    for row in range(48):
        group = row * len(made.luts) // 48
        entries = made.luts[group, :, 0]
        if made.lut_scales is not None:
            entries = (entries * made.lut_scales[group]).astype(np.float16)
        if made.scales is not None:
            entries = (entries * made.scales[row]).astype(np.float16)
        away = np.abs(halves[row, :, None] - entries.astype(np.float64))
        np.testing.assert_array_equal(np.abs(halves[row] - dense[row]), away.min(1))


@pytest.mark.parametrize(("name", "step"), [("int8", 127), ("int8-b16", 127), ("int4-b8", 7)])
def test_integers_are_the_nearest_at_their_scale(name: str, step: int) -> None:
    values = _weight((48, 64), 0)
    made = code(values, 0, parse_scheme(name))
    halves = values.astype(np.float16).astype(np.float32).reshape(48, made.scales.shape[1], -1)
    scales = made.scales.astype(np.float32)[..., None]
    away = np.abs(halves - made.codes.reshape(halves.shape) * scales)
    beyond = np.maximum(np.abs(halves) - step * scales, 0)
    assert (away <= np.maximum(scales / 2, beyond) * (1 + SUMS)).all()
    if step == 127:
        most = np.abs(halves).max(-1) / step
        np.testing.assert_allclose(made.scales, most, rtol=HALF_ULP, atol=2.0**-25)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("block", [0, 8])
def test_clipping_errs_as_little_as_a_fine_search(block: int, weighted: bool) -> None:
    values, importance = _weight((16, 64), 0), _importance((16, 64), 0)
    made = code(values, 0, Scheme("int", 4, block, weighted=weighted), importance)
    runs = values.astype(np.float16).astype(np.float64).reshape(16, made.scales.shape[1], -1)
    weights = importance.reshape(1, made.scales.shape[1], -1) if weighted else np.ones(1)
    found = np.square(decode(made).reshape(runs.shape) - runs)
    best = np.full(runs.shape[:2], np.inf)
    for clip in np.linspace(0.3, 1.1, 400):
        scales = clip * np.abs(runs).max(-1, keepdims=True) / 7
        tried = np.clip(np.rint(runs / scales), -8, 7) * scales
        best = np.minimum(best, (np.square(tried - runs) * weights).sum(-1))
    # Twenty clips, refined, against four hundred; of some runs one side finds the better step.
    assert (found * weights).sum() <= 1.02 * best.sum()


@pytest.mark.parametrize("name", ["sparse50-fp16", "sparse50-palette8", "sparse35-int8"])
def test_the_smallest_are_left_out(name: str) -> None:
    values, scheme = _weight((48, 64), 0), parse_scheme(name)
    made = code(values, 0, scheme)
    sizes = np.abs(values.astype(np.float16))
    assert (made.mask == 0).sum() == values.size * scheme.sparse // 100
    assert sizes[made.mask == 0].max() <= sizes[made.mask == 1].min()
    dense = decode(made)
    assert not dense[made.mask == 0].any()
    if scheme.kind == "fp16":
        np.testing.assert_array_equal(
            dense[made.mask == 1], values.astype(np.float16)[made.mask == 1]
        )


def test_importance_decides_what_is_left_out() -> None:
    values, importance = _weight((48, 64), 0), _importance((48, 64), 0)
    made = code(values, 0, parse_scheme("sparse50-palette8-weighted"), importance)
    scores = np.square(values.astype(np.float16).astype(np.float64)) * importance
    assert scores[made.mask == 0].max() <= scores[made.mask == 1].min()


def test_equally_small_ones_go_in_order() -> None:
    values = np.ones((32, 64), np.float32)
    made = code(values, 0, parse_scheme("sparse50-palette4"))
    np.testing.assert_array_equal(made.mask, np.repeat([0, 1], 16)[:, None].repeat(64, 1))


@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_left_out_does_not_shape_the_palette(axis: int) -> None:
    values = np.full((64, 48), 1e-3, np.float32)
    values[::2] = np.random.default_rng(0).choice([1.0, 2.0, 3.0, 4.0], (32, 48))
    made = code(values, axis, parse_scheme("sparse50-palette2"))
    np.testing.assert_array_equal(decode(made)[::2], values[::2])


@pytest.mark.parametrize(("vector", "bits"), [(2, 2), (2, 4), (2, 8), (4, 4), (4, 8), (8, 8)])
def test_vectors_never_err_more_than_scalars_of_as_many_bits(vector: int, bits: int) -> None:
    values = _weight((64, 96), 0)
    whole = code(values, 0, Scheme("palette", bits, vector=vector))
    alone = code(values, 0, Scheme("palette", bits // vector))
    rounding = HALF_ULP * float(np.square(values).sum()) ** 0.5
    assert _error(values, whole) ** 0.5 <= _error(values, alone) ** 0.5 + rounding


@pytest.mark.parametrize(("vector", "bits"), [(2, 4), (2, 6), (4, 4), (4, 6)])
def test_vectors_are_as_good_as_those_of_scikit_learn(vector: int, bits: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    values = np.random.default_rng(2).normal(size=(32, 64)).astype(np.float32)
    points = values.reshape(-1, vector, 64).transpose(0, 2, 1).reshape(-1, vector)
    theirs = cluster.KMeans(2**bits, n_init=2, random_state=0).fit(points).inertia_
    ours = _error(values, code(values, 0, Scheme("palette", bits, vector=vector)))
    assert ours <= 1.06 * theirs  # both end in some local optimum


@pytest.mark.parametrize(
    ("name", "shape", "axis"),
    [
        ("fp16", (64, 64), 0),
        ("palette4", (4096,), 0),
        ("palette4", (0, 64), 0),
        ("int8", (31, 33), 0),  # 1,023 values
        ("palette4-g16", (40, 64), 0),  # 8 channels left over
        ("palette4-v4", (42, 64), 0),  # 2 channels left over
        ("palette4-g4-v8", (64, 64), 0),  # groups smaller than a vector
        ("int4-b48", (64, 64), 0),  # 16 inputs left over
        ("int4-b32", (48, 64), 1),  # 16 inputs left over
        ("palette8-g1", (64, 64), 0),  # palettes larger than what they save
        ("sparse3-fp16", (64, 64), 0),  # a mask larger than what it saves
        ("palette8-v8", (32, 32), 0),  # 256 vectors and as many entries
    ],
)
def test_what_is_better_left_dense(name: str, shape: tuple[int, ...], axis: int) -> None:
    assert code(np.ones(shape, np.float32), axis, parse_scheme(name)) is None


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("value", [np.nan, -np.inf, 70000.0])
def test_refuses_what_half_precision_cannot_hold(name: str, value: float) -> None:
    values = _weight((48, 64), 0)
    values[3, 4] = value
    with pytest.raises(ValueError, match="not finite"):
        code(values, 0, parse_scheme(name))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("value", [0.0, -0.02, 65504.0, 2.0**-24])
def test_values_that_are_all_equal(name: str, value: float) -> None:
    scheme = parse_scheme(name)
    made = code(np.full((48, 64), value, np.float32), 0, scheme, np.ones(64))
    kept = decode(made)[np.ones((48, 64), bool) if made.mask is None else made.mask == 1]
    # The last integer times its scale, both rounded; none is beyond half precision.
    near = 2**-10 * abs(value) + 2.0**-24
    np.testing.assert_allclose(kept, np.float16(value), rtol=0, atol=near)


@pytest.mark.parametrize("name", ["palette4-weighted", "palette4-g8-v2-scaled-weighted"])
def test_importance_of_nothing_is_that_of_all_alike(name: str) -> None:
    values, scheme = _weight((48, 64), 0), parse_scheme(name)
    found = [decode(code(values, 0, scheme, weights)) for weights in (np.zeros(64), None)]
    np.testing.assert_array_equal(*found)


def test_refuses_importance_of_another_layer() -> None:
    with pytest.raises(ValueError, match=r"importance \(48,\) does not fit 64"):
        code(_weight((48, 64), 0), 0, parse_scheme("palette4-weighted"), np.ones(48))


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_refuses_importance_that_is_none(value: float) -> None:
    importance = np.append(np.ones(63), value)
    with pytest.raises(ValueError, match="negative or not finite"):
        code(_weight((48, 64), 0), 0, parse_scheme("palette4-v2-weighted"), importance)


def test_refuses_a_wish() -> None:
    with pytest.raises(ValueError, match="4-bit"):
        code(_weight((48, 64), 0), 0, parse_scheme("4-bit"))
