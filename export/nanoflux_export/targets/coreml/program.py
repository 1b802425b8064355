"""One function of a saved ML Program as frozen Python values: what it declares, nothing run yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanoflux_export.targets.coreml.constexpr import DECODERS
from nanoflux_export.targets.coreml.package import Package, inside, reading
from nanoflux_export.targets.coreml.weights import (
    NUMPY_TYPES,
    Array,
    find_entry,
    map_weights,
    packed_bytes,
    unpack,
)
from nanoflux_mobile.errors import InputError

MODEL_PATH = "@model_path/"  # how a program spells "the folder of my .mlmodel"


@dataclass(frozen=True)
class TensorType:
    """What the program declares of one value; a None size is only known at run time."""

    dtype: str  # MIL's name: "fp16", "int32", "uint4", "bool", "string"
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Literal:
    """A constant: `read` decodes it to a numpy array, or a str, anew at each call.

    `records` holds the bytes of its parts by where they lie in the weight file; nothing when the
    program spells it out.
    """

    type: TensorType
    read: Callable[[], Any]
    records: Mapping[int, int] = field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """What it takes in the weight file."""
        return sum(self.records.values())

    @property
    def place(self) -> tuple[int, ...]:
        """Where its parts lie there: literals of one place are stored once."""
        return tuple(self.records)


@dataclass(frozen=True)
class Operation:
    """One op: the names of the values it takes, by parameter, and what it declares it makes."""

    kind: str
    name: str
    arguments: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, TensorType]


@dataclass(frozen=True)
class Function:
    """A graph in execution order; constants and compressed weights are literals, not ops."""

    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    literals: Mapping[str, Literal]
    operations: tuple[Operation, ...]


def read_function(package: Package, name: str) -> Function:
    """The function `name` of the package's program.

    Raises:
        InputError: no function of that name, or a program or weight file that is damaged.
    """
    functions = package.model.mlProgram.functions
    if name not in functions:
        raise InputError(
            f"{package.path} has no function {name!r}; it has: {', '.join(sorted(functions))}"
        )
    with reading(package.path):
        return _Reader(package).function(functions[name])


def op_kinds(package: Package) -> set[str]:
    """Every op the package's program uses, in any function, constants left out."""
    blocks = (
        block
        for function in package.model.mlProgram.functions.values()
        for block in function.block_specializations.values()
    )
    return {op.type for block in blocks for op in block.operations} - {"const"}


