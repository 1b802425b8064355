"""The number types of GGUF: how each packs a row of a tensor into blocks, and back to float32.

The layouts are those of ggml-org/ggml, src/ggml-common.h; every field of a block is a field of a
numpy record, so no offset is counted by hand.

Shapes: N blocks of a tensor, E elements of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Blocks = NDArray[np.void]

CHUNK = 4096
"""Blocks decoded at a time: what lies between the file and the result stays in the cache."""


@dataclass(frozen=True)
class Layout:
    """How one type stores numbers: `elements` per block, the block as a numpy type, its reader.

    `read` turns N blocks into N times E numbers, flat, that share no memory with the file.
    """

    dtype: str
    elements: int
    block: np.dtype[Any]
    read: Callable[[NDArray[Any]], Tensor]


def _fields(packed: NDArray[np.uint8], run: int, bits: int) -> Floats:
    """The `bits`-wide fields of packed bytes, (N, E).

    Every `run` bytes hold the lowest fields of `run` elements, then the next higher ones, ...
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = packed.reshape(len(packed), -1, 1, run)
    fields = runs >> shifts & np.uint8((1 << bits) - 1)
    return fields.reshape(len(packed), -1).astype(np.float32)


def _f32(blocks: Blocks, field: str) -> Floats:
    """A number, or some, of every block: (N, 1) or (N, count)."""
    return blocks[field].astype(np.float32).reshape(len(blocks), -1)


def _q4_0(blocks: Blocks) -> Floats:
    return _f32(blocks, "scale") * (_fields(blocks["low"], 16, 4) - 8)


def _q4_1(blocks: Blocks) -> Floats:
    return _f32(blocks, "scale") * _fields(blocks["low"], 16, 4) + _f32(blocks, "least")


def _five_bits(blocks: Blocks) -> Floats:
    return _fields(blocks["low"], 16, 4) + 16 * _fields(blocks["high"], 1, 1)


def _q5_0(blocks: Blocks) -> Floats:
    return _f32(blocks, "scale") * (_five_bits(blocks) - 16)


def _q5_1(blocks: Blocks) -> Floats:
    return _f32(blocks, "scale") * _five_bits(blocks) + _f32(blocks, "least")


def _q8_0(blocks: Blocks) -> Floats:
    return _f32(blocks, "scale") * _f32(blocks, "whole")


def _k_affine(blocks: Blocks, whole_NE: Floats) -> Floats:
    """Eight sub-blocks, each with a scale and a minimum of six bits.

    The first four of both are the low six bits of a byte; their bytes' top two bits, above four
    of the last four bytes, are the other four.
    """
    packed = blocks["six_bits"].reshape(-1, 3, 4)
    low, top = packed[:, :2] & 63, packed[:, :2] >> 6 << 4
    last = np.stack((packed[:, 2] & 15, packed[:, 2] >> 4), 1) | top
    scales, least = np.concatenate((low, last), 2).astype(np.float32).transpose(1, 0, 2)
    steps = np.repeat(_f32(blocks, "scale") * scales, 32, axis=1)
    return steps * whole_NE - np.repeat(_f32(blocks, "least") * least, 32, axis=1)


def _q4_k(blocks: Blocks) -> Floats:
    return _k_affine(blocks, _fields(blocks["low"], 32, 4))


def _q5_k(blocks: Blocks) -> Floats:
    return _k_affine(blocks, _fields(blocks["low"], 32, 4) + 16 * _fields(blocks["high"], 32, 1))


def _q6_k(blocks: Blocks) -> Floats:
    whole = _fields(blocks["low"], 64, 4) + 16 * _fields(blocks["high"], 32, 2) - 32
    steps = _f32(blocks, "scale") * _f32(blocks, "scales")
    return np.repeat(steps, 16, axis=1) * whole


def _plain(name: str, dtype: torch.dtype) -> Layout:
    bits = np.dtype(f"u{dtype.itemsize}")
    return Layout(name, 1, bits, lambda numbers: torch.from_numpy(numbers.copy()).view(dtype))


def _quantised(
    name: str, elements: int, decode: Callable[[Blocks], Floats], *fields: tuple[Any, ...]
) -> Layout:
    def read(blocks: Blocks) -> Tensor:
        found = torch.empty(len(blocks), elements)
        with np.errstate(all="ignore"):  # a damaged scale may be infinite
            for start in range(0, len(blocks), CHUNK):
                part = slice(start, start + CHUNK)
                found[part] = torch.from_numpy(decode(blocks[part]))
        return found.flatten()

    return Layout(name, elements, np.dtype(list(fields)), read)


_SCALE, _LEAST, _SIX = ("scale", "<f2"), ("least", "<f2"), ("six_bits", "u1", 12)
LAYOUTS = {
    0: _plain("float32", torch.float32),
    1: _plain("float16", torch.float16),
    30: _plain("bfloat16", torch.bfloat16),
    2: _quantised("q4_0", 32, _q4_0, _SCALE, ("low", "u1", 16)),
    3: _quantised("q4_1", 32, _q4_1, _SCALE, _LEAST, ("low", "u1", 16)),
    6: _quantised("q5_0", 32, _q5_0, _SCALE, ("high", "u1", 4), ("low", "u1", 16)),
    7: _quantised("q5_1", 32, _q5_1, _SCALE, _LEAST, ("high", "u1", 4), ("low", "u1", 16)),
    8: _quantised("q8_0", 32, _q8_0, _SCALE, ("whole", "i1", 32)),
    12: _quantised("q4_k", 256, _q4_k, _SCALE, _LEAST, _SIX, ("low", "u1", 128)),
    13: _quantised(
        "q5_k", 256, _q5_k, _SCALE, _LEAST, _SIX, ("high", "u1", 32), ("low", "u1", 128)
    ),
    14: _quantised(
        "q6_k", 256, _q6_k, ("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), _SCALE
    ),
}
"""By the number that stands in the file (ggml_type)."""
