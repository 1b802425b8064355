"""Compressed weights made dense again: palettes, integer blocks, sparse masks.

Each public function is the MIL op of that name, on numpy arrays; its arguments are the op's. The
iOS16 forms store packed bytes and a `shape`; the iOS18 forms store sub-byte tensors. One that keeps
a mask makes two arrays, the mask of the values that are left and those values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from nanoflux_export.targets.coreml.weights import Array, unpack_bits


def constexpr_affine_dequantize(
    *, quantized_data: Array, zero_point: Array, scale: Array, axis: Array
) -> Array:
    """scale * (data - zero_point); vectors of scales run along `axis`."""
    along = [1] * quantized_data.ndim
    along[int(axis)] = -1
    scale, zero_point = (
        part.astype(np.float32).reshape(along if part.ndim else ()) for part in (scale, zero_point)
    )
    return (quantized_data.astype(np.float32) - zero_point) * scale


def constexpr_blockwise_shift_scale(
    *, data: Array, scale: Array, offset: Array | None = None
) -> Array:
    """scale * (data - offset), where each scale covers one equal block along every axis."""
    blocks = data.astype(np.float32).reshape(_grid(data.shape, scale.shape))
    if offset is not None:
        blocks -= _per_block(offset.astype(np.float32))
    blocks *= _per_block(scale.astype(np.float32))
    return blocks.reshape(data.shape)


def constexpr_cast(*, source_val: Array, output_dtype: str) -> Array:
    """The values in another float type; MIL only knows fp16 to fp32."""
    if output_dtype != "fp32":
        raise ValueError(f"constexpr_cast to {output_dtype}")
    return source_val.astype(np.float32)


def constexpr_lut_to_dense(
    *,
    indices: Array,
    lut: Array,
    shape: Array | None = None,
    vector_axis: Array | None = None,
) -> Array:
    """Indices replaced by their palette entries.

    iOS18: `lut` is [*groups, entries, vector]: each axis of `indices` is cut into that many equal
    groups with a palette each; vectors are laid out along `vector_axis`.
    """
    if shape is not None:
        dense = tuple(int(size) for size in shape)
        plain = unpack_bits(indices, int(lut.size).bit_length() - 1, math.prod(dense))
        return lut[plain].reshape(dense)
    *groups, entries, width = lut.shape
    first_entry = np.arange(math.prod(groups), dtype=np.intp).reshape(groups) * entries
    where = indices.reshape(_grid(indices.shape, tuple(groups))) + _per_block(first_entry)
    values: Array = lut.reshape(-1, width)[where.reshape(indices.shape)]
    if vector_axis is None:
        return values.reshape(indices.shape)
    axis = int(vector_axis) % indices.ndim
    wide = [size * width if at == axis else size for at, size in enumerate(indices.shape)]
    return np.moveaxis(values, -1, axis + 1).reshape(wide)


def constexpr_lut_to_sparse(
    *,
    indices_mask: Array,
    indices_nonzero_data: Array,
    lut: Array,
    vector_axis: Array | None = None,
) -> tuple[Array, Array]:
    """`constexpr_lut_to_dense` of the indices under a mask; a one stands for a whole vector."""
    indices = constexpr_sparse_to_dense(nonzero_data=indices_nonzero_data, mask=indices_mask)
    values = constexpr_lut_to_dense(indices=indices, lut=lut, vector_axis=vector_axis)
    mask = indices_mask
    if vector_axis is not None:
        mask = mask.repeat(lut.shape[-1], int(vector_axis))
    return mask, values[mask.astype(bool)]


def constexpr_sparse_blockwise_shift_scale(
    *, data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    """`constexpr_blockwise_shift_scale` of the data under a mask."""
    data = constexpr_sparse_to_dense(nonzero_data=nonzero_data, mask=data_mask)
    values = constexpr_blockwise_shift_scale(data=data, scale=scale, offset=offset)
    return data_mask, values[data_mask.astype(bool)]


def constexpr_sparse_to_dense(
    *, nonzero_data: Array, mask: Array, shape: Array | None = None
) -> Array:
    """The stored values where the mask has a one, zero elsewhere."""
    if shape is not None:
        dense = tuple(int(size) for size in shape)
        mask = unpack_bits(mask, 1, math.prod(dense)).reshape(dense)
    values = np.zeros(mask.shape, nonzero_data.dtype)
    values[mask.astype(bool)] = nonzero_data
    return values


DECODERS: dict[str, Callable[..., Array | tuple[Array, ...]]] = {
    function.__name__: function
    for function in (
        constexpr_affine_dequantize,
        constexpr_blockwise_shift_scale,
        constexpr_cast,
        constexpr_lut_to_dense,
        constexpr_lut_to_sparse,
        constexpr_sparse_blockwise_shift_scale,
        constexpr_sparse_to_dense,
    )
}


def _grid(shape: tuple[int, ...], groups: tuple[int, ...]) -> list[int]:
    """Shape [a, b] in groups [g, h] as [g, a/g, h, b/h]."""
    if len(shape) != len(groups) or any(
        size % count for size, count in zip(shape, groups, strict=True)
    ):
        raise ValueError(f"a tensor of {shape} does not divide into groups of {groups}")
    return [
        part for size, count in zip(shape, groups, strict=True) for part in (count, size // count)
    ]


def _per_block(values: Array) -> Array:
    """One value a group, [g, h], as [g, 1, h, 1] so that it meets the blocks of `_grid`."""
    return values.reshape([part for count in values.shape for part in (count, 1)])
