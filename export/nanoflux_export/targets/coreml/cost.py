"""What every function of a saved .mlpackage computes, reads and writes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nanoflux_export.blocks import Graph, Op, Value, file_cost
from nanoflux_export.targets.coreml.lint_rules import OFF_ENGINE
from nanoflux_export.targets.coreml.package import Package, open_package, reading
from nanoflux_export.targets.coreml.program import (
    Function,
    Operation,
    TensorType,
    fixed,
    read_function,
)
from nanoflux_export.targets.coreml.weights import packed_bytes
from nanoflux_mobile.cost import Cost

Shape = tuple[int, ...]

_RESHAPES = ("expand_dims", "reshape", "squeeze")
_LOOKUPS = ("gather",)
_PICKS = (*_LOOKUPS, "slice_by_index", "slice_by_size", "split")
_NUMBERED = re.compile(r"(.+?_\d+)_")


def cost(path: Path, component: str) -> Cost:
    """What each block of the package costs; `component` is what the blocks call the graph.

    Raises:
        InputError: `path` is not a readable ML Program package, or has sizes left open.
    """
    package = open_package(path)
    with reading(path):
        names = sorted(package.model.mlProgram.functions)
        return file_cost("coreml", component, [_graph(package, component, name) for name in names])


def part_of(weight: str, component: str) -> str:
    """What part of the network a weight's name tells: doubles_3 of doubles_3__image_q_weight.

    That is the segment the weight belongs to. Where that is the whole component, it is the path
    up to the first number in it, or else the module; nothing for constants that are no weights.
    """
    segment, sign, parameter = weight.partition("__")
    if not sign or segment != component:
        return segment if sign else ""
    module = parameter.rpartition("_")[0]
    numbered = _NUMBERED.match(parameter)
    return numbered[1] if numbered else module


def _graph(package: Package, component: str, name: str) -> Graph:
    function = read_function(package, name)
    types = dict(function.inputs)
    for operation in function.operations:
        types |= operation.outputs
    values = {key: Value(packed_bytes(made.dtype, fixed(made))) for key, made in types.items()}
    types |= {key: literal.type for key, literal in function.literals.items()}
    shapes = _Shapes(function, types)
    known_as: dict[str, str] = {}
    for names in _stored(function).values():
        parts = {part_of(key, component) for key in names}
        part = parts.pop() if len(parts) == 1 else ""
        values[names[0]] = Value(function.literals[names[0]].stored_bytes, True, part)
        known_as |= dict.fromkeys(names, names[0])
    ops = (_op(operation, shapes) for operation in function.operations)
    named = tuple(
        replace(op, inputs=tuple(known_as.get(key, key) for key in op.inputs)) for op in ops
    )
    return Graph(name, values, tuple(function.inputs), tuple(function.outputs), named)


def _stored(function: Function) -> dict[tuple[int, ...], list[str]]:
    """The names of every stored constant that an op takes: several have one weight's values."""
    groups = (names for op in function.operations for names in op.arguments.values())
    found: dict[tuple[int, ...], list[str]] = {}
    for key in dict.fromkeys(name for names in groups for name in names):
        literal = function.literals.get(key)
        if literal and literal.place:
            found.setdefault(literal.place, []).append(key)
    return found


@dataclass(frozen=True)
class _Shapes:
    """The types of every value of a function, constants included."""

    function: Function
    types: dict[str, TensorType]

    def given(self, op: Operation, parameter: str, index: int = 0) -> Shape:
        """The shape of what an op is given."""
        return fixed(self.types[op.arguments[parameter][index]])

    def made(self, op: Operation) -> Shape:
        """The shape of what an op makes."""
        return fixed(next(iter(op.outputs.values())))

    def dtypes(self, op: Operation) -> set[str]:
        """The types of all that an op takes and makes."""
        taken = {self.types[name].dtype for names in op.arguments.values() for name in names}
        return taken | {made.dtype for made in op.outputs.values()}


def _op(op: Operation, shapes: _Shapes) -> Op:
    names = [name for parameter in sorted(op.arguments) for name in op.arguments[parameter]]
    count = MACS.get(op.kind)
    return Op(
        op.kind,
        tuple(sorted(names, key=lambda name: name not in op.arguments.get("x", ()))),
        tuple(op.outputs),
        macs=count(op, shapes) if count else 0,
        view=op.kind in _RESHAPES and shapes.given(op, "x")[-1:] == shapes.made(op)[-1:],
        picks=op.kind in _PICKS,
        located=op.kind in MACS or op.kind in _LOOKUPS,
        # The ANE computes in half precision only.
        off=op.kind in OFF_ENGINE or "fp16" not in shapes.dtypes(op),
    )


def _conv(op: Operation, shapes: _Shapes) -> int:
    """Weight [C_out, C_in / groups, *kernel]: every result sums over all but the first axis."""
    return math.prod(shapes.made(op)) * math.prod(shapes.given(op, "weight")[1:])


def _conv_transpose(op: Operation, shapes: _Shapes) -> int:
    """Weight [C_in, C_out / groups, *kernel]: every input value goes into all but the first."""
    return math.prod(shapes.given(op, "x")) * math.prod(shapes.given(op, "weight")[1:])


def _matmul(op: Operation, shapes: _Shapes) -> int:
    """The axis summed over is what the last two of x hold beside the rows of the result."""
    made = shapes.made(op)
    return math.prod(made) * (math.prod(shapes.given(op, "x")[-2:]) // made[-2])


def _einsum(op: Operation, shapes: _Shapes) -> int:
    """One product for every combination of the equation's letters."""
    equation = str(shapes.function.literals[op.arguments["equation"][0]].read())
    sizes: dict[str, int] = {}
    for i, letters in enumerate(equation.replace(" ", "").partition("->")[0].split(",")):
        sizes |= dict(zip(letters, shapes.given(op, "values", i), strict=True))
    return math.prod(sizes.values())


def _attention(op: Operation, shapes: _Shapes) -> int:
    """Scores over [..., L, E] and [..., S, E], then their sum over [..., S, EV]."""
    query, key, value = (shapes.given(op, name) for name in ("query", "key", "value"))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


MACS: dict[str, Callable[[Operation, _Shapes], int]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "einsum": _einsum,
    "linear": _conv,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
}
"""Multiply-accumulates of the ops that have any; every other op has none."""
