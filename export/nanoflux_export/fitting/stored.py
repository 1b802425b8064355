"""Layers as files store them, one at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nanoflux_export.compression.plan import Plan
from nanoflux_export.compression.rounding import rounded
from nanoflux_export.compression.selection import is_coded, stored_sizes
from nanoflux_export.graph import Segment
from nanoflux_export.layers import Layer, compressible
from nanoflux_mobile.spec import Scheme


@dataclass(frozen=True)
class Stored:
    """A weight as a file decodes it, float32, and the bytes it takes there."""

    values: NDArray[np.float32]
    bytes: int


Store = Callable[[Layer, NDArray[np.float32], Scheme], Stored]
"""How a target stores the float32 weight of a layer."""

_LONE: Mapping[int, Callable[[], nn.Module]] = {
    0: lambda: nn.Linear(1, 1, bias=False),
    1: lambda: nn.ConvTranspose2d(1, 1, 1, bias=False),
}
"""By the axis of output channels, a layer to hold a weight of any shape."""


def storing(importance: Mapping[str, NDArray[np.float64]], *, half_constants: bool) -> Store:
    """How files store layers: the values of their eager twin, and the bytes of the arrays."""

    def store(layer: Layer, values: NDArray[np.float32], scheme: Scheme) -> Stored:
        lone = _LONE[layer.axis]()
        lone.weight = nn.Parameter(torch.from_numpy(values), requires_grad=False)
        weighs = {"/weight": importance[layer.name]} if layer.name in importance else {}
        twin = rounded(lone, Plan(scheme, importance=weighs), half_constants=half_constants)
        dense = not is_coded(scheme, layer.shape, layer.axis)
        size = 2 * values.size if dense else sum(stored_sizes(scheme, layer.shape, layer.axis))
        return Stored(twin.get_parameter("weight").numpy(), size)

    return store


def built(segment: Segment, schemes: Mapping[str, Scheme], store: Store) -> nn.Module:
    """A segment's module with the layers stored that `schemes` names; nobody else holds it."""
    module = copy.deepcopy(segment.build()).eval().requires_grad_(False)
    for layer, part in compressible(segment, module):
        if layer.name in schemes:
            weight = part.get_parameter("weight")
            stored = store(layer, weight.numpy(), schemes[layer.name])
            weight.data = torch.from_numpy(stored.values)
    return module
