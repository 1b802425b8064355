"""What to look for in a saved program: each function names the ops that break one rule.

What happens to them, what mends it and who says so is in `lint_rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from nanoflux_export.findings import LEAST_NORMAL_HALF, LOWEST_HALF
from nanoflux_export.targets.coreml.lint_graph import FLOATS, File, Graph, known
from nanoflux_export.targets.coreml.program import Operation, TensorType

Check = Callable[[Graph], Iterator[str]]

_LINE_VALUES = 32  # 64 bytes in half precision
_MOST_NCHW = (65536, 65536, 16384, 16384)
_MOST_NDCHW = (65536, 16384, 65536, 16384, 16384)
_MIB = 1 << 20
_LEAST_SPREAD = 4096  # values; shorter constants cost nothing
_ATTENTION = "scaled_dot_product_attention"
_ADDS_MASKS = ("add", "sub", "select", _ATTENTION)
_ELEMENTWISE = ("add", "maximum", "minimum", "mul", "real_div", "sub")
_OWN_EPSILON = ("batch_norm", "inverse", "log", "rsqrt")  # which nobody chose
_MEANS = ("reduce_mean", "reduce_sum")


def everywhere(check: Check) -> Callable[[File], Iterator[str]]:
    """The check of a whole file: that of each of its functions."""
    return lambda file: (name for graph in file.graphs for name in check(graph))


def per_weight(check: Callable[[Graph, Operation], bool]) -> Callable[[File], Iterator[str]]:
    """The weights that a check says yes to: each once, however many functions share it."""

    def broken(file: File) -> Iterator[str]:
        weights = {
            op.arguments["weight"][0]: (graph, op)
            for graph in file.graphs
            for op in graph.function.operations
            if "weight" in op.arguments
        }
        return (name for name, (graph, op) in weights.items() if check(graph, op))

    return broken


def ops(*kinds: str) -> Callable[[File], Iterator[str]]:
    """The ops of these kinds."""
    return everywhere(lambda graph: (op.name for op in graph.kinds(*kinds)))


def over(least: int, most: float = math.inf) -> Callable[[File], Iterator[str]]:
    """The weight file, where it has more bytes than `least` and not more than `most`."""
    return lambda file: iter(["weights"] * (least < file.weight_bytes <= most))


def ragged_edges(graph: Graph) -> Iterator[str]:
    """Inputs and outputs whose last axis does not fill whole lines of 64 bytes."""
    floats = ((name, made) for name, made in graph.edges().items() if made.dtype in FLOATS)
    return (name for name, made in floats if _last(made) % _LINE_VALUES)


def singleton_axes(graph: Graph) -> Iterator[str]:
    """Results of several values whose last axis is 1."""
    return (n for n, made in graph.floats() if _last(made) == 1 < math.prod(known(made)))


def ragged_axes(graph: Graph) -> Iterator[str]:
    """Results whose last axis is longer than 1 and does not fill whole lines of 64 bytes."""
    return (n for n, made in graph.floats() if _last(made) > 1 and _last(made) % _LINE_VALUES)


def many_axes(graph: Graph) -> Iterator[str]:
    """Results of more than five axes."""
    return (name for name, made in graph.results() if len(made.shape) > 5)


def float32_ops(graph: Graph) -> Iterator[str]:
    """Ops that compute in float32; casts at the border are none."""
    wide = ((op, made.dtype) for op in graph.function.operations for made in op.outputs.values())
    return (op.name for op, dtype in wide if dtype == "fp32" and op.kind != "cast")


def open_sizes(graph: Graph) -> Iterator[str]:
    """Inputs and results with sizes left open."""
    values = (*graph.function.inputs.items(), *graph.results())
    return (name for name, made in values if None in made.shape)


def large_axes(graph: Graph) -> Iterator[str]:
    """Results beyond N 65536, D 16384, C 65536, H 16384, W 16384."""
    for name, made in graph.results():
        limits = _MOST_NDCHW if len(made.shape) > 4 else _MOST_NCHW
        pairs = zip(reversed(made.shape), reversed(limits), strict=False)
        if any(size is not None and size > most for size, most in pairs):
            yield name


def lookups(graph: Graph) -> Iterator[str]:
    """Gathers of rows from a stored table: token embeddings."""
    return (op.name for op in graph.kinds("gather") if _looks_up(graph, op))


def gathers(graph: Graph) -> Iterator[str]:
    """Gathers from values that were computed."""
    kinds = ("gather", "gather_along_axis", "gather_nd")
    return (op.name for op in graph.kinds(*kinds) if not _looks_up(graph, op))


def dilated(graph: Graph) -> Iterator[str]:
    """Convolutions with holes."""
    for op in graph.kinds("conv", "conv_transpose"):
        if any((sizes > 1).any() for sizes in graph.constants(op, "dilations")):
            yield op.name


def odd_einsums(graph: Graph) -> Iterator[str]:
    """Einsums other than that of Apple's own attention, whichever factor comes first."""
    taken = {"abcd,aecb->aecd", "abcd,adce->abce"}
    for op in graph.kinds("einsum"):
        if set(map(_relettered, graph.constants(op, "equation"))) - taken:
            yield op.name


