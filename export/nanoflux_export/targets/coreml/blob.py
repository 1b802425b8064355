"""Writing the weight file of an .mlpackage, one tensor after another.

The layout stands at the top of `weights`, which reads it; its header is {tensors, version}.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import struct
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanoflux_export.targets.coreml.weights import (
    _BLOB_TYPES,
    _RECORD,
    _SENTINEL,
    BITS,
    NUMPY_TYPES,
    packed_bytes,
)

_ALIGNMENT = 64
_VERSION = 2
_HEADER = struct.Struct("<II")
_CODES = {dtype: code for code, dtype in _BLOB_TYPES.items()}
_COMPARED_BYTES = 16 << 20  # larger tensors are weights of their own, and hashing them takes time


class BlobWriter:
    """A weight file that grows by one tensor at a time and keeps none of them in memory.

    A context manager: the file stands at `path`, whole, when the block has ended well. Until then,
    and if it raises, there is only what was there before. Its folder exists already.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        self._offsets: dict[tuple[str, int, bytes], int] = {}
        self._tensors = 0

    def __enter__(self) -> BlobWriter:
        """Begin the file."""
        self._file = self._part.open("xb")
        self._file.write(bytes(_ALIGNMENT))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the file in its place, or away if the block raised."""
        try:
            with self._file as file:
                file.seek(0)
                file.write(_HEADER.pack(self._tensors, _VERSION))
                file.flush()
                os.fsync(file.fileno())
            if kind is None:
                os.replace(self._part, self._path)
        finally:
            self._part.unlink(missing_ok=True)

    def add(self, values: NDArray[Any], dtype: str) -> int:
        """Write a tensor as the MIL type `dtype` and return the offset of its record.

        `values` have the type of `weights.NUMPY_TYPES`. One of at most 16 MiB that was written
        before is not written again: the offset is that of the first.

        Raises:
            ValueError: values of another type or out of range, or a type that no weight file has.
        """
        return self.add_packed(pack(values, dtype), dtype, values.size)

    def add_packed(self, packed: NDArray[np.uint8], dtype: str, count: int) -> int:
        """Write `count` values that are bytes already, as `pack` returns them; else as `add`."""
        if dtype not in _CODES or packed.nbytes != packed_bytes(dtype, (count,)):
            raise ValueError(
                f"a weight file has no {count} {dtype} values in {packed.nbytes} bytes"
            )
        if packed.nbytes > _COMPARED_BYTES:
            return self._append(packed, dtype, count)
        content = dtype, count, hashlib.sha256(packed.data).digest()
        if content not in self._offsets:
            self._offsets[content] = self._append(packed, dtype, count)
        return self._offsets[content]

    def _append(self, packed: NDArray[np.uint8], dtype: str, count: int) -> int:
        self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        start = offset + _ALIGNMENT
        unused = 8 * packed.nbytes - BITS[dtype] * count if dtype in BITS else 0
        record = _RECORD.pack(_SENTINEL, _CODES[dtype], packed.nbytes, start, unused)
        self._file.write(record.ljust(_ALIGNMENT, b"\0"))
        self._file.write(packed.data)
        self._tensors += 1
        return offset


def pack(values: NDArray[Any], dtype: str) -> NDArray[np.uint8]:
    """The bytes of a tensor of MIL type `dtype`, what `weights.unpack` reads: (bytes,).

    Raises:
        ValueError: `values` are not of the type in `weights.NUMPY_TYPES`, or out of range.
    """
    if values.dtype != NUMPY_TYPES.get(dtype):
        raise ValueError(f"{values.dtype} values are not written as {dtype}")
    flat = np.ascontiguousarray(values).reshape(-1)
    if dtype not in BITS:
        return flat.view(np.uint8)
    least, count = (-8 if dtype == "int4" else 0), 1 << BITS[dtype]
    if flat.size and not least <= flat.min() <= flat.max() < least + count:
        raise ValueError(f"values of {flat.min()}..{flat.max()} do not fit {dtype}")
    return pack_bits(flat.view(np.uint8) & np.uint8(count - 1), BITS[dtype])


def pack_bits(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Unsigned integers of `bits` bits (1, 2, 3, 4 or 6), one after another in as few bytes."""
    per_word = 8 // math.gcd(bits, 8)  # values in the fewest whole bytes, a byte for each so far
    padded = np.zeros(math.ceil(values.size / per_word) * per_word, np.uint8)
    padded[: values.size] = values
    words: NDArray[Any] = padded.view(f"<u{per_word}")
    lane = 8
    while lane < 8 * per_word:  # neighbours join, and the room between the pairs is twice as wide
        lower = sum(((1 << bits) - 1) << at for at in range(0, 8 * per_word, 2 * lane))
        moved = words >> words.dtype.type(lane - bits)
        words = words & words.dtype.type(lower) | moved & words.dtype.type(lower << bits)
        lane, bits = 2 * lane, 2 * bits
    kept_bytes = words.view(np.uint8).reshape(-1, per_word)[:, : bits // 8].reshape(-1)
    return np.ascontiguousarray(kept_bytes[: math.ceil(values.size * bits / lane)])
