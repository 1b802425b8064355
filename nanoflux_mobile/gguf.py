"""GGUF files, read-only: a header of names, counts and offsets over blocks of quantised numbers.

The header is data from outside: nothing in it is believed before it is checked against the size of
the file, and the file is mapped, so only the tensors that are asked for are ever decoded. The
format is that of ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.gguf_blocks import LAYOUTS, Layout
from nanoflux_mobile.weights import Stored, Weights

Metadata = Mapping[str, str | int | float | bool]
Bytes = NDArray[np.uint8]

VERSIONS = (2, 3)
MOST_HEADER = 16 * 2**20
"""Bytes. The largest vocabularies need half of it, a FLUX transformer 100 KB."""
MOST_ENTRIES = 2**16
MOST_NAME = 256
MOST_AXES = 4

SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
"""`struct` formats of the header's value types."""
STRING, ARRAY = 8, 9


def read_gguf(path: Path) -> Weights:
    """The tensors of a GGUF file under its own names, axes in torch's order.

    Quantised ones read as float32, exactly the numbers their blocks stand for; plain ones as they
    are stored. InputError if the file is damaged or a type is none of `LAYOUTS`.
    """
    return _parse(path)[1]


def read_metadata(path: Path) -> Metadata:
    """What a GGUF file says of itself: general.architecture, ...; arrays are left out."""
    return _parse(path)[0]


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} is damaged or not GGUF ({why}); download it again")


@dataclass
class _Cursor:
    """Reads the header front to back; no count in it can make it pass the end."""

    path: Path
    data: memoryview
    at: int = 0

    def skip(self, size: int) -> int:
        """Where the next `size` bytes start."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise _damaged(self.path, f"its header ends after byte {start}")
        return start

    def number(self, code: str) -> Any:
        """One number of a `struct` format."""
        start = self.skip(struct.calcsize(code))
        return struct.unpack_from(code, self.data, start)[0]

    def text(self) -> str:
        """A length and as many bytes of UTF-8."""
        start = self.skip(self.number("<Q"))
        try:
            return self.data[start : self.at].tobytes().decode()
        except UnicodeDecodeError as broken:
            raise _damaged(self.path, f"no text at byte {start}") from broken

    def count(self, things: str) -> int:
        """A count of entries, within reason."""
        if (found := self.number("<Q")) > MOST_ENTRIES:
            raise _damaged(self.path, f"{found} {things}, more than {MOST_ENTRIES}")
        return int(found)

    def value(self) -> str | int | float | bool | None:
        """A typed value; None for an array, which is passed over."""
        kind = self.number("<I")
        if kind != ARRAY:
            return self._scalar(kind)
        of, count = self.number("<I"), self.number("<Q")
        if of == STRING:
            for _ in range(count):
                self.skip(self.number("<Q"))
        else:
            self.skip(count * struct.calcsize(self._code(of)))
        return None

    def _scalar(self, kind: int) -> Any:
        return self.text() if kind == STRING else self.number(self._code(kind))

    def _code(self, kind: int) -> str:
        if kind not in SCALARS:
            raise _damaged(self.path, f"a value of unknown type {kind}")
        return SCALARS[kind]


@dataclass(frozen=True)
class _Entry:
    """A tensor as the header lists it; `offset` in bytes from the start of the data."""

    name: str
    shape: tuple[int, ...]
    layout: Layout
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.layout.elements * self.layout.block.itemsize


def _parse(path: Path) -> tuple[Metadata, Weights]:
    mapped = _mapped(path)
    cursor = _Cursor(path, mapped[:MOST_HEADER].data)
    if cursor.number("<4s") != b"GGUF":
        raise _damaged(path, "it does not begin with GGUF")
    if (version := cursor.number("<I")) not in VERSIONS:
        raise InputError(f"{path} is GGUF version {version}; little-endian 2 and 3 can be read")
    tensors, keys = cursor.count("tensors"), cursor.count("keys")
    metadata = {cursor.text(): cursor.value() for _ in range(keys)}
    entries = [_entry(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    # A float or a truth value would align, too, but then the file is not what it says.
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
        raise _damaged(path, f"general.alignment is {alignment!r}, no power of two from 8 on")
    data = mapped[-(-cursor.at // alignment) * alignment :]
    weights = {entry.name: _stored(path, entry, data, alignment) for entry in entries}
    if len(weights) < tensors or len(metadata) < keys:
        raise _damaged(path, "a name comes twice")
    return {key: value for key, value in metadata.items() if value is not None}, weights


def _mapped(path: Path) -> Bytes:
    try:
        return np.asarray(np.memmap(path, np.uint8, "r"))
    except (OSError, ValueError) as broken:
        raise InputError(f"{path} cannot be read as GGUF: {broken}") from broken


def _entry(cursor: _Cursor) -> _Entry:
    name, axes = cursor.text(), cursor.number("<I")
    if not 0 < len(name) <= MOST_NAME or axes > MOST_AXES:
        raise _damaged(cursor.path, f"a tensor with {axes} axes and {len(name)} letters of name")
    shape = tuple(cursor.number("<Q") for _ in range(axes))[::-1]
    kind, offset = cursor.number("<I"), cursor.number("<Q")
    if kind not in LAYOUTS:
        known = ", ".join(layout.dtype for layout in LAYOUTS.values())
        raise InputError(
            f"{cursor.path} stores {name!r} as ggml type {kind}; readable are {known}: "
            "take a file quantised to one of them"
        )
    layout = LAYOUTS[kind]
    if 0 in shape or (shape[-1] if shape else 1) % layout.elements:
        raise _damaged(cursor.path, f"{name!r} of {layout.dtype} has shape {shape}")
    return _Entry(name, shape, layout, offset)


def _stored(path: Path, entry: _Entry, data: Bytes, alignment: int) -> Stored:
    end = entry.offset + entry.nbytes
    if end > len(data) or entry.offset % alignment:
        raise _damaged(path, f"{entry.name!r} lies at bytes {entry.offset} to {end} of {len(data)}")
    blocks = data[entry.offset : end].view(entry.layout.block)
    return Stored(
        entry.shape,
        entry.layout.dtype,
        entry.nbytes,
        lambda: entry.layout.read(blocks).view(entry.shape),
    )
