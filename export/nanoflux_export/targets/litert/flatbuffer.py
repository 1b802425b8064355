""".tflite files as objects of the schema that ai-edge-litert ships.

Constants lie inside the flatbuffer or, where their buffer has an offset, anywhere behind it.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"

OPS = {value: name for name, value in vars(schema.BuiltinOperator).items()}
"""Names of ops by their code."""
TYPES = {value: name for name, value in vars(schema.TensorType).items()}
"""Names of types by their code."""


def unpacked(path: Path) -> tuple[Any, mmap.mmap]:
    """The model of a file known to be whole, as a `schema.ModelT`, and the file's bytes."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data)), data


def content(buffer: Any, data: mmap.mmap) -> np.ndarray:
    """The bytes of a `schema.BufferT`, as a view of the file; none for computed tensors."""
    if buffer.data is not None:
        return np.asarray(buffer.data, np.uint8)
    return np.frombuffer(data, np.uint8, buffer.size, buffer.offset)


def packed(model: Any) -> bytes:
    """The flatbuffer of a `schema.ModelT`.

    Its length depends on how many items every list has, not on the values in them, as long as
    numbers that are not their field's default stay so.
    """
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())
