""".tflite files as objects of the schema that ai-edge-litert ships.

Constants lie inside the flatbuffer or, where their buffer has an offset, anywhere behind it.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nanoflux_mobile.errors import NanofluxError

IDENTIFIER = b"TFL3"

OPS = {value: name for name, value in vars(schema.BuiltinOperator).items()}
"""Names of ops by their code."""
TYPES = {value: name for name, value in vars(schema.TensorType).items()}
"""Names of types by their code."""

_UNKNOWN = 1 << 40  # what stands for an offset or size until it is known
_ALIGNMENT = 16
"""Of constants behind the flatbuffer, as the schema asks for those inside."""

Put = Callable[[int, np.ndarray], int]
"""Stores the values of a buffer, by its place, or finds the same ones: the buffer that has them."""


def op_kind(model: Any, operator: Any) -> str:
    """What an op of a `schema.ModelT` does, as the schema calls it."""
    code = model.operatorCodes[operator.opcodeIndex]
    # Codes past 127 are in the wide field; older writers fill only the byte.
    return OPS[max(code.builtinCode, code.deprecatedBuiltinCode)]


def code_place(codes: list[Any], code: Any) -> int:
    """Where an op's code stands in the list, at its end if it is new."""
    for at, known in enumerate(codes):
        if vars(known) == vars(code):
            return at
    codes.append(code)
    return len(codes) - 1


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


def new_buffer(model: Any) -> int:
    """A buffer for a constant that `written` is to store."""
    model.buffers.append(schema.BufferT(offset=_UNKNOWN, size=_UNKNOWN))
    return len(model.buffers) - 1


@contextmanager
def written(model: Any, path: Path) -> Iterator[Put]:
    """Write a model to `path` when the block ends; inside, constants are stored one by one.

    They lie behind the room for the flatbuffer, which is written last, with their places in it.
    """
    room, known = len(packed(model)), dict[bytes, int]()
    with path.open("wb") as file:
        file.seek(room)
        yield partial(_put, file, model, known)
        header = packed(model)
        if len(header) > room:
            raise NanofluxError(f"the flatbuffer takes {len(header)} bytes, more than its {room}")
        file.seek(0)
        file.write(header)


def _put(
    file: BinaryIO, model: Any, known: dict[bytes, int], buffer: int, values: np.ndarray
) -> int:
    data = values.reshape(-1).view(np.uint8).data
    digest = hashlib.sha256(data).digest()
    entry = model.buffers[buffer]
    if digest in known:
        entry.offset = entry.size = 0
        return known[digest]
    file.seek(-file.tell() % _ALIGNMENT, os.SEEK_CUR)
    entry.offset, entry.size = file.tell(), values.nbytes
    file.write(data)
    known[digest] = buffer
    return buffer
