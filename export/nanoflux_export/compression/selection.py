"""Which weights a scheme compresses: asked by the writer of a file and by its eager twin alike."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Scheme

PALETTE_BITS = (1, 2, 3, 4, 6, 8)
"""Index widths that Core ML has a type for."""

MIN_PALETTE_VALUES = 1024
"""Smaller tensors stay dense: they take under 2 KiB each, so there is nothing to save."""

PALETTE_RECORD_BYTES = 128
"""What a palette adds to a file beside its values: one more 64-byte record, one more alignment."""

OUTPUT_AXES: Mapping[type[nn.Module], int] = {
    nn.Linear: 0,
    nn.Embedding: 0,
    nn.Conv1d: 0,
    nn.Conv2d: 0,
    nn.Conv3d: 0,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 1,
    nn.ConvTranspose3d: 1,
}
"""The layers whose `weight` is compressed, and the axis of it that counts output channels."""


def check_palette(scheme: Scheme) -> None:
    """Raise InputError unless Core ML can store palettes of this many bits."""
    if scheme.bits not in PALETTE_BITS:
        known = ", ".join(map(str, PALETTE_BITS))
        raise InputError(f"{scheme} is not storable; palettes have {known} bits: choose one")


def is_coded(scheme: Scheme, shape: tuple[int, ...], axis: int) -> bool:
    """Whether a weight of `shape` with its output channels on `axis` is stored as the scheme says.

    Not when it is a vector, small, has channels left over after grouping, or would not shrink.
    """
    values = math.prod(shape)
    if len(shape) < 2 or values < MIN_PALETTE_VALUES:
        return False
    sizes = stored_sizes(scheme, shape, axis)
    return bool(sizes) and sum(sizes) + PALETTE_RECORD_BYTES * (len(sizes) - 1) < 2 * values


def palette_groups(scheme: Scheme, shape: tuple[int, ...], axis: int) -> int:
    """How many palettes the weight has; 0 where groups or vectors do not fill the axis."""
    group = scheme.group or shape[axis]
    return 0 if shape[axis] % group or group % scheme.vector else shape[axis] // group


def input_blocks(scheme: Scheme, shape: tuple[int, ...], axis: int) -> int:
    """How many scales an output channel of integers has; 0 where blocks do not fill the inputs."""
    inputs = shape[0 if axis else 1]
    block = scheme.group or inputs
    return 0 if inputs % block else inputs // block


def left_out(scheme: Scheme, shape: tuple[int, ...]) -> int:
    """How many values become zeros that a mask leaves out: whole vectors, where there are any."""
    return math.prod(shape) // scheme.vector * scheme.sparse // 100 * scheme.vector


def stored_sizes(scheme: Scheme, shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Bytes of each array that a weight becomes, codes first; none where the scheme cannot fit."""
    values, outputs = math.prod(shape), shape[axis]
    codes = (values - left_out(scheme, shape)) // scheme.vector
    mask = (math.ceil(values / 8),) if scheme.sparse else ()
    if scheme.kind == "fp16":
        return (2 * codes, *mask)
    small = math.ceil(codes * scheme.bits / 8), *mask
    if scheme.kind == "int":
        scales = 2 * outputs * input_blocks(scheme, shape, axis)
        return (*small, scales) if scales else ()
    groups = palette_groups(scheme, shape, axis)
    if not groups:
        return ()
    entries = groups * 2**scheme.bits * scheme.vector
    luts = (entries, 2 * groups) if scheme.int8_lut else (2 * entries,)
    return (*small, *luts, *((2 * outputs,) * scheme.scaled))
