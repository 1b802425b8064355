"""What every function of a saved ONNX folder computes, reads and writes.

Activations count as the models declare them, float32: a processor that computes in half precision
moves half as many bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

from nanoflux_export import blocks
from nanoflux_export.blocks import Value, file_cost
from nanoflux_export.targets.onnx.lint_rules import NPU_OPS
from nanoflux_export.targets.onnx.model_file import (
    DECODES,
    Graph,
    Op,
    Tensor,
    fixed,
    read_graphs,
    reading,
)
from nanoflux_mobile.cost import Cost

_FLOATS = frozenset({"float16", "float32"})
_SETTINGS = frozenset({"bool", "int32", "int64"})
"""Types of constants that say how, not what, to compute: shapes, axes, orders."""

_RESHAPES = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_PICKS = ("Gather", "Slice", "Split")
_NUMBERED = re.compile(r".+?[._]\d+(?=[.:])")


def cost(path: Path, component: str) -> Cost:
    """What each block of the file costs; `component` is what the blocks call the graph.

    Raises:
        InputError: no readable model there, or sizes left open.
    """
    with reading(path):
        graphs = [_translated(graph, component) for graph in read_graphs(path)]
        return file_cost("onnx", component, graphs)


def part_of(tensor: str, component: str) -> str:
    """What part of the network a weight's name tells: doubles.0 of doubles.0/image.q.weight:stored.

    That is all of the path up to the first number in it, or the whole module where there is none.
    """
    name = tensor.removeprefix(f"{component}/").replace("/", ".")
    if found := _NUMBERED.match(name):
        return found[0]
    return name.partition(":")[0].rpartition(".")[0]


def _translated(graph: Graph, component: str) -> blocks.Graph:
    scales = {
        op.inputs[0]: graph.values[op.inputs[1]].bytes
        for op in graph.ops
        if op.kind == "DequantizeLinear" and graph.values[op.inputs[0]].constant
    }
    settings = {op.inputs[1] for op in graph.ops if op.inputs[0] in scales}
    values = {
        name: _value(name, tensor, component, scales.get(name, 0))
        for name, tensor in graph.values.items()
        if name not in settings and not (tensor.constant and tensor.dtype in _SETTINGS)
    }
    ops = tuple(_op(op, graph) for op in graph.ops)
    return blocks.Graph(graph.function, values, graph.inputs, graph.outputs, ops)


def _value(name: str, tensor: Tensor, component: str, scale_bytes: int) -> Value:
    part = part_of(name, component) if tensor.constant else ""
    return Value(tensor.bytes + scale_bytes, tensor.constant, part)


def _op(op: Op, graph: Graph) -> blocks.Op:
    taken = tuple(filter(None, op.inputs))
    decode = op.kind in DECODES and graph.values[taken[0]].constant
    dtypes = {graph.values[name].dtype for name in (*taken, *op.outputs)}
    count = MACS.get(op.kind)
    return blocks.Op(
        op.kind,
        taken,
        op.outputs,
        macs=count(op, graph) if count else 0,
        view=op.kind in _RESHAPES or decode,
        picks=op.kind in _PICKS,
        located=op.kind in MACS or op.kind == "Gather",
        off=op.kind not in NPU_OPS or not dtypes & _FLOATS,
    )


def _shapes(op: Op, graph: Graph) -> tuple[tuple[int, ...], ...]:
    """Of the result, the first and the second input."""
    names = (op.outputs[0], *op.inputs[:2])
    return tuple(fixed(graph.values[name].shape) for name in names)


def _conv(op: Op, graph: Graph) -> int:
    """Weight [C_out, C_in / groups, *kernel]: every result sums over all but the first axis."""
    made, _, weight = _shapes(op, graph)
    return math.prod(made) * math.prod(weight[1:])


def _conv_transpose(op: Op, graph: Graph) -> int:
    """Weight [C_in, C_out / groups, *kernel]: every input value goes into all but the first."""
    _, given, weight = _shapes(op, graph)
    return math.prod(given) * math.prod(weight[1:])


def _matmul(op: Op, graph: Graph) -> int:
    made, first, _ = _shapes(op, graph)
    return math.prod(made) * first[-1]


def _gemm(op: Op, graph: Graph) -> int:
    made, first, _ = _shapes(op, graph)
    return math.prod(made) * first[0 if op.attributes.get("transA") else 1]


MACS: dict[str, Callable[[Op, Graph], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
"""Multiply-accumulates of the ops that have any; every other op has none."""
