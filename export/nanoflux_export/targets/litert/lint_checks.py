"""What to look for in a .tflite file: each function names the ops or tensors that break one rule.

What happens to them, what mends it and who says so is in `lint_rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from nanoflux_export.findings import LEAST_NORMAL_HALF, LOWEST_HALF
from nanoflux_export.targets.litert.lint_graph import File, View
from nanoflux_export.targets.litert.model_file import Op, Tensor

_STORED_INTEGERS = frozenset({"INT2", "INT4", "INT8", "UINT8"})
_COMPUTED = frozenset({"BOOL", "FLOAT16", "FLOAT32", "INT8", "UINT8"})
_WIDE = frozenset({"FLOAT64", "INT64", "UINT64"})
_TAKES_INTEGERS = frozenset({"CAST", "EMBEDDING_LOOKUP", "GATHER", "ONE_HOT"})
_BLENDS = """
ABS ADD DIV EXP GELU LOGISTIC MAXIMUM MINIMUM MUL NEG POW RELU RSQRT SQRT SQUARE
SQUARED_DIFFERENCE SUB TANH
"""
_ELEMENTWISE = frozenset(_BLENDS.split())
_ADDS_MASKS = ("ADD", "SELECT", "SELECT_V2", "SUB")
_TAKES_EPSILONS = ("ADD", "DIV", "MAXIMUM", "MUL", "SUB")

Check = Callable[[View], Iterator[str]]


def everywhere(check: Check) -> Callable[[File], Iterator[str]]:
    """The check of a whole file: that of each of its graphs."""
    return lambda file: (name for graph in file.graphs for name in check(graph))


def ops(*kinds: str) -> Callable[[File], Iterator[str]]:
    """The ops of these kinds."""
    return everywhere(lambda graph: map(graph.name, graph.kinds(*kinds)))


def all_but(kinds: frozenset[str]) -> Callable[[File], Iterator[str]]:
    """The ops of any other kind."""
    return everywhere(lambda graph: (graph.name(op) for op in graph.ops if op.kind not in kinds))


def tensors(check: Callable[[Tensor], bool]) -> Callable[[File], Iterator[str]]:
    """The tensors that a check says yes to."""
    return everywhere(lambda graph: (t.name or t.dtype for t in graph.graph.tensors if check(t)))


def over(least: int, most: float = math.inf) -> Callable[[File], Iterator[str]]:
    """The file, where it has more bytes than `least` and not more than `most`."""
    return lambda file: iter(["file"] * (least < file.size_bytes <= most))


def is_wide(tensor: Tensor) -> bool:
    """Whether its values take 64 bits each."""
    return tensor.dtype in _WIDE


def lookups(graph: View) -> Iterator[str]:
    """Lookups of tokens in a table, and what is computed from the tokens for nothing else."""
    integers = (op for op in graph.ops if _computes_integers(graph, op))
    yield from map(graph.name, graph.kinds("EMBEDDING_LOOKUP"))
    yield from (graph.name(op) for op in integers if _only_looked_up(graph, op))


def computed_integers(graph: View) -> Iterator[str]:
    """Ops on integers that are computed at run time, other than to look tokens up."""
    integers = (op for op in graph.ops if _computes_integers(graph, op))
    return (graph.name(op) for op in integers if not _only_looked_up(graph, op))


def quantised_dense(graph: View) -> Iterator[str]:
    """Dense layers of integer weights that an elementwise op follows."""
    for op in graph.kinds("FULLY_CONNECTED"):
        stored = graph.graph.tensors[op.inputs[1]].dtype in _STORED_INTEGERS
        if stored and any(user.kind in _ELEMENTWISE for user in graph.users(op)):
            yield graph.name(op)


def constants_beside_batches(graph: View) -> Iterator[str]:
    """Elementwise ops on a value of several batches and a constant with more than a last axis."""
    for op in graph.kinds(*_ELEMENTWISE):
        taken = [graph.graph.tensors[at] for at in op.inputs if at >= 0]
        batched = any(not t.constant and 1 < len(t.shape) < 4 and t.shape[0] > 1 for t in taken)
        if batched and any(t.constant and math.prod(t.shape[:-1]) > 1 for t in taken):
            yield graph.name(op)


def decompressed(graph: View) -> Iterator[str]:
    """Integer weights that are made floats before use."""
    for op in graph.kinds("DEQUANTIZE"):
        source = graph.graph.tensors[op.inputs[0]]
        if source.constant and source.dtype in _STORED_INTEGERS:
            yield graph.name(op)


def integer_convolutions(graph: View) -> Iterator[str]:
    """Convolutions larger than 1x1 of integer weights with float values."""
    for op in graph.kinds("CONV_2D"):
        taken, weight = (graph.graph.tensors[at] for at in op.inputs[:2])
        kernel = math.prod(weight.shape[1:3])
        if kernel > 1 and weight.dtype in _STORED_INTEGERS and taken.dtype == "FLOAT32":
            yield graph.name(op)


def large_squares(graph: View) -> Iterator[str]:
    """Means of squares of values that nothing has made small before."""
    for op in graph.kinds("MEAN", "SUM"):
        square = graph.makers.get(op.inputs[0])
        if square and _is_square(graph, square) and not _is_scaled(graph, square):
            yield graph.name(op)


def subnormals(graph: View) -> Iterator[str]:
    """Ops given a scalar, such as an epsilon, below the least normal half-precision number."""
    for op in graph.kinds(*_TAKES_EPSILONS):
        if any(0.0 < abs(value) < LEAST_NORMAL_HALF for value in graph.scalars(op)):
            yield graph.name(op)


def low_masks(graph: View) -> Iterator[str]:
    """Ops given a constant mask at or below the lowest half-precision number."""
    for op in graph.kinds(*_ADDS_MASKS):
        if any((~np.isfinite(m) | (m <= LOWEST_HALF)).any() for m in graph.constants(op)):
            yield graph.name(op)


def _computes_integers(graph: View, op: Op) -> bool:
    computed = (t for t in graph.tensors(op) if not t.constant and t.dtype not in _COMPUTED)
    return op.kind not in _TAKES_INTEGERS and any(computed)


def _only_looked_up(graph: View, op: Op) -> bool:
    """Whether what an op makes goes to a table of tokens and nowhere else."""
    takers = [taker for at in op.outputs for taker in graph.takers.get(at, ())]
    return bool(takers) and all(
        taker.kind == "EMBEDDING_LOOKUP" or _only_looked_up(graph, taker) for taker in takers
    )


def _is_square(graph: View, op: Op) -> bool:
    if op.kind == "POW":
        return 2.0 in graph.scalars(op)
    return op.kind in ("SQUARE", "SQUARED_DIFFERENCE") or (
        op.kind == "MUL" and op.inputs[0] == op.inputs[1]
    )


def _is_scaled(graph: View, square: Op) -> bool:
    """Whether what is squared was divided, or multiplied by a scalar below 1."""
    maker = graph.makers.get(square.inputs[0])
    if maker is None or maker.kind != "MUL":
        return maker is not None and maker.kind == "DIV"
    return any(0.0 < abs(factor) < 1.0 for factor in graph.scalars(maker))
