"""safetensors files read and written one tensor at a time.

The safetensors package maps a file as a whole, privately and writable. Linux counts that against
memory and refuses it for a file larger than the machine, so here each read maps its own bytes and
lets them go with the tensor.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.strict_json import parse_json
from nanoflux_mobile.weights import Stored, Weights, dtype_name

FLOATS: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""The dtypes weights may have, by their names in a file."""
OTHERS: Mapping[str, tuple[str, int]] = {
    **{f"I{bits}": (f"int{bits}", bits) for bits in (8, 16, 32, 64)},
    **{f"U{bits}": (f"uint{bits}", bits) for bits in (8, 16, 32, 64)},
    "BOOL": ("bool", 8),
    "F64": ("float64", 64),
    "C64": ("complex64", 64),
    "F8_E8M0": ("float8_e8m0", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F6_E2M3": ("float6_e2m3", 6),
    "F6_E3M2": ("float6_e3m2", 6),
    "F4": ("float4_e2m1", 4),
}
"""The other dtypes of the format, which no weight of ours has: name and bits."""
NOT_WEIGHTS = frozenset(name for name, _ in OTHERS.values())
_FORMATS = {k: (dtype_name(v), 8 * v.itemsize) for k, v in FLOATS.items()} | dict(OTHERS)
_MOST_HEADER = 25_000_000
_MOST_AXES = 8
_MOST_BYTES = 1 << 50


@dataclass(frozen=True)
class _Entry:
    """A tensor by its header: `start` and `stop` count bytes after the header."""

    format: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_safetensors(path: Path) -> Weights:
    """The tensors of a file, none of them read yet.

    Raises:
        InputError: the file cannot be read or is not what the format says, to the byte.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            data = struct.unpack("<Q", file.read(8))[0] + 8
            if not 8 < data <= min(size, _MOST_HEADER):
                raise ValueError(f"a header of {data - 8} bytes in a file of {size}")
            header = parse_json(file.read(data - 8).decode())
        entries = {name: _entry(name, told) for name, told in _tensors(header).items()}
        _check_whole(entries, size - data)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; name a readable file") from error
    except (ValueError, struct.error) as broken:
        raise InputError(
            f"{path} is damaged or not safetensors ({broken}); download it again"
        ) from broken
    return {name: _stored(path, data, entry) for name, entry in entries.items()}


def _tensors(header: Any) -> dict[str, Any]:
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    return {name: told for name, told in header.items() if name != "__metadata__"}


def _entry(name: str, told: Any) -> _Entry:
    name.encode()  # half a character cannot be shown to anybody
    if not isinstance(told, dict) or told.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:60]!r} is not described by dtype, shape and data_offsets")
    shape, offsets = told["shape"], told["data_offsets"]
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or len(shape) > _MOST_AXES:
        raise ValueError(f"{name[:60]!r} has an impossible shape or place")
    if not isinstance(told["dtype"], str) or told["dtype"] not in _FORMATS:
        raise ValueError(f"{name[:60]!r} has an unknown dtype")
    start, stop = offsets
    if 8 * (stop - start) != math.prod(shape) * _FORMATS[told["dtype"]][1]:
        raise ValueError(f"{name[:60]!r} takes {stop - start} bytes, which its shape does not")
    return _Entry(told["dtype"], tuple(shape), start, stop)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= _MOST_BYTES for value in values
    )


def _check_whole(entries: Mapping[str, _Entry], size: int) -> None:
    """The tensors follow each other without holes from the first byte to the last."""
    end = 0
    for entry in sorted(entries.values(), key=lambda e: (e.start, e.stop)):
        if entry.start != end:
            raise ValueError(f"tensors overlap or leave a hole at byte {min(entry.start, end)}")
        end = entry.stop
    if end != size:
        raise ValueError(f"its tensors take {end} bytes and it has {size}")


def _stored(path: Path, data: int, entry: _Entry) -> Stored:
    name = _FORMATS[entry.format][0]
    nbytes = entry.stop - entry.start

    def read() -> Tensor:
        dtype = FLOATS[entry.format]
        if not nbytes:
            return torch.empty(entry.shape, dtype=dtype)
        return _mapped(path, data + entry.start, nbytes, dtype).reshape(entry.shape)

    return Stored(entry.shape, name, nbytes, read)


def _mapped(path: Path, start: int, nbytes: int, dtype: torch.dtype) -> Tensor:
    """Bytes of a file as a vector; writing to it changes memory only."""
    try:
        raw = np.memmap(path, np.uint8, "c", start, (nbytes,))
    except (OSError, ValueError) as gone:
        raise InputError(
            f"{path} was replaced or taken away while in use ({gone}); run again"
        ) from gone
    aligned = raw if start % dtype.itemsize == 0 else np.array(raw)
    return torch.from_numpy(aligned).view(dtype)


def write_safetensors(path: Path, weights: Weights, dtype: torch.dtype) -> None:
    """Write tensors as `dtype`, one of FLOATS, holding one of them in memory at a time.

    The file appears whole or not at all.
    """
    format_name = next(name for name, known in FLOATS.items() if known == dtype)
    sizes = [math.prod(stored.shape) * dtype.itemsize for stored in weights.values()]
    ends = list(accumulate(sizes))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for (name, stored), size, end in zip(weights.items(), sizes, ends, strict=True):
        place = {"shape": list(stored.shape), "data_offsets": [end - size, end]}
        header[name] = {"dtype": format_name, **place}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Aside first: what is written may be read from the very file that it replaces.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with aside.open("xb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for stored in weights.values():
                file.write(_bytes(stored.read().to(dtype)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
