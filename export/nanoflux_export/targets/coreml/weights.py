"""The weight file of an .mlpackage: memory-mapped entries, and the unpacking of sub-byte values.

Layout (coremltools, mlmodel/src/MILBlob/Blob/StorageFormat.hpp): a 64-byte header, then for each
tensor a 64-byte record {sentinel, type, bytes, offset of the data, unused bits at the end} and the
data itself, both aligned to 64 bytes. Values smaller than a byte follow one another bit by bit,
the least significant bit first.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BITS = {"uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6, "int4": 4}
NUMPY_TYPES = {
    **dict.fromkeys(("uint1", "uint2", "uint3", "uint4", "uint6", "uint8"), np.dtype(np.uint8)),
    **dict.fromkeys(("int4", "int8"), np.dtype(np.int8)),
    "bool": np.dtype(np.bool_),
    "int16": np.dtype("<i2"),
    "uint16": np.dtype("<u2"),
    "int32": np.dtype("<i4"),
    "uint32": np.dtype("<u4"),
    "int64": np.dtype("<i8"),
    "uint64": np.dtype("<u8"),
    "fp16": np.dtype("<f2"),
    "fp32": np.dtype("<f4"),
    "fp64": np.dtype("<f8"),
}

_SENTINEL = 0xDEADBEEF
_RECORD = struct.Struct("<IIQQQ")
_BLOB_TYPES = {
    **{1: "fp16", 2: "fp32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4"},
    **{9: "uint1", 10: "uint2", 11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32"},
}


def packed_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that a stored tensor of MIL type `dtype` and `shape` takes."""
    bits = BITS.get(dtype) or 8 * NUMPY_TYPES[dtype].itemsize
    return math.ceil(bits * math.prod(shape) / 8)


def map_weights(path: Path) -> NDArray[np.uint8]:
    """The bytes of a weight file, read from disk only where they are touched."""
    return np.memmap(path, dtype=np.uint8, mode="r")


def find_entry(
    weights: NDArray[np.uint8], offset: int, dtype: str, shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """The packed bytes of the tensor whose record stands at `offset`.

    Raises:
        ValueError: no record there, another type or size than the program declares, or a file
            that ends before the tensor does.
    """
    record = weights[offset : offset + _RECORD.size].tobytes()
    if len(record) < _RECORD.size:
        raise ValueError(f"the weight file ends at {weights.size} bytes, before record {offset}")
    sentinel, code, size, start, _ = _RECORD.unpack(record)
    expected = packed_bytes(dtype, shape)
    if sentinel != _SENTINEL or _BLOB_TYPES.get(code) != dtype or size != expected:
        raise ValueError(
            f"the weight file has no {dtype} tensor of {expected} bytes at {offset}, "
            "where the program looks for one"
        )
    if start + size > weights.size:
        raise ValueError(f"the weight file ends at {weights.size} of {start + size} bytes")
    return weights[start : start + size]


def unpack(packed: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> Array:
    """Stored bytes as an array of `shape`; sub-byte integers become uint8 or int8."""
    if dtype not in BITS:
        return packed.view(NUMPY_TYPES[dtype]).reshape(shape)
    values = unpack_bits(packed, BITS[dtype], math.prod(shape)).reshape(shape)
    if dtype == "int4":
        return (values ^ np.uint8(8)).astype(np.int8) - np.int8(8)
    return values


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The first `count` unsigned integers of `bits` bits (1 to 8) in `packed`."""
    word_bytes = bits // math.gcd(bits, 8)  # the fewest bytes that hold whole values
    per_word = 8 * word_bytes // bits
    padded = np.zeros(math.ceil(count / per_word) * word_bytes, np.uint8)
    padded[: packed.size] = packed[: padded.size]
    pieces = padded.reshape(-1, word_bytes)
    words: Array = pieces[:, 0].astype(np.uint8 if word_bytes == 1 else np.uint32)
    for index in range(1, word_bytes):
        words |= pieces[:, index].astype(np.uint32) << np.uint32(8 * index)
    shifts = np.arange(per_word, dtype=words.dtype) * words.dtype.type(bits)
    values: Array = (words[:, None] >> shifts) & words.dtype.type((1 << bits) - 1)
    return values.astype(np.uint8, copy=False).reshape(-1)[:count]
