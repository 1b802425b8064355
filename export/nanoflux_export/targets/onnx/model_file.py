"""Saved models as they are read: parsed, with every reference to a weight file looked at first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanoflux_export.targets.onnx.data_file import decoded
from nanoflux_mobile.errors import InputError, NanofluxError

DECODES = ("Cast", "DequantizeLinear")
"""Ops that make a stored weight float32."""


@dataclass(frozen=True)
class Tensor:
    """A value of a graph; an axis known only at run time has the length None."""

    dtype: str
    shape: tuple[int | None, ...]
    constant: bool = False

    @property
    def bytes(self) -> int:
        """What it takes, in the file and in memory alike."""
        return np.dtype(self.dtype).itemsize * int(np.prod(fixed(self.shape), dtype=np.int64))


@dataclass(frozen=True)
class Op:
    """One node; "" stands for an argument that is left out."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """One function of a file: all its values by name, which of them are stored, and its ops.

    Constants that are spelled out in the graph are values, not ops.
    """

    function: str
    values: Mapping[str, Tensor]
    weights: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ops: tuple[Op, ...]


def fixed(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    """A shape whose axes all have lengths.

    Raises:
        InputError: one that is known only at run time.
    """
    if None in shape:
        raise InputError("the file has shapes known only at run time; export it with fixed ones")
    return tuple(length for length in shape if length is not None)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while `path` is decoded into one InputError that names it."""
    try:
        yield
    except NanofluxError:
        raise
    except Exception as error:  # a damaged file can break any layer below; all mean the same
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise InputError(
            f"{path} cannot be read as ONNX ({reason[0]}); copy it again whole, or export it again"
        ) from error


def model_paths(path: Path) -> dict[str, Path]:
    """The models of a folder, or one model file, by the names of their functions.

    Raises:
        InputError: there is none.
    """
    found = [path] if path.is_file() else sorted(path.glob("*.onnx"))
    if not found:
        raise InputError(f"{path} has no .onnx model in it; name a folder that was exported")
    return {file.stem: file for file in found}


def parse(path: Path) -> Any:
    """The message of one model file, its references to other files checked.

    Raises:
        InputError: no model, a damaged one, or one that reaches for bytes that are not there or
            not in its own folder.
    """
    import onnx

    with reading(path):
        model = onnx.ModelProto()
        model.ParseFromString(path.read_bytes())
        if not model.graph.node:
            raise ValueError("it holds no graph")
        for tensor in model.graph.initializer:
            if _external(tensor):
                _extent(path, tensor)
    return model


def read_graphs(path: Path) -> tuple[Graph, ...]:
    """Every function of a file, with the shapes of all values.

    Raises:
        InputError: as `parse`, or shapes that contradict each other.
    """
    return tuple(_graph(name, file) for name, file in model_paths(path).items())


def stored(path: Path) -> Callable[[str], np.ndarray]:
    """A reader of weights by `Segment.weights`, a slash, and the parameter's name.

    It gives them dense and float32; KeyError for one that the file does not have.

    Raises:
        InputError: as `parse`.
    """
    readers: dict[str, Callable[[], np.ndarray]] = {}
    for file in model_paths(path).values():
        with reading(file):
            readers |= _readers(file)
    return lambda name: readers[name]()


def _readers(file: Path) -> dict[str, Callable[[], np.ndarray]]:
    graph = parse(file).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    decodes = [n for n in graph.node if n.op_type in DECODES and n.input[0] in tensors]
    hidden = {name for node in decodes for name in node.input}
    readers = {name: _Reader(file, tensors[name]) for name in tensors.keys() - hidden}
    for node in decodes:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        taken = [tensors[name] for name in node.input]
        readers[node.output[0]] = _Reader(file, *taken, axis=axis)
    return dict(readers)


class _Reader:
    def __init__(self, path: Path, values: Any, scale: Any = None, *, axis: int = 0) -> None:
        self.path, self.values, self.scale, self.axis = path, values, scale, axis

    def __call__(self) -> np.ndarray:
        values = _array(self.path, self.values)
        scale = None if self.scale is None else _array(self.path, self.scale)
        return decoded(values, scale, self.axis)


def _external(tensor: Any) -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL)


def _extent(path: Path, tensor: Any) -> tuple[Path, int]:
    """Where the bytes of an external tensor are: inside the model's own folder, all of them."""
    from onnx import helper

    told = {entry.key: entry.value for entry in tensor.external_data}
    folder = path.parent.resolve()
    file, offset = (folder / told["location"]).resolve(), int(told.get("offset", 0))
    if not file.is_relative_to(folder):
        raise InputError(f"{path} names a file outside its folder ({file}); do not use it")
    if not file.is_file():
        raise InputError(f"{path} needs {told['location']} beside it; copy the folder again whole")
    item = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    size = item * int(np.prod(tensor.dims, dtype=np.int64))
    if min(tensor.dims, default=0) < 0 or offset < 0 or int(told.get("length", size)) != size:
        raise ValueError(f"{tensor.name} is not stored as it says")
    if (end := offset + size) > file.stat().st_size:
        raise InputError(
            f"{file} ends at byte {file.stat().st_size}, its weights at {end}; copy it again whole"
        )
    return file, offset


def _array(path: Path, tensor: Any) -> np.ndarray:
    from onnx import helper, numpy_helper

    if not _external(tensor):
        return numpy_helper.to_array(tensor)
    file, offset = _extent(path, tensor)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(file, dtype, "r", offset, shape=tuple(tensor.dims) or (1,))


def _graph(name: str, path: Path) -> Graph:
    import onnx

    model = parse(path)
    with reading(path):
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
        values = {
            info.name: _declared(info) for info in (*graph.value_info, *graph.input, *graph.output)
        }
        values |= {tensor.name: _constant(tensor) for tensor in graph.initializer}
        ops = []
        for node in graph.node:
            op = _op(node)
            if node.op_type == "Constant" and "value" in op.attributes:
                values[node.output[0]] = _constant(op.attributes["value"])
            else:
                ops.append(op)
        weights = tuple(tensor.name for tensor in graph.initializer)
        inputs = tuple(info.name for info in graph.input if info.name not in weights)
        outputs = tuple(info.name for info in graph.output)
        named = (name for op in ops for name in (*op.inputs, *op.outputs) if name)
        if lost := [name for name in named if name not in values]:
            raise ValueError(f"nothing tells what {lost[0]} is")
    return Graph(name, values, weights, inputs, outputs, tuple(ops))


def _op(node: Any) -> Op:
    from onnx import helper

    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return Op(node.op_type, tuple(node.input), tuple(node.output), attributes)


def _declared(info: Any) -> Tensor:
    from onnx import helper

    kind = info.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    axes = kind.shape.dim
    return Tensor(dtype, tuple(a.dim_value if a.HasField("dim_value") else None for a in axes))


def _constant(tensor: Any) -> Tensor:
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type).name
    return Tensor(dtype, tuple(tensor.dims), constant=True)
