"""What keeps a graph off Apple's Neural Engine (ANE), or slow on it: one small function per rule.

Nothing here was seen on a device: Apple states some of it, others measured the rest, and each rule
says where. "Neural Engine Rules" is the document of that name in Apple's coreai-models, listed at
https://www.skills.sh/apple/coreai-models/model-authoring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from nanoflux_export.targets.coreml.program import Function, Operation, TensorType

_LINE_VALUES = 32  # 64 bytes in half precision
_MOST_RANK = 5
_MOST_N, _MOST_C, _MOST_DHW = 65536, 65536, 16384
_LEAST_NORMAL_HALF = 2.0**-14
_LOWEST_HALF = -65504.0
_MIB = 1 << 20
_FLOATS = ("fp16", "fp32")

OFF_ENGINE = (
    *("gather", "gather_nd", "gather_along_axis", "scatter", "scatter_nd"),
    *("scatter_along_axis", "topk", "argsort", "non_zero", "one_hot", "tile", "cumsum"),
    *("lstm", "gru", "rnn", "while_loop", "cond", "custom", "resample"),
)
"""Ops that the ANE does not take, see `op_off_engine`."""


@dataclass(frozen=True)
class Graph:
    """One function of a saved program, the type of its every value, and its weight file's bytes."""

    function: Function
    types: Mapping[str, TensorType]
    weight_bytes: int

    def results(self) -> Iterator[tuple[Operation, TensorType]]:
        """Every op with each type it makes."""
        for op in self.function.operations:
            for made in op.outputs.values():
                yield op, made

    def kinds(self, *kinds: str) -> list[Operation]:
        """The ops of these kinds."""
        return [op for op in self.function.operations if op.kind in kinds]

    def shape(self, op: Operation, parameter: str) -> tuple[int, ...]:
        """The shape of what an op is given, sizes not known left out."""
        return _known(self.types[op.arguments[parameter][0]])

    def constant(self, name: str) -> object:
        """The decoded constant of that name, None where a value is computed."""
        literal = self.function.literals.get(name)
        return None if literal is None else literal.read()


@dataclass(frozen=True)
class Rule:
    """How often a graph breaks a rule, and what would mend it.

    `stored`: the rule is about stored weights, which the functions of a file share.
    """

    count: Callable[[Graph], int]
    advice: str
    stored: bool = False

    @property
    def name(self) -> str:
        """The rule in reports."""
        return self.count.__name__.replace("_", "-")


def linear_layer(graph: Graph) -> int:
    """Projections as `linear`; the ANE wants (B, C, 1, S) and 1x1 convolutions.

    Source: https://machinelearning.apple.com/research/neural-engine-transformers
    """
    return len(graph.kinds("linear"))


def io_last_axis(graph: Graph) -> int:
    """Inputs and outputs whose last axis does not fill whole lines of 64 bytes.

    Source: Neural Engine Rules; https://machinelearning.apple.com/research/neural-engine-transformers
    """
    function = graph.function
    types = (*function.inputs.values(), *function.outputs.values())
    return sum(_last(made) % _LINE_VALUES != 0 for made in types if made.dtype in _FLOATS)


def singleton_last_axis(graph: Graph) -> int:
    """Results whose last axis is 1 and padded to 64 bytes: 32 times their memory and traffic.

    Source: https://machinelearning.apple.com/research/neural-engine-transformers
    """
    types = (made for _, made in graph.results() if made.dtype in _FLOATS)
    return sum(_last(made) == 1 and math.prod(_known(made)) > 1 for made in types)


def ragged_last_axis(graph: Graph) -> int:
    """Results whose last axis is longer than 1 but no multiple of 64 bytes: each row is padded.

    Source: https://machinelearning.apple.com/research/neural-engine-transformers
    """
    types = (made for _, made in graph.results() if made.dtype in _FLOATS)
    return sum(_last(made) % _LINE_VALUES > 0 and _last(made) > 1 for made in types)


def rank_over_five(graph: Graph) -> int:
    """Results of more than five axes.

    Source: Neural Engine Rules
    """
    return sum(len(made.shape) > _MOST_RANK for _, made in graph.results())


