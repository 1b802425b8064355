"""MIL ops between floats and 8-bit integers; a scale is one number, or one for each of an axis."""

from __future__ import annotations

import torch
from torch import Tensor

from nanoflux_export.targets.coreml.mil_ops.elementwise import TORCH_TYPES


def quantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    output_dtype: str,
    axis: int | None = None,
) -> Tensor:
    """round(input / scale) + zero_point, clamped to int8 or uint8; halves round to even."""
    steps = (input / _along(scale, input, axis)).round()
    if zero_point is not None:
        steps = steps + _along(zero_point, input, axis)
    limits = torch.iinfo(TORCH_TYPES[output_dtype])
    return steps.clamp(limits.min, limits.max).to(TORCH_TYPES[output_dtype])


def dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int | None = None
) -> Tensor:
    """scale * (input - zero_point)."""
    steps = input.to(scale.dtype)
    if zero_point is not None:
        steps = steps - _along(zero_point, input, axis)
    return steps * _along(scale, input, axis)


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """One value as it is, several as wide as x along an axis."""
    if axis is None or not values.ndim:
        return values
    sizes = [1] * x.ndim
    sizes[axis] = -1
    return values.reshape(sizes)
