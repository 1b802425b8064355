"""MIL ops over neighbouring pixels: convolution, pooling, resizing. x is [N, C, *spatial]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Pads = list[tuple[int, int]]  # before and after each spatial axis, outermost first

_CONV: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)
_CONV_TRANSPOSE: tuple[Callable[..., Tensor], ...] = (
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
)
_AVG_POOL: tuple[Callable[..., Tensor], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_MAX_POOL: tuple[Callable[..., Any], ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_ALIGN_CORNERS = {"STRICT_ALIGN_CORNERS": True, "ALIGN_CORNERS": True, "UNALIGN_CORNERS": False}


def avg_pool(
    x: Tensor,
    *,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
    exclude_padding_from_average: bool = False,
) -> Tensor:
    """Mean over each window; the padding counts as zeros, or not at all."""
    steps = strides or [1] * len(kernel_sizes)
    pads = _pads(pad_type, pad, x.shape[2:], kernel_sizes, steps)
    pool = _AVG_POOL[x.ndim - 3]
    even = _even(pads)
    if even is not None:
        return pool(x, kernel_sizes, steps, even, ceil_mode, not exclude_padding_from_average)
    mean = pool(_padded(x, pads), kernel_sizes, steps)
    if not exclude_padding_from_average:
        return mean
    return mean / pool(_padded(torch.ones_like(x[:1, :1]), pads), kernel_sizes, steps)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolution; weight is [C_out, C_in / groups, *kernel]."""
    steps, spread = strides or [1] * (x.ndim - 2), dilations or [1] * (x.ndim - 2)
    reach = [(size - 1) * gap + 1 for size, gap in zip(weight.shape[2:], spread, strict=True)]
    pads = _pads(pad_type, pad, x.shape[2:], reach, steps)
    even = _even(pads)
    if even is None:
        x, even = _padded(x, pads), [0] * len(pads)
    return _CONV[x.ndim - 3](x, weight, bias, steps, even, spread, groups)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pad: list[int] | None = None,
    output_shape: list[int] | None = None,
    pad_type: str = "valid",
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Transposed convolution, weight [C_in, C_out / groups, *kernel], cut to the padded size."""
    steps, spread = strides or [1] * (x.ndim - 2), dilations or [1] * (x.ndim - 2)
    full = _CONV_TRANSPOSE[x.ndim - 3](x, weight, None, steps, 0, 0, groups, spread)
    same = [size * step for size, step in zip(x.shape[2:], steps, strict=True)]
    cuts = _cuts(pad_type, pad, full.shape[2:], same)
    if output_shape is not None:  # the end of each axis is whatever the declared size leaves
        sizes = zip(cuts, full.shape[2:], output_shape[2:], strict=True)
        cuts = [(before, size - before - wanted) for (before, _), size, wanted in sizes]
    y = _padded(full, [(-before, -after) for before, after in cuts])
    return y if bias is None else y + bias.reshape(-1, *[1] * (x.ndim - 2))


def max_pool(
    x: Tensor,
    *,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Largest value of each window; the padding never wins."""
    steps = strides or [1] * len(kernel_sizes)
    pads = _pads(pad_type, pad, x.shape[2:], kernel_sizes, steps)
    even = _even(pads)
    if even is None:
        x, even = _padded(x, pads, -math.inf), [0] * len(pads)
    y: Tensor = _MAX_POOL[x.ndim - 3](x, kernel_sizes, steps, even, ceil_mode=ceil_mode)
    return y


def resize_bilinear(
    x: Tensor,
    *,
    target_size_height: int = 1,
    target_size_width: int = 1,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Bilinear resize of the last two axes, in the sampling modes that torch has."""
    return _bilinear(x, (target_size_height, target_size_width), _ALIGN_CORNERS[sampling_mode])


def upsample_bilinear(
    x: Tensor,
    *,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Bilinear upsampling by factors; the grid is either corner to corner or half-pixel."""
    if half_pixel_centers is not None and half_pixel_centers == align_corners:
        raise ValueError(f"align_corners and half_pixel_centers are both {align_corners}")
    return _bilinear(x, _scaled(x, scale_factor_height, scale_factor_width), align_corners)


def _bilinear(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    y = F.interpolate(_rank_4(x), size, mode="bilinear", align_corners=align_corners)
    return y.reshape(*x.shape[:-2], *size)


def _scaled(x: Tensor, height: float, width: float) -> tuple[int, int]:
    return math.floor(x.shape[-2] * height), math.floor(x.shape[-1] * width)


def _rank_4(x: Tensor) -> Tensor:
    return x if x.ndim == 4 else x.reshape(1, -1, *x.shape[-2:])


def _pads(
    pad_type: str,
    pad: Sequence[int] | None,
    sizes: Sequence[int],
    reach: Sequence[int],
    steps: Sequence[int],
) -> Pads:
    """The padding of each spatial axis; `reach` is the kernel's size, dilation included."""
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        return _pairs(pad, len(sizes))
    totals = [
        max(0, (math.ceil(size / step) - 1) * step + kernel - size)
        for size, kernel, step in zip(sizes, reach, steps, strict=True)
    ]
    return [_halves(total, pad_type) for total in totals]


def _cuts(
    pad_type: str, pad: Sequence[int] | None, full: Sequence[int], same: Sequence[int]
) -> Pads:
    """What a transposed convolution's full result loses at each end of its axes."""
    if pad_type in ("valid", "custom"):
        return _pads(pad_type, pad, full, full, full)
    return [_halves(size - kept, pad_type) for size, kept in zip(full, same, strict=True)]


def _pairs(pad: Sequence[int] | None, axes: int) -> Pads:
    if pad is None or len(pad) != 2 * axes:
        raise ValueError(f"pad_type custom with pad {pad} for {axes} spatial axes")
    return [(pad[2 * axis], pad[2 * axis + 1]) for axis in range(axes)]


def _halves(total: int, pad_type: str) -> tuple[int, int]:
    small, large = total // 2, total - total // 2
    return {"same": (small, large), "same_lower": (large, small)}[pad_type]


def _even(pads: Pads) -> list[int] | None:
    """The padding in torch's form; None where an axis has more on one side than the other."""
    return [before for before, _ in pads] if all(a == b for a, b in pads) else None


def _padded(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """x with the padding added; a negative one cuts."""
    return F.pad(x, [size for pair in reversed(pads) for size in pair], value=value)
