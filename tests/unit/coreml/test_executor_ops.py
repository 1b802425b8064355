"""Each MIL op the executor knows, against coremltools' own numpy inference or torch.

All cases of a target live in one program with one output each, so one conversion serves them all.
Inputs are multiples of 1/64, which fp16 holds exactly: whatever differs was computed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

ct = pytest.importorskip("coremltools")

from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402

from nanoflux_export.targets.coreml.executor import load  # noqa: E402
from nanoflux_export.targets.coreml.mil_ops.table import OPS  # noqa: E402
from nanoflux_export.targets.coreml.package import open_package  # noqa: E402
from nanoflux_export.targets.coreml.program import op_kinds  # noqa: E402

# float32 sums in another order than numpy's or torch's: a few ulp of the largest value.
FP32_ROUNDING = 1e-5
# One rounding of the result to 11 bits, one of the op's constants (epsilon, scale) when saved.
FP16_ROUNDING = 2 * 2.0**-11

HALF_PASSES = [
    "common::add_fp16_cast",
    "common::cast_optimization",
    "common::const_elimination",
    "common::dead_code_elimination",
]

Values = dict[str, Any]
Build = Callable[[Any], Any]


class Case(NamedTuple):
    """How to write the op, and what torch says it gives."""

    build: Build
    torch: Callable[[Any], torch.Tensor]


def _grid(*shape: int, low: float, high: float, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).uniform(low, high, shape)
    return (np.round(values * 64) / 64).astype(np.float32)


INPUTS: Values = {
    "x": _grid(2, 4, 6, 8, low=-2, high=2, seed=0),
    "y": _grid(2, 4, 6, 8, low=-2, high=2, seed=1),
    "p": _grid(2, 4, 6, 8, low=0.25, high=4, seed=2),
    "row": _grid(1, 1, 1, 8, low=0.5, high=2, seed=3),
    "s": _grid(3, 5, 16, low=-2, high=2, seed=4),
    "i": np.array([[0, 3, 1], [2, 2, 0]], np.int32),
}
KERNEL = _grid(8, 4, 3, 3, low=-1, high=1, seed=5)
KERNEL_EVEN = _grid(8, 4, 2, 4, low=-1, high=1, seed=6)
KERNEL_1D = _grid(7, 5, 3, low=-1, high=1, seed=7)
DEPTHWISE = _grid(4, 1, 3, 3, low=-1, high=1, seed=8)
TRANSPOSED = _grid(4, 3, 3, 3, low=-1, high=1, seed=9)
DENSE = _grid(12, 16, low=-1, high=1, seed=10)
BIAS = _grid(12, low=-1, high=1, seed=11)
MASK = _grid(1, 1, 6, 6, low=-1, high=1, seed=12)

# Steps that half precision holds; many of the inputs lie between two of them, some beyond the last.
STEP = np.float32(2**-7)
GRID = {
    "scale": np.array([2**-4, 2**-5, 2**-7, 2**-8], np.float32),
    "zero_point": np.array([128, 0, 255, 7], np.uint8),
    "axis": 1,
}


def _t(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


def _column(vector: np.ndarray) -> torch.Tensor:
    return _t(vector[:4]).reshape(1, 4, 1, 1)


def _positive(tensor: Any) -> Any:
    return mb.greater(x=tensor, y=0.0)


def _number(boolean: Any) -> Any:
    return mb.cast(x=boolean, dtype="int32")


def _call(name: str, *tensors: str, **settings: Any) -> Build:
    """The op `name` on inputs of the table, bound to x and y in order."""

    def build(v: Any) -> Any:
        given = {to: getattr(v, of) for to, of in zip("xy", tensors, strict=False)}
        return getattr(mb, name)(**given, **settings)

    return build


UNARY = (
    *("abs", "ceil", "cos", "erf", "exp", "exp2", "floor", "gelu", "identity", "relu", "relu6"),
    *("round", "sigmoid", "sign", "sin", "softplus", "square", "tanh", "shape"),
)
COMPARISONS = ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")
REDUCTIONS = ("reduce_mean", "reduce_sum", "reduce_max", "reduce_min", "reduce_l2_norm")

# These are held against what coremltools computes with numpy when the inputs are constants.
BY_NUMPY: dict[str, Build] = {
    **{name: _call(name, "x") for name in UNARY},
    **{name: _call(name, "x", "y") for name in ("add", "sub", "mul", "maximum", "minimum")},
    **{name: _call(name, "x", "row") for name in ("real_div", "floor_div", "mod")},
    **{name: lambda v, n=name: _number(_call(n, "i", y=2)(v)) for name in COMPARISONS},
    **{
        name: lambda v, n=name: _number(getattr(mb, n)(x=_positive(v.x), y=_positive(v.y)))
        for name in ("logical_and", "logical_or", "logical_xor")
    },
    **{name: _call(name, "x", axes=[1, -1], keep_dims=True) for name in REDUCTIONS},
    "logical_not": lambda v: _number(mb.logical_not(x=_positive(v.x))),
    "sqrt": _call("sqrt", "p"),
    "rsqrt": _call("rsqrt", "p", epsilon=0.125),
    "inverse": _call("inverse", "p", epsilon=0.5),
    "log": _call("log", "p", epsilon=0.5),
    "clip": _call("clip", "x", alpha=-0.5, beta=1.0),
    "leaky_relu": _call("leaky_relu", "x", alpha=0.25),
    "gelu/tanh": _call("gelu", "x", mode="TANH_APPROXIMATION"),
    "gelu/sigmoid": _call("gelu", "x", mode="SIGMOID_APPROXIMATION"),
    "pow": _call("pow", "p", "x"),
    "pow/square": _call("pow", "x", y=2.0),
    "floor_div/int": _call("floor_div", "i", y=2),
    "cast/int32": _call("cast", "x", dtype="int32"),
    "cast/fp32": _call("cast", "i", dtype="fp32"),
    "cast/bool": lambda v: _number(mb.cast(x=v.x, dtype="bool")),
    "quantize": lambda v: _number(mb.quantize(input=v.x, scale=STEP, output_dtype="int8")),
    "quantize/axis": lambda v: _number(mb.quantize(input=v.x, **GRID, output_dtype="uint8")),
    "select": lambda v: mb.select(cond=_positive(v.x), a=v.x, b=v.y),
    "concat": lambda v: mb.concat(values=[v.x, v.y, v.p], axis=-2),
    "stack": lambda v: mb.stack(values=[v.x, v.y], axis=1),
    "split": lambda v: mb.split(x=v.x, num_splits=4, axis=3)[2],
    "split/sizes": lambda v: mb.split(x=v.x, split_sizes=[1, 3, 2], axis=-2)[1],
    "expand_dims": _call("expand_dims", "s", axes=[-1, 1]),
    "squeeze": _call("squeeze", "row", axes=[0, 2]),
    "squeeze/all": _call("squeeze", "row"),
    "reshape": _call("reshape", "x", shape=[8, -1, 3]),
    "reshape/zero": _call("reshape", "x", shape=[0, 8, 0, -1]),
    "reshape/computed": lambda v: mb.reshape(
        x=v.i, shape=mb.shape(x=mb.transpose(x=v.i, perm=[1, 0]))
    ),
    "transpose": _call("transpose", "x", perm=[0, -1, 1, 2]),
    "tile": _call("tile", "s", reps=[2, 1, 3]),
    "slice_by_index": _call("slice_by_index", "x", begin=[0, 1, 2, -7], end=[2, 3, -1, 8]),
    "slice_by_index/strides": _call(
        "slice_by_index",
        "x",
        begin=[0, 3, 4, 0],
        end=[2, 0, 0, 0],
        stride=[1, -2, -1, 3],
        begin_mask=[True, False, False, False],
        end_mask=[True, False, True, True],
    ),
    "slice_by_index/squeeze": _call(
        "slice_by_index",
        "x",
        begin=[1, 0, -2, 7],
        end=[0, 4, 0, 0],
        stride=[1, 1, 1, -1],
        end_mask=[False, False, False, True],
        squeeze_mask=[True, False, True, False],
    ),
    "slice_by_size": _call("slice_by_size", "x", begin=[0, 1, 2, 3], size=[2, 2, -1, 4]),
    "gather": lambda v: mb.gather(x=v.x, indices=v.i, axis=2),
    "gather_along_axis": lambda v: mb.gather_along_axis(
        x=mb.slice_by_size(x=v.s, begin=[0, 0, 0], size=[2, 5, 3]),
        indices=mb.expand_dims(x=v.i, axes=[1]),
        axis=1,
    ),
    "band_part": _call("band_part", "x", lower=1, upper=2),
    "band_part/causal": _call("band_part", "x", lower=-1, upper=0),
    "reduce_mean/all": _call("reduce_mean", "x"),
    "reduce_argmax": _call("reduce_argmax", "x", axis=2),
    "reduce_argmin": _call("reduce_argmin", "x", axis=-1, keep_dims=True),
    "cumsum": _call("cumsum", "x", axis=1),
    "softmax": _call("softmax", "x", axis=1),
    "layer_norm": _call("layer_norm", "s", axes=[-1], gamma=DENSE[0], beta=DENSE[1], epsilon=0.5),
    "layer_norm/channels": _call(
        "layer_norm", "x", axes=[1], gamma=DENSE[0, :4], beta=DENSE[1, :4]
    ),
    "l2_norm": _call("l2_norm", "x", epsilon=0.25),
    "fill": lambda v: mb.fill(shape=mb.shape(x=v.s), value=0.75),
    "range_1d": lambda v: mb.range_1d(end=mb.reduce_max(x=v.i), start=mb.reduce_min(x=v.i), step=1),
    "linear": _call("linear", "s", weight=DENSE, bias=BIAS),
    "matmul": _call("matmul", "x", "y", transpose_y=True),
    "matmul/transpose_x": _call("matmul", "x", "y", transpose_x=True),
    "einsum": lambda v: mb.einsum(
        values=(v.x, mb.transpose(x=v.y, perm=[0, 3, 2, 1])), equation="nchw,nwhu->nchu"
    ),
}
BY_TORCH: dict[str, Case] = {
    "silu": Case(_call("silu", "x"), lambda v: v.x * torch.sigmoid(v.x)),
    "concat/interleave": Case(
        lambda v: mb.concat(values=[v.x, v.y], axis=1, interleave=True),
        lambda v: torch.stack([v.x, v.y], 2).reshape(2, 8, 6, 8),
    ),
    "gather/uint16": Case(
        lambda v: mb.gather(x=v.x, indices=mb.cast(x=v.i, dtype="uint16"), axis=3),
        lambda v: v.x[..., v.i.long()],
    ),
    "gather/batch_dims": Case(
        lambda v: mb.gather(x=v.x, indices=v.i, axis=-1, batch_dims=1),
        lambda v: torch.stack([v.x[b][..., v.i[b].long()] for b in range(2)]),
    ),
    "gather_nd": Case(
        lambda v: mb.gather_nd(x=v.s, indices=mb.gather(x=v.i, indices=[0, 2, 0], axis=1)),
        lambda v: torch.stack([v.s[0, 1, 0], v.s[2, 0, 2]]),
    ),
    "gather_nd/batch_dims": Case(
        lambda v: mb.gather_nd(
            x=v.x, indices=mb.slice_by_size(x=v.i, begin=[0, 0], size=[2, 2]), batch_dims=1
        ),
        lambda v: torch.stack([v.x[0, 0, 3], v.x[1, 2, 2]]),
    ),
    "pad": Case(
        _call("pad", "x", pad=[0, 0, 0, 0, 1, 2, 3, 0], constant_val=0.5),
        lambda v: F.pad(v.x, (3, 0, 1, 2), value=0.5),
    ),
    "pad/reflect": Case(
        _call("pad", "x", pad=[0, 0, 0, 0, 1, 2, 3, 0], mode="reflect"),
        lambda v: F.pad(v.x, (3, 0, 1, 2), mode="reflect"),
    ),
    "pad/replicate": Case(
        _call("pad", "x", pad=[2, 1, 1, 1], mode="replicate"),
        lambda v: F.pad(v.x, (1, 1, 2, 1), mode="replicate"),
    ),
    "pixel_shuffle": Case(
        _call("pixel_shuffle", "x", upscale_factor=2), lambda v: F.pixel_shuffle(v.x, 2)
    ),
    "pixel_unshuffle": Case(
        _call("pixel_unshuffle", "x", downscale_factor=np.uint32(2)),
        lambda v: F.pixel_unshuffle(v.x, 2),
    ),
    "upsample_nearest_neighbor": Case(
        _call("upsample_nearest_neighbor", "x", scale_factor_height=2, scale_factor_width=3),
        lambda v: v.x.repeat_interleave(2, 2).repeat_interleave(3, 3),
    ),
    "resize_nearest_neighbor": Case(
        _call("resize_nearest_neighbor", "s", target_size_height=10, target_size_width=8),
        lambda v: v.s.repeat_interleave(2, 1)[..., ::2],
    ),
    "cumsum/reverse_exclusive": Case(
        _call("cumsum", "x", axis=1, reverse=True, exclusive=True),
        lambda v: torch.stack([v.x[:, at + 1 :].sum(1) for at in range(4)], 1),
    ),
    "instance_norm": Case(
        _call("instance_norm", "x", gamma=DENSE[0, :4], beta=DENSE[1, :4], epsilon=0.125),
        lambda v: F.group_norm(v.x, 4, _t(DENSE[0, :4]), _t(DENSE[1, :4]), 0.125),
    ),
    "batch_norm": Case(
        _call("batch_norm", "x", mean=BIAS[:4], variance=np.abs(BIAS[4:8]), epsilon=0.25),
        lambda v: (v.x - _column(BIAS)) / (_column(BIAS[4:]).abs() + 0.25).sqrt(),
    ),
    "conv": Case(
        _call("conv", "x", weight=KERNEL, bias=BIAS[:8]),
        lambda v: F.conv2d(v.x, _t(KERNEL), _t(BIAS[:8])),
    ),
    "conv/custom": Case(
        _call(
            *("conv", "x"),
            **{"weight": KERNEL, "strides": [2, 1], "dilations": [1, 2]},
            **{"pad_type": "custom", "pad": [1, 2, 0, 1]},
        ),
        lambda v: F.conv2d(F.pad(v.x, (0, 1, 1, 2)), _t(KERNEL), stride=(2, 1), dilation=(1, 2)),
    ),
    "conv/same": Case(
        _call("conv", "x", weight=KERNEL_EVEN, pad_type="same"),
        lambda v: F.conv2d(F.pad(v.x, (1, 2, 0, 1)), _t(KERNEL_EVEN)),
    ),
    "conv/same_lower": Case(
        _call("conv", "x", weight=KERNEL_EVEN, pad_type="same_lower"),
        lambda v: F.conv2d(F.pad(v.x, (2, 1, 1, 0)), _t(KERNEL_EVEN)),
    ),
    "conv/same_strided": Case(
        _call("conv", "x", weight=KERNEL, pad_type="same", strides=[2, 2]),
        lambda v: F.conv2d(F.pad(v.x, (0, 1, 0, 1)), _t(KERNEL), stride=2),
    ),
    "conv/depthwise": Case(
        _call("conv", "x", weight=DEPTHWISE, pad_type="same", groups=4),
        lambda v: F.conv2d(v.x, _t(DEPTHWISE), padding=1, groups=4),
    ),
    "conv/1d": Case(_call("conv", "s", weight=KERNEL_1D), lambda v: F.conv1d(v.s, _t(KERNEL_1D))),
    "conv_transpose": Case(
        _call("conv_transpose", "x", weight=TRANSPOSED, bias=BIAS[:3], strides=[2, 3]),
        lambda v: F.conv_transpose2d(v.x, _t(TRANSPOSED), _t(BIAS[:3]), stride=(2, 3)),
    ),
    "conv_transpose/custom": Case(
        _call(
            *("conv_transpose", "x"),
            **{"weight": TRANSPOSED, "strides": [2, 2]},
            **{"pad_type": "custom", "pad": [1, 1, 0, 2]},
        ),
        lambda v: F.conv_transpose2d(v.x, _t(TRANSPOSED), stride=2)[:, :, 1:-1, :-2],
    ),
    "conv_transpose/output_shape": Case(
        _call(
            *("conv_transpose", "x"),
            **{"weight": TRANSPOSED, "bias": BIAS[:3], "strides": [2, 2]},
            **{"pad_type": "custom", "pad": [1, 1, 1, 1], "output_shape": [2, 3, 12, 16]},
        ),
        lambda v: F.conv_transpose2d(v.x, _t(TRANSPOSED), _t(BIAS[:3]), 2, 1, 1),
    ),
    "conv_transpose/same": Case(
        _call("conv_transpose", "x", weight=TRANSPOSED, pad_type="same", strides=[2, 2]),
        lambda v: F.conv_transpose2d(v.x, _t(TRANSPOSED), stride=2)[:, :, :-1, :-1],
    ),
    "avg_pool": Case(
        _call(
            *("avg_pool", "x"),
            **{"kernel_sizes": [2, 3], "strides": [2, 1]},
            **{"pad_type": "custom", "pad": [0, 0, 1, 1]},
        ),
        lambda v: F.avg_pool2d(v.x, (2, 3), (2, 1), (0, 1)),
    ),
    "avg_pool/exclude": Case(
        _call(
            *("avg_pool", "x"),
            **{"kernel_sizes": [2, 2], "pad_type": "same", "exclude_padding_from_average": True},
        ),
        lambda v: (
            F.avg_pool2d(F.pad(v.x, (0, 1, 0, 1)), 2, 1)
            / F.avg_pool2d(F.pad(torch.ones_like(v.x), (0, 1, 0, 1)), 2, 1)
        ),
    ),
    "max_pool": Case(
        _call(
            *("max_pool", "x"),
            **{"kernel_sizes": [3, 3], "strides": [2, 2], "ceil_mode": True},
            **{"pad_type": "custom", "pad": [1, 1, 1, 1]},
        ),
        lambda v: F.max_pool2d(v.x, 3, 2, 1, ceil_mode=True),
    ),
    "max_pool/same": Case(
        _call("max_pool", "x", kernel_sizes=[2, 2], pad_type="same"),
        lambda v: F.max_pool2d(F.pad(v.x, (0, 1, 0, 1), value=-9.0), 2, 1),
    ),
    "upsample_bilinear": Case(
        _call("upsample_bilinear", "x", scale_factor_height=2, scale_factor_width=3),
        lambda v: F.interpolate(v.x, (12, 24), mode="bilinear", align_corners=True),
    ),
    "upsample_bilinear/half_pixel": Case(
        _call(
            *("upsample_bilinear", "x"),
            **{"scale_factor_height": 2, "align_corners": False, "half_pixel_centers": True},
        ),
        lambda v: F.interpolate(v.x, (12, 8), mode="bilinear", align_corners=False),
    ),
    "resize_bilinear": Case(
        _call(
            *("resize_bilinear", "x"),
            **{"target_size_height": 9, "target_size_width": 5},
            **{"sampling_mode": "UNALIGN_CORNERS"},
        ),
        lambda v: F.interpolate(v.x, (9, 5), mode="bilinear", align_corners=False),
    ),
}
BY_TORCH |= {
    "dequantize": Case(
        lambda v: mb.dequantize(
            input=mb.quantize(input=v.x, scale=STEP, output_dtype="int8"), scale=STEP
        ),
        lambda v: torch.fake_quantize_per_tensor_affine(v.x, float(STEP), 0, -128, 127),
    ),
    "dequantize/axis": Case(
        lambda v: mb.dequantize(input=mb.quantize(input=v.x, **GRID, output_dtype="uint8"), **GRID),
        lambda v: torch.fake_quantize_per_channel_affine(
            v.x, _t(GRID["scale"]), _t(GRID["zero_point"].astype(np.int32)), 1, 0, 255
        ),
    ),
}
IOS18: dict[str, Case] = {
    "scaled_dot_product_attention": Case(
        lambda v: mb.scaled_dot_product_attention(query=v.x, key=v.y, value=v.p),
        lambda v: (v.x @ v.y.mT / 8**0.5).softmax(-1) @ v.p,
    ),
    "scaled_dot_product_attention/mask": Case(
        lambda v: mb.scaled_dot_product_attention(query=v.x, key=v.y, value=v.p, attn_mask=MASK),
        lambda v: (v.x @ v.y.mT / 8**0.5 + _t(MASK)).softmax(-1) @ v.p,
    ),
}
TARGETS: dict[str, dict[str, Build | Case]] = {
    "iOS17": {**BY_NUMPY, **BY_TORCH},
    "iOS18": {**IOS18},
}


def _output(name: str) -> str:
    return "out_" + name.replace("/", "_")


def _save(path: Path, target: str, precision: Any, passes: list[str]) -> Path:
    """One program with every case of `target` as an output, written without other passes."""
    shapes = [
        mb.TensorSpec(array.shape, types.int32 if array.dtype == np.int32 else types.fp32)
        for array in INPUTS.values()
    ]

    @mb.program(input_specs=shapes, opset_version=getattr(ct.target, target))
    def program(x: Any, y: Any, p: Any, row: Any, s: Any, i: Any) -> Any:
        given = SimpleNamespace(x=x, y=y, p=p, row=row, s=s, i=i)
        builds = {n: c.build if isinstance(c, Case) else c for n, c in TARGETS[target].items()}
        return tuple(
            mb.identity(x=build(given), name=_output(name)) for name, build in builds.items()
        )

    ct.convert(
        program,
        minimum_deployment_target=getattr(ct.target, target),
        compute_precision=precision,
        pass_pipeline=ct.PassPipeline(passes),
    ).save(str(path))
    return path


def _numpy_inference() -> Values:
    """What coremltools itself computes for the ops that it can fold into constants."""
    folded: Values = {}

    @mb.program(input_specs=[], opset_version=ct.target.iOS17)
    def program() -> Any:
        given = SimpleNamespace(**{name: mb.const(val=array) for name, array in INPUTS.items()})
        folded.update({name: build(given).val for name, build in BY_NUMPY.items()})
        return given.x

    return folded


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def expected(target: str) -> Values:
    given = SimpleNamespace(**{name: torch.from_numpy(array) for name, array in INPUTS.items()})
    cases = {name: case for name, case in TARGETS[target].items() if isinstance(case, Case)}
    by_torch = {name: case.torch(given).numpy() for name, case in cases.items()}
    return by_torch | (_numpy_inference() if target == "iOS17" else {})


@pytest.fixture(scope="module")
def exact_package(target: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ops") / "exact.mlpackage"
    return _save(path, target, ct.precision.FLOAT32, [])


@pytest.fixture(scope="module")
def half_package(target: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ops") / "half.mlpackage"
    return _save(path, target, ct.precision.FLOAT16, HALF_PASSES)


def _errors(results: Values, expected: Values) -> dict[str, float]:
    """Largest error of each case, relative to its largest value; a wrong shape is infinite."""
    errors = {}
    for name, wanted in expected.items():
        got = results[_output(name)]
        same = got.shape == np.shape(wanted) and got.dtype.kind == np.asarray(wanted).dtype.kind
        scale = max(1.0, float(np.abs(wanted).max())) if same else 1.0
        errors[name] = float(np.abs(got - wanted).max()) / scale if same else float("inf")
    return errors


def _beyond(errors: dict[str, float], tolerance: float) -> dict[str, float]:
    return {name: error for name, error in errors.items() if not error <= tolerance}


def test_every_op_of_the_table_has_a_case() -> None:
    written = {name.split("/")[0] for cases in TARGETS.values() for name in cases}
    assert written == set(OPS)


def test_cases_really_use_their_op(target: str, exact_package: Path) -> None:
    wanted = {name.split("/")[0] for name in TARGETS[target]}
    assert wanted - op_kinds(open_package(exact_package)) == set()


def test_fp32_program_equals_the_reference(exact_package: Path, expected: Values) -> None:
    errors = _errors(load(exact_package)(**INPUTS), expected)
    assert _beyond(errors, FP32_ROUNDING) == {}


def test_fp32_precision_ignores_fp16_declarations(half_package: Path, expected: Values) -> None:
    errors = _errors(load(half_package)(**INPUTS), expected)
    assert _beyond(errors, FP32_ROUNDING) == {}


def test_fp16_precision_rounds_each_result(half_package: Path, expected: Values) -> None:
    results = load(half_package, precision="fp16")(**INPUTS)
    errors = _errors(results, expected)
    assert _beyond(errors, FP16_ROUNDING) == {}
    assert max(errors.values()) > FP32_ROUNDING
    for name, result in results.items():
        assert np.array_equal(result, result.astype(np.float16).astype(result.dtype)), name
