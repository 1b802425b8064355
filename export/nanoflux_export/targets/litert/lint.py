"""What in a .tflite file a phone's GPU would refuse, get wrong or spend time on.

Google's own check (the Analyzer's gpu_compatibility) calls every graph compatible, so the rules
are ours. Sources of the tables:

* `GPU_OPS`: the ops for which LiteRT's open GPU delegate has a parser
  (tflite/delegates/gpu/common/model_builder.cc, NewOperationParser). It also takes no tensor of
  more than four axes and, save for a few ops, no integer value that is computed at run time.
* Axes, quantised FULLY_CONNECTED, decompressed and blockwise weights: seen to fail on the WebGPU
  accelerator of ai-edge-litert 2.3.0 over software Vulkan, and reported from phones in the public
  issues 2540, 9277 and 9523 of google-ai-edge/LiteRT.
* Sizes: the text-to-image samples of google-ai-edge/litert-samples, which ship 0.5 to 1 GB files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanoflux_export.targets.litert.model_file import Graph, ModelFile, Op, read_model
from nanoflux_mobile.manifest import Finding

_PARSED = """
ABS ADD ADD_N AVERAGE_POOL_2D BATCH_MATMUL CAST CONCATENATION CONV_2D COS CUMSUM DENSIFY
DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV ELU EQUAL EXP FLOOR FLOOR_DIV FLOOR_MOD
FULLY_CONNECTED GATHER GELU GREATER GREATER_EQUAL HARD_SWISH LEAKY_RELU LESS LESS_EQUAL LOG
LOGICAL_AND LOGISTIC LSTM MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL ONE_HOT
PACK PAD PADV2 POW PRELU QUANTIZE REDUCE_MAX REDUCE_MIN REDUCE_PROD RELU RELU6 RELU_0_TO_1
RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SELECT SELECT_V2 SIGN SIN
SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM
TANH TILE TRANSPOSE TRANSPOSE_CONV UNPACK
"""
_BLENDS = """
ABS ADD DIV EXP GELU LOGISTIC MAXIMUM MINIMUM MUL NEG POW RELU RSQRT SQRT SQUARE
SQUARED_DIFFERENCE SUB TANH
"""
GPU_OPS = frozenset(_PARSED.split())
"""Ops the GPU delegate can take."""

_INSTEAD = {
    "BROADCAST_TO": "let the next op broadcast, or store the spread constant; GroupNorm makes it",
    "EMBEDDING_LOOKUP": "nothing to do: token ids are looked up on the CPU, once for each prompt",
    "GATHER_ND": "cut with slices along one axis instead of indexing with a tensor",
    "STABLEHLO_SORT": "no runtime has a kernel for it: sort on the host",
}
_REWRITE = "express it with ops the GPU delegate has, or keep it out of the graph"
_ELEMENTWISE = frozenset(_BLENDS.split())
_TAKES_INTEGERS = frozenset({"CAST", "EMBEDDING_LOOKUP", "GATHER", "ONE_HOT"})
_STORED_INTEGERS = frozenset({"INT2", "INT4", "INT8", "UINT8"})
_COMPUTED = frozenset({"BOOL", "FLOAT16", "FLOAT32", "INT8", "UINT8"})
_WIDE = frozenset({"FLOAT64", "INT64", "UINT64"})
_SIZES = (
    (1 << 31, "file-over-2-gib", "phones cannot load it: store smaller weights or split the graph"),
    (1 << 30, "file-over-1-gib", "its shaders may not compile: store smaller weights or split it"),
)


@dataclass(frozen=True)
class Rule:
    """What to look for, how to count it in a graph, and what would mend it."""

    name: str
    count: Callable[[Graph], int]
    advice: str


def lint(path: Path, component: str) -> tuple[Finding, ...]:
    """The rules that the file of `component` at `path` breaks; none when nothing is amiss.

    Raises:
        InputError: no .tflite file there, or a damaged one.
    """
    return findings(read_model(path), component)


def findings(model: ModelFile, component: str) -> tuple[Finding, ...]:
    """The rules that a file already read breaks, in the order of the tables."""
    return tuple(
        Finding(component, rule, count, advice)
        for rule, count, advice in (*_refused(model), *_broken(model), *_oversize(model))
    )


def _refused(model: ModelFile) -> Iterator[tuple[str, int, str]]:
    kinds = Counter(op.kind for graph in model.graphs for op in graph.ops)
    for kind in sorted(kinds.keys() - GPU_OPS):
        yield f"op-off-gpu: {kind}", kinds[kind], _INSTEAD.get(kind, _REWRITE)


def _broken(model: ModelFile) -> Iterator[tuple[str, int, str]]:
    for rule in RULES:
        if count := sum(rule.count(graph) for graph in model.graphs):
            yield rule.name, count, rule.advice


def _oversize(model: ModelFile) -> Iterator[tuple[str, int, str]]:
    for limit, rule, advice in _SIZES:
        if model.size_bytes > limit:
            yield rule, 1, advice
            return


def _dense_before_elementwise(graph: Graph) -> int:
    return sum(
        op.kind == "FULLY_CONNECTED"
        and graph.tensors[op.inputs[1]].dtype in _STORED_INTEGERS
        and any(user.kind in _ELEMENTWISE for user in _users(graph, op))
        for op in graph.ops
    )


def _users(graph: Graph, op: Op) -> Iterator[Op]:
    """The ops that take what `op` makes, seen through reshapes."""
    for user in graph.ops:
        if set(op.outputs) & set(user.inputs):
            if user.kind == "RESHAPE":
                yield from _users(graph, user)
            else:
                yield user


def _decompressed_weights(graph: Graph) -> int:
    sources = (graph.tensors[op.inputs[0]] for op in graph.ops if op.kind == "DEQUANTIZE")
    return sum(tensor.constant and tensor.dtype in _STORED_INTEGERS for tensor in sources)


def _computed_integers(graph: Graph) -> int:
    def computes_integers(op: Op) -> bool:
        tensors = (graph.tensors[at] for at in (*op.inputs, *op.outputs) if at >= 0)
        return any(not tensor.constant and tensor.dtype not in _COMPUTED for tensor in tensors)

    return sum(op.kind not in _TAKES_INTEGERS and computes_integers(op) for op in graph.ops)


RULES = (
    Rule(
        "rank-over-four",
        lambda graph: sum(len(tensor.shape) > 4 for tensor in graph.tensors),
        "fold axes together: GPUs slice and reshape at most four",
    ),
    Rule(
        "dynamic-shape",
        lambda graph: sum(tensor.dynamic for tensor in graph.tensors),
        "give every axis its length: shaders are compiled for fixed shapes",
    ),
    Rule(
        "wide-values",
        lambda graph: sum(tensor.dtype in _WIDE for tensor in graph.tensors),
        "use int32 and float32: no accelerator takes 64-bit tensors",
    ),
    Rule(
        "computed-integers",
        _computed_integers,
        "stays on the CPU: fine for token ids, else compute it in float or on the host",
    ),
    Rule(
        "quantised-dense-before-elementwise",
        _dense_before_elementwise,
        "the GPU cannot compile it: write the layer as a 1x1 convolution",
    ),
    Rule(
        "decompressed-integer-weights",
        _decompressed_weights,
        "the GPU refuses it or hangs while compiling: store weights for integer compute",
    ),
    Rule(
        "blockwise-weights",
        lambda graph: sum(tensor.blockwise for tensor in graph.tensors),
        "the GPU delegate aborts the process: use one scale per output channel",
    ),
    Rule(
        "transposes",
        lambda graph: sum(op.kind == "TRANSPOSE" for op in graph.ops),
        "a note: each copies its tensor once; fewer changes of layout are faster",
    ),
)
"""Applied to every graph of a file."""
