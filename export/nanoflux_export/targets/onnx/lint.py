"""What in an ONNX model the Qualcomm NPU of a Windows machine would refuse, change or hand back.

Source of the table and the rules: the QNN execution provider of onnxruntime. `NPU_OPS` are the ops
that it has a builder for (core/providers/qnn/builder/op_builder_factory.cc); what it has none for
runs on the CPU. Its Gelu builder reads no `approximate`, and QNN's Gelu is the exact one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanoflux_export.targets.onnx.model_file import Graph, read_graphs, reading
from nanoflux_mobile.manifest import Finding

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

_REWRITE = "express it with ops the NPU has, or keep it out of the graph"
_MOST_AXES = 5
_WIDE = frozenset({"float64", "int64", "uint64"})


@dataclass(frozen=True)
class Rule:
    """What to look for, how to count it in a graph, and what would mend it."""

    name: str
    count: Callable[[Graph], int]
    advice: str


def lint(path: Path, component: str) -> tuple[Finding, ...]:
    """The rules that the models of `component` at `path` break; none when nothing is amiss.

    Raises:
        InputError: no readable model there.
    """
    with reading(path):
        graphs = read_graphs(path)
        found = (*_refused(graphs), *_broken(graphs))
    return tuple(Finding(component, rule, count, advice) for rule, count, advice in found)


def _refused(graphs: tuple[Graph, ...]) -> Iterator[tuple[str, int, str]]:
    kinds = Counter(op.kind for graph in graphs for op in graph.ops)
    for kind in sorted(kinds.keys() - NPU_OPS):
        yield f"op-off-npu: {kind}", kinds[kind], _REWRITE


def _broken(graphs: tuple[Graph, ...]) -> Iterator[tuple[str, int, str]]:
    for rule in RULES:
        if count := sum(map(rule.count, graphs)):
            yield rule.name, count, rule.advice


def _wide(graph: Graph) -> int:
    computed = (graph.values[name] for op in graph.ops for name in op.outputs if name)
    return sum(value.dtype in _WIDE for value in computed)


def _tanh_gelus(graph: Graph) -> int:
    return sum(op.attributes.get("approximate") == b"tanh" for op in graph.ops)


RULES = (
    Rule(
        "rank-over-five",
        lambda graph: sum(len(value.shape) > _MOST_AXES for value in graph.values.values()),
        "fold axes together: NPU ops take at most five",
    ),
    Rule(
        "dynamic-shape",
        lambda graph: sum(None in value.shape for value in graph.values.values()),
        "give every axis its length: graphs are compiled for fixed shapes",
    ),
    Rule("wide-values", _wide, "compute in float32 and int32: the NPU has no 64-bit arithmetic"),
    Rule(
        "gelu-by-tanh",
        _tanh_gelus,
        "a note: the NPU computes the exact GELU instead, up to 0.0005 from this one",
    ),
)
"""Applied to every model of a file."""