def one_attention(graph: Graph) -> Iterator[str]:
    """The fused attention of a function that has no other."""
    fused = graph.kinds(_ATTENTION)
    return (op.name for op in fused if len(fused) == 1)


def several_attentions(graph: Graph) -> Iterator[str]:
    """The fused attentions of a function that has more than one."""
    fused = graph.kinds(_ATTENTION)
    return (op.name for op in fused if len(fused) > 1)


def last_axis_moved(graph: Graph) -> Iterator[str]:
    """Transposes and reshapes that change the last axis."""
    for op in graph.kinds("transpose", "reshape"):
        (made,) = op.outputs.values()
        if op.kind == "transpose":
            (order,) = (axes.tolist() for axes in graph.constants(op, "perm"))
            moves = order[-1] % len(order) != len(order) - 1
        else:
            moves = known(graph.given(op, "x"))[-1:] != known(made)[-1:]
        if moves:
            yield op.name


def grouped_means(graph: Graph) -> Iterator[str]:
    """Means over a rank-5 view of what had four axes: how GroupNorm is taken apart."""
    for op in graph.kinds(*_MEANS):
        maker = graph.maker(op, "x")
        if maker and maker.kind == "reshape" and len(graph.given(op, "x").shape) > 4:
            yield op.name


def spread_constants(graph: Graph) -> Iterator[str]:
    """Stored constants that repeat along an axis, where the op would repeat them itself."""
    for op in graph.kinds(*_ELEMENTWISE):
        if any(map(_repeats, graph.constants(op))):
            yield op.name


def large_squares(graph: Graph) -> Iterator[str]:
    """Means of squares of values that nothing has made small before."""
    for op in graph.kinds(*_MEANS):
        square = graph.maker(op, "x")
        if square and _is_square(graph, square) and not _is_scaled(graph, square):
            yield op.name


def subnormals(graph: Graph) -> Iterator[str]:
    """Ops given a scalar, such as an epsilon, below the least normal half-precision number."""
    for op in graph.function.operations:
        if op.kind in _OWN_EPSILON:
            continue
        scalars = (name for names in op.arguments.values() for name in names)
        values = (_scalar(graph, name) for name in scalars)
        if any(0.0 < abs(value) < LEAST_NORMAL_HALF for value in values):
            yield op.name


def low_masks(graph: Graph) -> Iterator[str]:
    """Ops given a constant mask at or below the lowest half-precision number."""
    for op in graph.kinds(*_ADDS_MASKS):
        masks = [mask for mask in graph.constants(op) if mask.dtype.kind == "f"]
        if any((~np.isfinite(mask) | (mask <= LOWEST_HALF)).any() for mask in masks):
            yield op.name


def in_notch(graph: Graph, op: Operation) -> bool:
    """Whether a core streams within 16 KiB of whole MiB of a dense weight."""
    shape = known(graph.given(op, "weight"))
    payload = math.ceil(shape[0] / 16) * math.prod(shape[1:]) * 2
    off = abs(payload - round(payload / _MIB) * _MIB)
    return op.kind in ("conv", "linear") and payload >= _MIB - 16384 and off <= 16384


def _relettered(equation: object) -> str:
    """An equation with its letters in the order of the alphabet."""
    text = str(equation).replace(" ", "")
    letters = dict.fromkeys(filter(str.isalpha, text))
    return text.translate({ord(old): chr(97 + i) for i, old in enumerate(letters)})


def _last(made: TensorType) -> int:
    """Size of the last axis; a full line where there is none or it is not known."""
    return (made.shape[-1] if made.shape else None) or _LINE_VALUES


def _looks_up(graph: Graph, op: Operation) -> bool:
    return op.kind == "gather" and op.arguments["x"][0] in graph.function.literals


def _scalar(graph: Graph, name: str) -> float:
    made = graph.types.get(name)
    if made is None or made.shape != () or made.dtype not in FLOATS:
        return 0.0
    value = graph.constant(name)
    return 0.0 if value is None else float(value)


def _repeats(values: np.ndarray) -> bool:
    if values.size < _LEAST_SPREAD or values.dtype.kind != "f":
        return False
    long = (axis for axis in range(values.ndim) if values.shape[axis] > 1)
    return any(bool((values == values.take([0], axis)).all()) for axis in long)


def _is_square(graph: Graph, op: Operation) -> bool:
    if op.kind == "mul":
        return op.arguments["x"] == op.arguments["y"]
    return op.kind == "square" or (
        op.kind == "pow" and any(bool((n == 2).all()) for n in graph.constants(op, "y"))
    )


def _is_scaled(graph: Graph, square: Operation) -> bool:
    """Whether what is squared was divided, or multiplied by a scalar below 1."""
    maker = graph.maker(square, "x")
    if maker is None or maker.kind != "mul":
        return maker is not None and maker.kind == "real_div"
    factors = (_scalar(graph, name) for names in maker.arguments.values() for name in names)
    return any(0.0 < abs(factor) < 1.0 for factor in factors)
