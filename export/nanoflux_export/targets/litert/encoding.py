"""How a parameter of a module lies in a file: its layout, its type, and its values there.

Values follow the rule of ai-edge-quantizer (see `quantise`), applied here one weight at a time; a
template proves for every weight that the quantiser stores the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanoflux_export.compression.rounding import half

_INT8_MAX = 127
_LEAST_BOUND = 1e-9
_PIECE_VALUES = 1 << 18
"""Rows are rounded in pieces that stay in a processor's cache."""

DTYPES = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8}
"""Types that weights are stored as, by their names in the schema."""


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
    """How a parameter is stored.

    `shape` and `dtype` are the stored tensor's, the type as the schema calls it. int8 weights have
    `scales` many scales, one, or one for each entry of `axis`.
    """

    parameter: str
    layout: Layout
    shape: tuple[int, ...]
    dtype: str
    axis: int = 0
    scales: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of the stored values, without scales."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


@dataclass(frozen=True)
class Encoded:
    """A weight as stored: its values, and its float32 scales where it has any."""

    values: np.ndarray
    scales: np.ndarray


def encode(form: Form, parameter: Tensor) -> Encoded:
    """The values of a float32 parameter as a file stores them.

    Raises:
        InputError: a value beyond the range of half precision, where that is the form.
    """
    values = form.layout.arranged(parameter.detach()).reshape(form.shape)
    if form.dtype == "INT8":
        return _on_grid(values, form)
    if form.dtype == "FLOAT16":
        values = _halved(form.parameter, values)
    return Encoded(np.ascontiguousarray(values.numpy()), np.zeros(0, np.float32))


def decode(form: Form, stored: Encoded) -> np.ndarray:
    """The float32 values that a runtime takes from what is stored, as the parameter has them."""
    values = stored.values.astype(np.float32).reshape(form.shape)
    if form.scales:
        spread = [1] * values.ndim
        spread[form.axis] = -1
        values *= stored.scales.reshape(spread if form.scales > 1 else ())
    return form.layout.restored(values)


def _halved(name: str, values: Tensor) -> Tensor:
    halves = values.half()
    if bool(halves.isinf().any()):
        half(name, values)  # refuses what was finite before
    return halves


def _on_grid(values: Tensor, form: Form) -> Encoded:
    """Symmetric steps of a 127th of the largest value of a channel, ties to even."""
    turned = values.movedim(form.axis, 0)
    rows = turned.reshape(form.scales, -1)
    steps, scales = torch.empty(rows.shape, dtype=torch.int8), torch.empty(form.scales, 1)
    piece = max(1, _PIECE_VALUES // rows.shape[1])
    for start in range(0, form.scales, piece):
        part = slice(start, start + piece)
        bounds = rows[part].abs().amax(1, keepdim=True).clamp_(min=_LEAST_BOUND)
        torch.div(bounds, _INT8_MAX, out=scales[part])
        steps[part] = (rows[part] / scales[part]).round_().clamp_(-_INT8_MAX, _INT8_MAX)
    back = steps.reshape(turned.shape).movedim(0, form.axis)
    return Encoded(np.ascontiguousarray(back.numpy()), scales.flatten().numpy())
