"""What a .tflite file says about itself, read and checked in Python before native code sees it.

The layout is the flatbuffer schema that ai-edge-litert ships. Every count, offset and index is
held against its bound, so a file that was cut short or overwritten is refused with a reason. A
flipped bit inside the weights is legal to every reader: only the sha256 of the file tells.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Component, TensorSpec

_IDENTIFIER = b"TFL3"
_MOST_ITEMS = 1 << 20  # of any list in a file; the largest graphs have a few thousand
_BITS = {"BOOL": 8, "INT2": 2, "INT4": 4, "INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64}
_BITS |= {"UINT8": 8, "UINT16": 16, "UINT32": 32, "UINT64": 64}
_BITS |= {"FLOAT16": 16, "BFLOAT16": 16, "FLOAT32": 32, "FLOAT64": 64}
_DECODING = (struct.error, ValueError, IndexError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a graph; `dtype` as the schema calls it, such as FLOAT32.

    `stored_bytes` counts a constant's values and its quantisation scales; constants of the same
    `buffer` are stored once.
    """

    shape: tuple[int, ...]
    dtype: str
    constant: bool
    dynamic: bool
    blockwise: bool
    name: str = ""
    stored_bytes: int = 0
    buffer: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of its values, whether stored or computed."""
        return (math.prod(self.shape) * _BITS.get(self.dtype, 0) + 7) // 8


@dataclass(frozen=True)
class Op:
    """One op: its kind as the schema calls it, and tensors by position, -1 for one left out."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """One subgraph; `inputs` and `outputs` are those of its signature, a function, by name."""

    signature: str
    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class ModelFile:
    """A whole file."""

    path: Path
    size_bytes: int
    graphs: tuple[Graph, ...]


def read_model(path: Path) -> ModelFile:
    """The graphs, at least one, of the .tflite file at `path`; weights are measured, not read.

    Raises:
        InputError: no file, not a .tflite file, or a damaged one.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return ModelFile(path, len(data), _graphs(data))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; name a .tflite file") from error
    except _DECODING as error:
        raise InputError(
            f"{path} is damaged or not a .tflite file ({error}); copy it again whole, or export it "
            "again"
        ) from error


def check_signature(model: ModelFile, component: Component, function: str) -> None:
    """Raises InputError unless `function` takes and returns exactly the tensors of `component`."""
    graph = next((graph for graph in model.graphs if graph.signature == function), None)
    if graph is None:
        known = ", ".join(graph.signature for graph in model.graphs if graph.signature) or "none"
        raise InputError(f"{model.path} has no signature {function}, only {known}; export it again")
    for role, specs, tensors in (
        ("takes", component.inputs, graph.inputs),
        ("returns", component.outputs, graph.outputs),
    ):
        wanted, found = _declared(specs), _found(tensors)
        if wanted != found:
            raise InputError(
                f"{model.path} {role} {_listed(found)}, but {component.name} {role} "
                f"{_listed(wanted)}; name the file of this component, or export it again"
            )


Kinds = Mapping[str, tuple[str, tuple[int, ...]]]


def _declared(specs: tuple[TensorSpec, ...]) -> Kinds:
    return {spec.name: (spec.dtype, spec.shape) for spec in specs}


def _found(tensors: Mapping[str, Tensor]) -> Kinds:
    return {name: (tensor.dtype.lower(), tensor.shape) for name, tensor in tensors.items()}


def _listed(kinds: Kinds) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in kinds.items())


def _graphs(data: mmap.mmap) -> tuple[Graph, ...]:
    from ai_edge_litert import schema_py_generated as schema

    if data[4:8] != _IDENTIFIER:
        raise ValueError("the mark TFL3 is missing")
    model = schema.Model.GetRootAs(data)
    kinds = _names(schema.BuiltinOperator)
    codes = [_kind(code, kinds) for code in _items(model, "OperatorCodes")]
    stored = [_stored(buffer, len(data)) for buffer in _items(model, "Buffers")]
    read_tensor = partial(
        _tensor,
        types=_names(schema.TensorType),
        stored=stored,
        blockwise=schema.QuantizationDetails.BlockwiseQuantization,
    )
    signatures = {item.SubgraphIndex(): item for item in _items(model, "SignatureDefs")}
    graphs = []
    for index, subgraph in enumerate(_items(model, "Subgraphs")):
        tensors = tuple(read_tensor(tensor) for tensor in _items(subgraph, "Tensors"))
        ops = tuple(_op(op, codes, len(tensors)) for op in _items(subgraph, "Operators"))
        graphs.append(_graph(signatures.get(index), tensors, ops))
    if not graphs:
        raise ValueError("it holds no graph")
    return tuple(graphs)


def _graph(signature: Any, tensors: tuple[Tensor, ...], ops: tuple[Op, ...]) -> Graph:
    if signature is None:
        return Graph("", tensors, ops, {}, {})
    inputs, outputs = (
        {item.Name().decode(): tensors[item.TensorIndex()] for item in _items(signature, role)}
        for role in ("Inputs", "Outputs")
    )
    return Graph(signature.SignatureKey().decode(), tensors, ops, inputs, outputs)


def _tensor(
    tensor: Any, *, types: Mapping[int, str], stored: Sequence[int], blockwise: int
) -> Tensor:
    shape, signature = _integers(tensor, "Shape"), _integers(tensor, "ShapeSignature")
    dtype, held = types[tensor.Type()], stored[tensor.Buffer()]
    quantization = tensor.Quantization()
    scales = _length(quantization, "Scale") if quantization else 0
    found = Tensor(
        shape,
        dtype,
        constant=held > 0,
        dynamic=min((*shape, *signature), default=0) < 0,
        blockwise=quantization is not None and quantization.DetailsType() == blockwise,
        name=(tensor.Name() or b"").decode(),
        stored_bytes=held + 4 * scales if held else 0,
        buffer=tensor.Buffer(),
    )
    if held and held < found.bytes:
        raise ValueError(f"{held} bytes stored for a constant of {found.bytes}")
    return found


def _op(op: Any, codes: Sequence[str], tensors: int) -> Op:
    inputs, outputs = _integers(op, "Inputs"), _integers(op, "Outputs")
    if not all(-1 <= at < tensors for at in (*inputs, *outputs)):
        raise ValueError("an op names a tensor that is not there")
    return Op(codes[op.OpcodeIndex()], inputs, outputs)


def _kind(code: Any, names: Mapping[int, str]) -> str:
    # Codes past 127 are in the wide field; older writers fill only the byte.
    return names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]


def _stored(buffer: Any, size: int) -> int:
    """Bytes of a buffer, inside the flatbuffer or (large files) behind it."""
    if not buffer.DataIsNone():
        return int(buffer.DataAsNumpy().size)
    end = buffer.Offset() + buffer.Size()
    if end > size:
        raise ValueError(f"it ends at byte {size}, its weights at {end}")
    return int(buffer.Size())


def _names(enum: type) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if isinstance(value, int)}


def _items(table: Any, field: str) -> list[Any]:
    item_at: Callable[[int], Any] = getattr(table, field)
    return [item_at(i) for i in range(_length(table, field))]


def _integers(table: Any, field: str) -> tuple[int, ...]:
    length = _length(table, field)
    return tuple(getattr(table, f"{field}AsNumpy")().tolist()) if length else ()


def _length(table: Any, field: str) -> int:
    length: int = getattr(table, f"{field}Length")()
    if length > _MOST_ITEMS:
        raise ValueError(f"a list claims {length} entries")
    return length
