"""How a parameter of a module lies in a file: its layout, its type, and its values there.

Values follow the rules of ai-edge-quantizer (see `quantise`), applied here one weight at a time; a
template proves for every weight that the quantiser stores the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nanoflux_export.compression.rounding import half

_LEAST_BOUND = 1e-9
_LEAST_BLOCK_SCALE = 2.0**-24
"""Of half precision; the quantiser would store zero, which kernels refuse."""
_PIECE_VALUES = 1 << 18
"""Rows are rounded in pieces that stay in a processor's cache."""
_HIGHEST = {"INT8": 127, "INT4": 7}
_LOWEST = {"INT8": -127, "INT4": -8}

BITS = {"FLOAT32": 32, "FLOAT16": 16, "INT32": 32, "INT8": 8, "INT4": 4}
"""Types that parameters are stored as, by their names in the schema; biases alone in INT32."""
_DTYPES = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT32": np.int32, "INT8": np.int8}


@dataclass(frozen=True)
class Layout:
    """Where a parameter's values lie: its own shape, and the order its axes have in the file."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def arranged(self, values: Tensor) -> Tensor:
        """A parameter's values in the order of the file."""
        return values.permute(self.axes)

    def restored(self, values: np.ndarray) -> np.ndarray:
        """A file's values, in any shape, as the parameter has them."""
        arranged = values.reshape([self.shape[axis] for axis in self.axes])
        return arranged.transpose(np.argsort(self.axes))


@dataclass(frozen=True)
class Form:
    """How a parameter is stored, or the scales of its blocks, which are a tensor of their own.

    `shape` and `dtype` are the stored tensor's, the type as the schema calls it. Integers have
    `scales` many scales, one, or one for each entry of `axis`; or, where `block` is not 0, one in
    half precision for every so many values along the last axis.
    """

    parameter: str
    layout: Layout
    shape: tuple[int, ...]
    dtype: str
    axis: int = 0
    scales: int = 0
    block: int = 0
    part: Literal["values", "scales"] = "values"

    @property
    def bytes(self) -> int:
        """Bytes of the stored tensor, without scales that lie elsewhere."""
        return (math.prod(self.shape) * BITS[self.dtype] + 7) // 8


@dataclass(frozen=True)
class Encoded:
    """A tensor as stored: its values, two to a byte where they have 4 bits, low half first, and
    float32 scales where it has any.
    """

    values: np.ndarray
    scales: np.ndarray


_NO_SCALES = np.zeros(0, np.float32)


def encode(form: Form, parameter: Tensor) -> Encoded:
    """The values of a float32 parameter as a file stores them.

    Raises:
        InputError: a value beyond the range of half precision, where that is the form.
    """
    values = form.layout.arranged(parameter.detach())
    if form.block:
        return _in_blocks(values, form)
    values = values.reshape(form.shape)
    if form.dtype in _HIGHEST:
        return _on_grid(values, form)
    if form.dtype == "FLOAT16":
        values = _halved(form.parameter, values)
    return Encoded(np.ascontiguousarray(values.numpy()), _NO_SCALES)


def decode(form: Form, stored: Encoded) -> np.ndarray:
    """The float32 values that a runtime takes from what is stored, as the parameter has them."""
    values = as_stored(form, stored.values).astype(np.float32)
    if form.block:
        blocks = values.reshape(-1, form.block) * stored.scales.reshape(-1, 1)
        return form.layout.restored(blocks)
    if form.scales:
        spread = [1] * values.ndim
        spread[form.axis] = -1
        values *= stored.scales.reshape(spread if form.scales > 1 else ())
    return form.layout.restored(values)


def as_stored(form: Form, values: np.ndarray) -> np.ndarray:
    """The bytes of a tensor as its numbers, in its shape; 4-bit integers one to a byte."""
    if form.dtype != "INT4":
        return values.view(_DTYPES[form.dtype]).reshape(form.shape)
    halves = values.view(np.int8).reshape(-1)
    pairs = np.stack((halves << 4 >> 4, halves >> 4), 1).reshape(-1)
    return pairs[: math.prod(form.shape)].reshape(form.shape)


def _halved(name: str, values: Tensor) -> Tensor:
    halves = values.half()
    if bool(halves.isinf().any()):
        half(name, values)  # refuses what was finite before
    return halves


def _on_grid(values: Tensor, form: Form) -> Encoded:
    """Symmetric steps, the largest value of a channel being the last; ties to even."""
    turned = values.movedim(form.axis, 0)
    rows = turned.reshape(form.scales, -1)
    steps, scales = torch.empty(rows.shape, dtype=torch.int8), torch.empty(form.scales, 1)
    for part in _pieces(rows):
        bounds = rows[part].abs().amax(1, keepdim=True).clamp_(min=_LEAST_BOUND)
        torch.div(bounds, _HIGHEST[form.dtype], out=scales[part])
        steps[part] = _steps(rows[part], scales[part], form)
    back = steps.reshape(turned.shape).movedim(0, form.axis)
    return Encoded(_packed(np.ascontiguousarray(back.numpy()), form), scales.flatten().numpy())


def _in_blocks(values: Tensor, form: Form) -> Encoded:
    """The same with scales of few bits: an exponent, and as many digits as bfloat16 has."""
    rows = values.reshape(-1, form.block)
    bounds = rows.abs().amax(1, keepdim=True).clamp_(min=_LEAST_BOUND)
    scales = (bounds / _HIGHEST["INT4"]).bfloat16().float()
    scales = half(f"a scale of {form.parameter}", scales).clamp_(min=_LEAST_BLOCK_SCALE)
    if form.part == "scales":
        return Encoded(scales.half().reshape(form.shape).numpy(), _NO_SCALES)
    steps = torch.empty(rows.shape, dtype=torch.int8)
    for part in _pieces(rows):
        steps[part] = _steps(rows[part], scales[part], form)
    return Encoded(_packed(steps.numpy(), form), _NO_SCALES)


def _steps(rows: Tensor, scales: Tensor, form: Form) -> Tensor:
    return (rows / scales).round_().clamp_(_LOWEST[form.dtype], _HIGHEST[form.dtype])


def _pieces(rows: Tensor) -> list[slice]:
    length = max(1, _PIECE_VALUES // rows.shape[1])
    return [slice(start, start + length) for start in range(0, len(rows), length)]


def _packed(steps: np.ndarray, form: Form) -> np.ndarray:
    """Integers as stored: those of 4 bits two to a byte, the first in the low half."""
    if form.dtype != "INT4":
        return steps
    flat = steps.reshape(-1).view(np.uint8)
    packed = flat[0::2] & 15
    packed[: flat.size // 2] |= flat[1::2] << 4
    return packed