def float32_op(graph: Graph) -> int:
    """Ops that compute in float32, which the ANE does not; casts at the border are not counted.

    Source: Neural Engine Rules
    """
    return sum(made.dtype == "fp32" and op.kind != "cast" for op, made in graph.results())


def flexible_shape(graph: Graph) -> int:
    """Inputs and results with sizes left open.

    Source: https://github.com/apple/coremltools/issues/2370
    """
    types = (*graph.function.inputs.values(), *(made for _, made in graph.results()))
    return sum(None in made.shape for made in types)


def size_over_limit(graph: Graph) -> int:
    """Results beyond N 65536, D 16384, C 65536, H 16384, W 16384.

    Source: the compiler's message in https://github.com/FluidInference/FluidAudio/issues/121
    """
    limits = (_MOST_N, _MOST_DHW, _MOST_C, _MOST_DHW, _MOST_DHW)
    four = (_MOST_N, _MOST_C, _MOST_DHW, _MOST_DHW)
    return sum(
        any(
            size > most
            for size, most in zip(
                reversed(_known(made)),
                reversed(limits if len(made.shape) > len(four) else four),
                strict=False,
            )
        )
        for _, made in graph.results()
    )


def op_off_engine(graph: Graph) -> int:
    """Ops that run elsewhere, each a round trip between processors; constant ones cost nothing.

    Sources: hollance/neural-engine docs/unsupported-layers.md;
    https://github.com/roboflow/rf-detr/pull/1495
    """
    return len(graph.kinds(*OFF_ENGINE))


def dilated_convolution(graph: Graph) -> int:
    """Convolutions with holes.

    Source: hollance/neural-engine docs/unsupported-layers.md
    """
    dilations = (
        graph.constant(name)
        for op in graph.kinds("conv", "conv_transpose")
        for name in op.arguments.get("dilations", ())
    )
    return sum(bool((np.asarray(sizes) > 1).any()) for sizes in dilations if sizes is not None)


def weight_file_limit(graph: Graph) -> int:
    """A weight file over 2 GiB, which the ANE compiler refuses.

    Source: its message in https://github.com/apple/coremltools/pull/2593
    """
    return int(graph.weight_bytes > 1 << 31)


def weight_file_chunk(graph: Graph) -> int:
    """A weight file over 1 GB, which iOS 18 is reported to refuse.

    Source: https://github.com/Anemll/Anemll/issues/28
    """
    return int(10**9 < graph.weight_bytes <= 1 << 31)


def fused_attention(graph: Graph) -> int:
    """Fused attention: large ones were placed on the ANE, but two in a function failed to compile.

    Sources: https://github.com/vx-lang/Vx/issues/437;
    https://github.com/kasper0406/stablehlo-coreml/pull/89
    """
    return len(graph.kinds("scaled_dot_product_attention"))


def odd_einsum(graph: Graph) -> int:
    """Einsums other than the two forms that Apple's own attention uses.

    Source: apple/ml-stable-diffusion python_coreml_stable_diffusion/attention.py
    """
    equations = (
        graph.constant(name)
        for op in graph.kinds("einsum")
        for name in op.arguments.get("equation", ())
    )
    known = ("bchq,bkhc->bkhq", "bkhq,bchk->bchq")
    return sum(str(equation).replace(" ", "") not in known for equation in equations)


def last_axis_moved(graph: Graph) -> int:
    """Transposes and reshapes that change the last axis, each a copy through memory.

    Sources: Neural Engine Rules; https://machinelearning.apple.com/research/neural-engine-transformers
    """
    moved = sum(_moves_last(graph, op) for op in graph.kinds("transpose"))
    resized = sum(
        graph.shape(op, "x")[-1:] != _known(made)[-1:]
        for op, made in graph.results()
        if op.kind == "reshape"
    )
    return moved + resized


