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


def is_palettized(scheme: Scheme, shape: tuple[int, ...], axis: int) -> bool:
    """Whether a weight of `shape` with its output channels on `axis` gets palettes.

    Not when it is a vector, small, has channels left over after grouping, or would not shrink.
    """
    values, groups = math.prod(shape), palette_groups(scheme, shape, axis)
    if len(shape) < 2 or values < MIN_PALETTE_VALUES or groups == 0:
        return False
    entries = 2 * groups * 2**scheme.bits
    return entries + math.ceil(values * scheme.bits / 8) + PALETTE_RECORD_BYTES < 2 * values


def palette_groups(scheme: Scheme, shape: tuple[int, ...], axis: int) -> int:
    """How many palettes the weight has; 0 where groups do not fill the axis."""
    if scheme.group == 0:
        return 1
    whole, rest = divmod(shape[axis], scheme.group)
    return 0 if rest else whole
