"""What in an ONNX model the Qualcomm NPU of a Windows machine would refuse, change or hand back.

`NPU_OPS` are the ops for which the QNN execution provider of onnxruntime has a builder; what it has
none for runs on the CPU. Its Gelu builder reads no `approximate`, and QNN's Gelu is the exact one.
The NPU computes in half precision (onnxruntime's enable_htp_fp16_precision, on by default).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from nanoflux_export.findings import (
    LEAST_NORMAL_HALF,
    LOWEST_HALF,
    SQUARES_TO,
    Advice,
    Rule,
)
from nanoflux_export.targets.onnx.lint_graph import View
from nanoflux_export.targets.onnx.model_file import Op, Tensor

_ONNXRUNTIME = "https://github.com/microsoft/onnxruntime"
_BUILDERS = f"{_ONNXRUNTIME}/blob/main/onnxruntime/core/providers/qnn/builder"
_PROVIDER = "https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html"
_HALF = f"{_ONNXRUNTIME}/pull/22186"
_BUILT = """
Abs Add And ArgMax ArgMin Asin Atan AveragePool BatchNormalization Cast Ceil Clip Concat Conv
ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Einsum Elu Equal Exp Expand Flatten Floor
Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
GridSample GroupNormalization HardSigmoid HardSwish InstanceNormalization IsNaN LRN LSTM
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization MatMul Max MaxPool Mean
Min Mod Mul Neg Not Or PRelu Pad Pow QuantizeLinear RMSNormalization RandomUniformLike Reciprocal
ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize RoiAlign Round STFT
ScatterElements ScatterND Sigmoid Sign Sin Slice Softmax SpaceToDepth Split Sqrt Squeeze Sub Sum Tan
Tanh ThresholdedRelu Tile TopK Transpose Unsqueeze Upsample Where
"""
NPU_OPS = frozenset(_BUILT.split())
"""Ops the QNN execution provider can take."""

_MOST_AXES = 5
_WIDE = frozenset({"float64", "int64", "uint64"})
_MEANS = ("ReduceMean", "ReduceSum")
_ADDS_MASKS = ("Add", "Sub", "Where")
_TAKES_EPSILONS = ("Add", "Div", "Max", "Mul", "Sub")

File = tuple[View, ...]


def _ops(check: Callable[[View, Op], bool]) -> Callable[[File], Iterator[str]]:
    """The ops that a check says yes to, by what they make, as viewers call them."""
    return lambda file: (op.outputs[0] for view in file for op in view.graph.ops if check(view, op))


def _values(check: Callable[[Tensor], bool]) -> Callable[[File], Iterator[str]]:
    """The values that a check says yes to."""
    return lambda file: (
        name for view in file for name, value in view.graph.values.items() if check(value)
    )


def _wide(view: View, op: Op) -> bool:
    made = (view.graph.values[name] for name in op.outputs if name)
    return any(value.dtype in _WIDE for value in made)


def _large_square(view: View, op: Op) -> bool:
    """Whether it sums squares of values that nothing has made small before."""
    square = view.makers.get(op.inputs[0]) if op.kind in _MEANS else None
    return square is not None and _is_square(view, square) and not _is_scaled(view, square)


def _is_square(view: View, op: Op) -> bool:
    if op.kind == "Pow":
        return 2.0 in view.scalars(op)
    return op.kind == "Mul" and op.inputs[0] == op.inputs[1]


def _is_scaled(view: View, square: Op) -> bool:
    maker = view.makers.get(square.inputs[0])
    if maker is None or maker.kind != "Mul":
        return maker is not None and maker.kind == "Div"
    return any(0.0 < abs(factor) < 1.0 for factor in view.scalars(maker))


def _subnormal(view: View, op: Op) -> bool:
    given = view.scalars(op) if op.kind in _TAKES_EPSILONS else ()
    return any(0.0 < abs(value) < LEAST_NORMAL_HALF for value in given)


def _low_mask(view: View, op: Op) -> bool:
    masks = view.constants(op) if op.kind in _ADDS_MASKS else ()
    return any(bool((~np.isfinite(mask) | (mask <= LOWEST_HALF)).any()) for mask in masks)


RULES: tuple[Rule[File], ...] = (
    Rule(
        "npu/refused-op",
        "warning",
        "the NPU has no form of the op: it runs on the CPU, a round trip between processors",
        "express it with ops the NPU has, or keep it out of the graph",
        f"{_BUILDERS}/op_builder_factory.cc",
        _ops(lambda view, op: op.kind not in NPU_OPS),
    ),
    Rule(
        "npu/rank",
        "warning",
        "NPU ops take at most five axes: what has more runs on the CPU",
        "fold axes together",
        _PROVIDER,
        _values(lambda value: len(value.shape) > _MOST_AXES),
    ),
    Rule(
        "npu/dynamic-shape",
        "error",
        "graphs are compiled for fixed shapes: the NPU takes none with open ones",
        "give every axis its length",
        _PROVIDER,
        _values(lambda value: None in value.shape),
    ),
    Rule(
        "npu/wide-values",
        "warning",
        "the NPU has no 64-bit arithmetic: what computes in it runs on the CPU",
        "compute in float32 and int32",
        _PROVIDER,
        _ops(_wide),
    ),
    Rule(
        "npu/infinite-mask",
        "error",
        "at or below -65504 half precision is infinite, and a softmax over it is not a number",
        "mask with -40000",
        _HALF,
        _ops(_low_mask),
    ),
    Rule(
        "npu/angles",
        "warning",
        "half precision has no room for the angle: a time embedding in the graph is 6 % off",
        "compute sines and cosines on the host in float32 and feed them in",
        _HALF,
        _ops(lambda view, op: op.kind in ("Sin", "Cos")),
    ),
    Rule(
        "npu/gelu-by-tanh",
        "note",
        "the NPU computes the exact GELU instead, up to 0.0005 from this one",
        "train or distil with the exact GELU, or accept the difference",
        f"{_BUILDERS}/opbuilder/simple_op_builder.cc",
        _ops(lambda view, op: op.attributes.get("approximate") == b"tanh"),
    ),
    Rule(
        "npu/half-range",
        "note",
        f"beyond {SQUARES_TO} a value's square is infinite in half precision and its norm is 0",
        f"measure the range; where it passes {SQUARES_TO}, scale before squaring",
        "https://github.com/onnxruntime/mobius/pull/253",
        _ops(_large_square),
    ),
    Rule(
        "npu/subnormal-epsilon",
        "note",
        "half precision holds a scalar below 6.1e-5 badly or flushes it to 0",
        "use an epsilon of at least 6.2e-5 where the variance can come near 0",
        _HALF,
        _ops(_subnormal),
    ),
)
"""Every rule that a file can break, in the order of the report."""

CROSSINGS = Advice(
    "npu/crossings",
    "warning",
    "ops off the NPU split the graph: values pass between processors this often in a run",
    "mend what runs on the CPU, or move it before the first or behind the last op",
    _PROVIDER,
)
"""Counts passes between processors, of which a function that only begins elsewhere has one."""

LEAVING = ("npu/refused-op", "npu/rank", "npu/wide-values")
"""Rules of ops that run elsewhere."""

OPEN = "npu/dynamic-shape"
"""The rule that says a file has sizes left open."""