def subnormal_scalar(graph: Graph) -> int:
    """Scalars such as an epsilon below 6.1e-5, which half precision holds badly or flushes to 0.

    Source: IEEE 754, the least normal binary16 number is 2**-14
    """
    scalars = (
        graph.constant(name)
        for op in graph.function.operations
        for names in op.arguments.values()
        for name in names
        if _is_scalar(graph.types.get(name))
    )
    values = (abs(float(np.asarray(value))) for value in scalars if value is not None)
    return sum(0.0 < value < _LEAST_NORMAL_HALF for value in values)


def infinite_mask(graph: Graph) -> int:
    """Constant masks at or below the lowest half-precision number, which turn into NaN.

    Source: Neural Engine Rules (use -40000)
    """
    masks = (
        graph.constant(name)
        for op in graph.kinds("add", "sub", "select", "scaled_dot_product_attention")
        for names in op.arguments.values()
        for name in names
        if graph.types[name].dtype in _FLOATS
    )
    arrays = (np.asarray(mask) for mask in masks if mask is not None)
    return sum(bool((~np.isfinite(array) | (array <= _LOWEST_HALF)).any()) for array in arrays)


def dma_notch(graph: Graph) -> int:
    """Dense weights of which a core streams within 16 KiB of whole MiB: a third of the speed.

    Source: https://github.com/kasper0406/stablehlo-coreml/pull/110
    """
    shapes = (graph.shape(op, "weight") for op in graph.kinds("conv", "linear"))
    payloads = [math.ceil(shape[0] / 16) * math.prod(shape[1:]) * 2 for shape in shapes]
    return sum(
        payload >= _MIB - 16384 and abs(payload - round(payload / _MIB) * _MIB) <= 16384
        for payload in payloads
    )


def angles_in_graph(graph: Graph) -> int:
    """Sines and cosines: at half precision a time embedding inside the graph costs 26 dB.

    Source: measured with this toolkit's executor, 59.7 dB against 85.8 dB with the angles exact
    """
    return len(graph.kinds("sin", "cos"))


RULES = (
    Rule(linear_layer, "write projections as 1x1 Conv2d on (batch, channels, 1, tokens)"),
    Rule(io_last_axis, "give inputs and outputs a last axis that is a multiple of 32 values"),
    Rule(singleton_last_axis, "keep tokens, not a 1, on the last axis"),
    Rule(ragged_last_axis, "pad the token count to a multiple of 32"),
    Rule(rank_over_five, "reshape to four axes"),
    Rule(float32_op, "convert with compute_precision FLOAT16 and keep values below 65504"),
    Rule(flexible_shape, "export one function per size"),
    Rule(size_over_limit, "split the tensor into chunks"),
    Rule(op_off_engine, "compute it on the host, or once before the steps"),
    Rule(dilated_convolution, "use undilated kernels"),
    Rule(weight_file_limit, "store fewer bits or split the graph into chunks", stored=True),
    Rule(weight_file_chunk, "split the graph into chunks below 1 GB for iOS 18", stored=True),
    Rule(fused_attention, "write attention as 4-D matmul, softmax, matmul"),
    Rule(odd_einsum, "use bchq,bkhc->bkhq and bkhq,bchk->bchq, or 4-D matmul"),
    Rule(last_axis_moved, "let matmul transpose, and split heads on the channel axis"),
    Rule(subnormal_scalar, "use an epsilon of at least 6.2e-5, or rescale before"),
    Rule(infinite_mask, "mask with -40000"),
    Rule(
        dma_notch,
        "split the layer along its input channels, unless it is palettized",
        stored=True,
    ),
    Rule(angles_in_graph, "compute the embedding on the host in float32 and feed it in"),
)
"""Every rule, in the order of the report."""


def _known(made: TensorType) -> tuple[int, ...]:
    return tuple(size for size in made.shape if size is not None)


def _last(made: TensorType) -> int:
    """Size of the last axis; a full line where there is none or it is not known."""
    return (made.shape[-1] if made.shape else None) or _LINE_VALUES


def _moves_last(graph: Graph, transpose: Operation) -> bool:
    order = np.asarray(graph.constant(transpose.arguments["perm"][0])).tolist()
    return order[-1] % len(order) != len(order) - 1


def _is_scalar(made: TensorType | None) -> bool:
    return made is not None and made.shape == () and made.dtype in _FLOATS
