"""MIL ops that only move, repeat or pick values: nothing here rounds.

A parameter before the `*` is a tensor; one after it arrives as a Python number, list or string.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def band_part(x: Tensor, *, lower: int = -1, upper: int = -1) -> Tensor:
    """Zeros outside the diagonals from -lower to upper; a negative bound keeps that side whole."""
    x = x.triu(-lower) if lower >= 0 else x
    return x.tril(upper) if upper >= 0 else x


def concat(*values: Tensor, axis: int, interleave: bool = False) -> Tensor:
    """Tensors end to end along `axis`, or element by element in turn when interleaved."""
    if not interleave:
        return torch.cat(values, axis)
    axis %= values[0].ndim
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def expand_dims(x: Tensor, *, axes: list[int]) -> Tensor:
    """New axes of size 1 at the positions `axes` of the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def gather(
    x: Tensor,
    indices: Tensor,
    *,
    axis: int = 0,
    batch_dims: int = 0,
    validate_indices: bool = False,
) -> Tensor:
    """Slices of x along `axis`; negative indices are refused, as iOS17 leaves them undefined."""
    axis %= x.ndim
    if batch_dims:
        rows = zip(x, indices, strict=True)
        return torch.stack(
            [gather(one, at, axis=axis - 1, batch_dims=batch_dims - 1) for one, at in rows]
        )
    picked = x.index_select(axis, indices.flatten().to(torch.int64))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_along_axis(
    x: Tensor, indices: Tensor, *, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    """One value of x along `axis` for each index, as numpy.take_along_axis."""
    return x.gather(axis, indices.to(torch.int64))


def gather_nd(
    x: Tensor, indices: Tensor, *, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """x at the positions that the last axis of `indices` spells; negative ones are refused."""
    if batch_dims:
        rows = zip(x, indices, strict=True)
        return torch.stack([gather_nd(one, at, batch_dims=batch_dims - 1) for one, at in rows])
    if bool((indices < 0).any()):
        raise IndexError("negative index")
    return x[indices.to(torch.int64).unbind(-1)]


def identity(x: Tensor) -> Tensor:
    """The same values."""
    return x


def pad(x: Tensor, *, pad: list[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Values before and after the last axes: `pad` is [before, after] for each, outermost first."""
    pairs = [pad[start : start + 2] for start in range(0, len(pad), 2)]
    while len(pairs) > 1 and pairs[0] == [0, 0]:
        pairs.pop(0)  # torch reflects and replicates only as many axes as it is told
    inner_first = [size for pair in reversed(pairs) for size in pair]
    if mode == "constant":
        return F.pad(x, inner_first, value=constant_val)
    return F.pad(x, inner_first, mode=mode)


def pixel_shuffle(x: Tensor, *, upscale_factor: int) -> Tensor:
    """[N, C f f, H, W] to [N, C, H f, W f]."""
    return F.pixel_shuffle(x, upscale_factor)


def pixel_unshuffle(x: Tensor, *, downscale_factor: int) -> Tensor:
    """[N, C, H f, W f] to [N, C f f, H, W]."""
    return F.pixel_unshuffle(x, downscale_factor)


def reshape(x: Tensor, *, shape: list[int]) -> Tensor:
    """Another shape; 0 keeps the size at that place, -1 is what remains."""
    sizes = [size or x.shape[at] for at, size in enumerate(shape)] if 0 in shape else shape
    return x.reshape(sizes)


def resize_nearest_neighbor(
    x: Tensor, *, target_size_height: int, target_size_width: int
) -> Tensor:
    """The last two axes at another size, each pixel taken from the nearest one before it."""
    size = (target_size_height, target_size_width)
    rank_4 = x if x.ndim == 4 else x.reshape(1, -1, *x.shape[-2:])
    return F.interpolate(rank_4, size, mode="nearest").reshape(*x.shape[:-2], *size)


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a` where the condition holds, else `b`."""
    return torch.where(cond.to(torch.bool), a, b)


def slice_by_index(
    x: Tensor,
    *,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """x[begin:end:stride] per axis; masks drop a bound, or turn the slice into one index."""
    none = [False] * x.ndim
    begins, ends, squeezed = begin_mask or none, end_mask or none, squeeze_mask or none
    strides = stride or [1] * x.ndim
    reversed_axes: list[int] = []
    for axis in reversed(range(x.ndim)):
        if squeezed[axis]:
            x = x.select(axis, 0 if begins[axis] else begin[axis])
            reversed_axes = [later - 1 for later in reversed_axes]
            continue
        wanted = slice(
            None if begins[axis] else begin[axis], None if ends[axis] else end[axis], strides[axis]
        )
        picked = range(x.shape[axis])[wanted]
        if picked.step < 0:
            picked = picked[::-1]
            reversed_axes.append(axis)
        x = x[(slice(None),) * axis + (slice(picked.start, picked.stop, picked.step),)]
    return x.flip(reversed_axes) if reversed_axes else x


def slice_by_size(x: Tensor, *, begin: list[int], size: list[int]) -> Tensor:
    """`size` elements from `begin` on, per axis; -1 takes all that remain."""
    for axis, (start, length) in enumerate(zip(begin, size, strict=True)):
        start += x.shape[axis] if start < 0 else 0
        x = x.narrow(axis, start, x.shape[axis] - start if length == -1 else length)
    return x


def split(
    x: Tensor, *, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None
) -> tuple[Tensor, ...]:
    """Consecutive parts along `axis`, of the given sizes or of equal ones."""
    if split_sizes is None:
        if not num_splits or x.shape[axis] % num_splits:
            raise ValueError(f"axis of {x.shape[axis]} in {num_splits} equal parts")
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return tuple(x.split_with_sizes(split_sizes, axis))


def squeeze(x: Tensor, *, axes: list[int] | None = None) -> Tensor:
    """The axes of size 1 dropped: those named, or all."""
    return x.squeeze() if axes is None else x.squeeze(axes)


def stack(*values: Tensor, axis: int) -> Tensor:
    """Tensors side by side along a new axis."""
    return torch.stack(values, axis)


def tile(x: Tensor, *, reps: list[int]) -> Tensor:
    """The tensor repeated `reps[i]` times along axis i."""
    return x.repeat(reps)


def transpose(x: Tensor, *, perm: list[int]) -> Tensor:
    """Axes in another order."""
    return x.permute(perm)


def upsample_nearest_neighbor(
    x: Tensor, *, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Tensor:
    """The last two axes enlarged by factors, each pixel repeated."""
    height, width = x.shape[-2:]
    return resize_nearest_neighbor(
        x,
        target_size_height=math.floor(height * scale_factor_height),
        target_size_width=math.floor(width * scale_factor_width),
    )