@dataclass
class _Reader:
    """Walks one function's proto; holds what has been named so far and the open weight files."""

    package: Package
    types: dict[str, TensorType] = field(default_factory=dict)
    literals: dict[str, Literal] = field(default_factory=dict)
    weights: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    def function(self, proto: Any) -> Function:
        if proto.opset not in proto.block_specializations:
            raise ValueError(f"the function has no body for its own opset {proto.opset!r}")
        block = proto.block_specializations[proto.opset]
        inputs = {value.name: tensor_type(value.type) for value in proto.inputs}
        self.types |= inputs
        operations = [op for op in map(self.operation, block.operations) if op]
        outputs = {name: self.types[name] for name in block.outputs}
        return Function(inputs, outputs, self.literals, tuple(operations))

    def operation(self, proto: Any) -> Operation | None:
        """The op; None where it only names a constant, which then is among the literals."""
        outputs = {value.name: tensor_type(value.type) for value in proto.outputs}
        self.types |= outputs
        if proto.type == "const" or proto.type in DECODERS:
            self.literals |= self.constants(proto, outputs)
            return None
        name = proto.attributes["name"].immediateValue.tensor.strings.values[0]
        arguments = {
            parameter: tuple(self.bind(f"{name}.{parameter}", argument.arguments))
            for parameter, argument in proto.inputs.items()
        }
        return Operation(proto.type, name, arguments, outputs)

    def bind(self, label: str, bindings: Iterable[Any]) -> Iterable[str]:
        """The names of the values bound to one parameter; a value given in place gets `label`."""
        for index, binding in enumerate(bindings):
            if binding.WhichOneof("binding") == "name":
                yield binding.name
            else:
                name = f"{label}.{index}"
                self.literals[name] = self.value(binding.value)
                yield name

    def constants(self, proto: Any, outputs: Mapping[str, TensorType]) -> dict[str, Literal]:
        """What a constant or a decoder of compressed weights makes, by name."""
        first = next(iter(outputs))
        if proto.type == "const":
            return {first: self.value(proto.attributes["val"])}
        parts = {
            parameter: self.value(value)
            for parameter, value in proto.attributes.items()
            if parameter != "name"
        }
        for parameter, argument in proto.inputs.items():
            (name,) = self.bind(f"{first}.{parameter}", argument.arguments)
            parts[parameter] = self.literals[name]
        records = {at: size for part in parts.values() for at, size in part.records.items()}
        declared = tuple(outputs.values())
        return {
            name: Literal(kind, partial(_decode, proto.type, parts, declared, index), records)
            for index, (name, kind) in enumerate(outputs.items())
        }

    def value(self, proto: Any) -> Literal:
        declared = tensor_type(proto.type)
        if proto.WhichOneof("value") == "immediateValue":
            return Literal(declared, partial(_immediate, proto.immediateValue.tensor, declared))
        file = proto.blobFileValue.fileName.removeprefix(MODEL_PATH)
        if file not in self.weights:
            self.weights[file] = map_weights(inside(self.package.model_folder, file))
        shape = fixed(declared)
        offset = proto.blobFileValue.offset
        packed = find_entry(self.weights[file], offset, declared.dtype, shape)
        read = partial(unpack, packed, declared.dtype, shape)
        return Literal(declared, read, {offset: packed.size})


def tensor_type(proto: Any) -> TensorType:
    """A MIL ValueType as a TensorType; raises ValueError for lists, dictionaries and states."""
    if proto.WhichOneof("type") != "tensorType":
        raise ValueError(f"a value of type {proto.WhichOneof('type')}")
    tensor = proto.tensorType
    names = tensor.DESCRIPTOR.fields_by_name["dataType"].enum_type.values_by_number
    name = names[tensor.dataType].name.lower().replace("float", "fp")
    return TensorType(name, tuple(map(_size, tensor.dimensions)))


def _size(dimension: Any) -> int | None:
    return dimension.constant.size if dimension.HasField("constant") else None


def fixed(declared: TensorType) -> tuple[int, ...]:
    """The shape of a type whose sizes are all known; raises ValueError otherwise."""
    if None in declared.shape:
        raise ValueError(f"a constant of shape {declared.shape}")
    return tuple(size for size in declared.shape if size is not None)


def _immediate(proto: Any, declared: TensorType) -> Any:
    """A value written inside the program proto; fp16 and small integers are packed bytes there."""
    stored = getattr(proto, proto.WhichOneof("value")).values
    shape = fixed(declared)
    if declared.dtype == "string":
        return stored[0]
    if not isinstance(stored, bytes):
        return np.array(stored, NUMPY_TYPES[declared.dtype]).reshape(shape)
    if len(stored) != packed_bytes(declared.dtype, shape):
        raise ValueError(f"{len(stored)} bytes for a {declared.dtype} tensor of {shape}")
    return unpack(np.frombuffer(stored, np.uint8), declared.dtype, shape)


def _decode(
    kind: str, parts: Mapping[str, Literal], declared: tuple[TensorType, ...], index: int
) -> Array:
    """One result of decoding a weight, rounded to the type that the program declares for it."""
    made = DECODERS[kind](**{name: part.read() for name, part in parts.items()})
    results = made if isinstance(made, tuple) else (made,)
    shapes = [result.shape for result in results]
    if shapes != [one.shape for one in declared]:
        raise ValueError(f"{kind} makes {shapes} where the program declares {declared}")
    return results[index].astype(NUMPY_TYPES[declared[index].dtype], copy=False)
