"""The few protobuf messages that we write ourselves: values, constants, ops, descriptions."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from nanoflux_export.graph import Function
from nanoflux_export.targets.coreml.quiet import quiet

WEIGHTS = "weights/weight.bin"
_FOLDER = "com.apple.CoreML"
_MIL_DTYPES = {"float32": "fp32", "float16": "fp16", "int32": "int32"}


@lru_cache(maxsize=1)
def mil() -> Any:
    """The messages of a MIL program."""
    with quiet():
        from coremltools.proto import MIL_pb2

    return MIL_pb2


def mangled(name: str) -> str:
    """A name as MIL takes it: letters, digits and underscores; `/` stays visible as two."""
    plain = re.sub(r"\W", "_", name.replace("/", "__"))
    return plain if plain[:1].isalpha() else f"_{plain}"


def value_type(dtype: str, shape: tuple[int, ...]) -> Any:
    """The type of a tensor; `dtype` as MIL calls it ("fp16", "uint4") or as a TensorSpec does."""
    name = _MIL_DTYPES.get(dtype, dtype).upper().replace("FP", "FLOAT")
    made = mil().ValueType()
    made.tensorType.dataType = mil().DataType.Value(name)
    made.tensorType.rank = len(shape)
    for size in shape:
        made.tensorType.dimensions.add().constant.size = size
    return made


def in_file(dtype: str, shape: tuple[int, ...], offset: int) -> Any:
    """A value whose record stands at `offset` of the weight file."""
    made = mil().Value(type=value_type(dtype, shape))
    made.blobFileValue.fileName = f"@model_path/{WEIGHTS}"
    made.blobFileValue.offset = offset
    return made


def constant(name: str, value: Any) -> Any:
    """The op that makes `value`."""
    op = mil().Operation(type="const")
    op.outputs.add(name=name).type.CopyFrom(value.type)
    op.attributes["val"].CopyFrom(value)
    set_op_name(op, name)
    return op


def operation(kind: str, outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
    """An op: types by the name of what it makes, and values or their names by parameter.

    It is called as the first of its outputs.
    """
    op = mil().Operation(type=kind)
    for parameter, given in inputs.items():
        argument = op.inputs[parameter].arguments.add()
        if isinstance(given, str):
            argument.name = given
        else:
            argument.value.CopyFrom(given)
    for name, declared in outputs.items():
        op.outputs.add(name=name).type.CopyFrom(declared)
    set_op_name(op, next(iter(outputs)))
    return op


def scalar(dtype: str, given: Any) -> Any:
    """A number or a word that the program spells out."""
    value = mil().Value(type=value_type(dtype, ()))
    tensor = value.immediateValue.tensor
    if dtype == "fp16":
        tensor.bytes.values = np.float16(given).tobytes()
    else:
        getattr(tensor, {"int32": "ints", "string": "strings"}[dtype]).values.append(given)
    return value


def set_op_name(op: Any, name: str) -> None:
    """What the op calls itself in the program's own text."""
    op.attributes["name"].CopyFrom(scalar("string", name))


def describe(description: Any, functions: Mapping[str, Function]) -> None:
    """Fill in what an app sees of the model: inputs and outputs of every function."""
    if list(functions) == ["main"]:
        _features(description, functions["main"])
        return
    for name, function in functions.items():
        _features(description.functions.add(name=name), function)
    description.defaultFunctionName = next(iter(functions))


def _features(description: Any, function: Function) -> None:
    for role, specs in (("input", function.inputs), ("output", function.outputs)):
        for spec in specs:
            array = getattr(description, role).add(name=spec.name).type.multiArrayType
            array.shape.extend(spec.shape)
            array.dataType = array.ArrayDataType.Value(spec.dtype.upper())


def manifest_json() -> str:
    """The package's own list of files, with identifiers that follow from their paths."""
    items = {
        "weights": {"description": "CoreML Model Weights", "path": f"{_FOLDER}/weights"},
        "model.mlmodel": {
            "description": "CoreML Model Specification",
            "path": f"{_FOLDER}/model.mlmodel",
        },
    }
    keys = {n: str(uuid.uuid5(uuid.NAMESPACE_URL, i["path"])).upper() for n, i in items.items()}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            keys[name]: {"author": "com.apple.CoreML", "name": name, **item}
            for name, item in items.items()
        },
        "rootModelIdentifier": keys["model.mlmodel"],
    }
    return json.dumps(manifest, indent=4, sort_keys=True) + "\n"
