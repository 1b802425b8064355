"""What every signature of a saved .tflite file computes, reads and writes.

Activations count as the file declares them, float32: a GPU that computes in half precision moves
half as many bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nanoflux_export import blocks
from nanoflux_export.blocks import Value, file_cost
from nanoflux_export.targets.litert.link import SCALES
from nanoflux_export.targets.litert.lint_rules import GPU_OPS
from nanoflux_export.targets.litert.model_file import Graph, Op, Tensor, read_model
from nanoflux_mobile.cost import Cost

_COMPUTED = frozenset({"BFLOAT16", "FLOAT16", "FLOAT32", "INT8"})
"""Types that accelerators compute on."""
_SETTINGS = frozenset({"BOOL", "INT32", "INT64"})
"""Types of constants that say how, not what, to compute: shapes, axes, orders."""

_NUMBERED = re.compile(r"(?:[^.]+\.)*?\d+(?=\.|$)")
_RESHAPES = ("EXPAND_DIMS", "RESHAPE", "SQUEEZE")
_LOOKUPS = ("EMBEDDING_LOOKUP", "GATHER")
_PICKS = (*_LOOKUPS, "SLICE", "SPLIT", "SPLIT_V", "STRIDED_SLICE", "UNPACK")


def cost(path: Path, component: str) -> Cost:
    """What each block of the file costs; `component` is what the blocks call the graph.

    Raises:
        InputError: no .tflite file there, or a damaged one.
    """
    signed = (graph for graph in read_model(path).graphs if graph.signature)
    return file_cost("litert", component, [_translated(graph, component) for graph in signed])


def part_of(tensor: str, component: str) -> str:
    """What part of the network a tensor's name tells: doubles.3 of doubles.3/image.q.weight.

    That is the segment the weight belongs to. Where that is the whole component, it is the path
    up to the first number in it, or else the module; nothing for tensors that are no weights.
    """
    segment, slash, parameter = tensor.partition("/")
    if not slash or segment != component:
        return segment if slash else ""
    module = parameter.rpartition(".")[0]
    numbered = _NUMBERED.match(module)
    return numbered[0] if numbered else module


def _translated(graph: Graph, component: str) -> blocks.Graph:
    names = [_name(at, tensor) for at, tensor in enumerate(graph.tensors)]
    values = {
        name: Value(
            tensor.stored_bytes or tensor.bytes, tensor.constant, part_of(tensor.name, component)
        )
        for name, tensor in zip(names, graph.tensors, strict=True)
        if not (tensor.constant and tensor.dtype in _SETTINGS)
    }
    places = {id(tensor): name for name, tensor in zip(names, graph.tensors, strict=True)}
    inputs, outputs = (
        tuple(places[id(tensor)] for tensor in named.values())
        for named in (graph.inputs, graph.outputs)
    )
    scales = {t.name: names[at] for at, t in enumerate(graph.tensors) if t.name.endswith(SCALES)}
    ops = tuple(_op(op, graph.tensors, names, scales) for op in graph.ops)
    return blocks.Graph(graph.signature, values, inputs, outputs, ops)


def _name(at: int, tensor: Tensor) -> str:
    """Tensors that share a constant are one value."""
    return f"{tensor.dtype} {tensor.buffer}" if tensor.constant else str(at)


def _op(
    op: Op, tensors: tuple[Tensor, ...], names: Sequence[str], scales: Mapping[str, str]
) -> blocks.Op:
    """`scales` are the tensors with the scales of weights in blocks, which no op names."""
    taken = tuple(at for at in op.inputs if at >= 0)
    stored = op.kind == "DEQUANTIZE" and tensors[taken[0]].constant
    dtypes = {tensors[at].dtype for at in (*taken, *op.outputs)}
    count = MACS.get(op.kind)
    aside = (f"{tensors[at].name}{SCALES}" for at in taken if tensors[at].blockwise)
    return blocks.Op(
        op.kind,
        (*(names[at] for at in taken), *(scales[name] for name in aside if name in scales)),
        tuple(names[at] for at in op.outputs),
        macs=count(op, tensors) if count else 0,
        view=op.kind in _RESHAPES or stored,
        picks=op.kind in _PICKS,
        located=op.kind in MACS or op.kind in _LOOKUPS,
        off=op.kind not in GPU_OPS or not dtypes & _COMPUTED,
    )


def _sums_over(weight_axes: slice) -> Callable[[Op, tuple[Tensor, ...]], int]:
    """MACs of an op each of whose results sums over these axes of its second input."""

    def count(op: Op, tensors: tuple[Tensor, ...]) -> int:
        made, weight = tensors[op.outputs[0]].shape, tensors[op.inputs[1]].shape
        return math.prod(made) * math.prod(weight[weight_axes])

    return count


def _matmul(op: Op, tensors: tuple[Tensor, ...]) -> int:
    """The axis summed over is what the last two of the first hold beside the result's rows."""
    made, first = tensors[op.outputs[0]].shape, tensors[op.inputs[0]].shape
    return math.prod(made) * (math.prod(first[-2:]) // made[-2])


def _transpose_conv(op: Op, tensors: tuple[Tensor, ...]) -> int:
    """Inputs are a shape, weights [C_out, H, W, C_in] and values, each going into C_out H W."""
    _, weight, values = (tensors[at].shape for at in op.inputs[:3])
    return math.prod(values) * math.prod(weight[:3])


MACS: dict[str, Callable[[Op, tuple[Tensor, ...]], int]] = {
    "BATCH_MATMUL": _matmul,
    "CONV_2D": _sums_over(slice(1, None)),  # [C_out, H, W, C_in / groups]
    "DEPTHWISE_CONV_2D": _sums_over(slice(1, 3)),  # [1, H, W, C_out]
    "FULLY_CONNECTED": _sums_over(slice(1, None)),  # [C_out, C_in]
    "TRANSPOSE_CONV": _transpose_conv,
}
"""Multiply-accumulates of the ops that have any; every other op has none."""
