"""The weights of a package: stored one by one as a scheme says, and handed out as constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from nanoflux_export.compression import palettes
from nanoflux_export.compression.rounding import half, output_axes
from nanoflux_export.compression.selection import is_palettized, palette_groups
from nanoflux_export.targets.coreml.blob import BlobWriter
from nanoflux_export.targets.coreml.protos import constant, in_file, mangled, palettized
from nanoflux_export.targets.coreml.template import float_tensors
from nanoflux_mobile.errors import NanofluxError
from nanoflux_mobile.spec import Scheme
from nanoflux_mobile.weights import check_finite

_FEWEST_IN_FILE = 10
"""coremltools spells out constants of fewer values in the program; so do we."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """A stored weight; `op` makes the constant of it, under a name, in a shape.

    The values of one with palettes keep their axes, as its groups lie along one of them.
    """

    label: str
    shape: Shape
    palettes: bool
    op: Callable[[str, Shape], Any]

    def constant(self, shape: Shape) -> Any:
        """The op that defines the weight in a program that wants it in `shape`."""
        alike = math.prod(shape) == math.prod(self.shape) and not self.palettes
        if shape != self.shape and not alike:
            raise NanofluxError(f"{self.label} is {self.shape} but is used as {shape}")
        return self.op(mangled(self.label), shape)


@dataclass
class Shelf:
    """Every weight stored so far, by the name of its values and its parameter."""

    blob: BlobWriter
    scheme: Scheme
    items: dict[tuple[str, str], Item] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def lacks(self, weights: str, parameters: Set[str]) -> bool:
        """Whether any of a segment's parameters is not stored yet."""
        return any((weights, parameter) not in self.items for parameter in parameters)

    def put(self, weights: str, module: nn.Module) -> None:
        """Store every floating parameter and buffer of a segment's module that is not yet here.

        Raises:
            InputError: one that holds NaN, or what half precision cannot; a buffer may hold
                infinities, as masks do.
        """
        axes = output_axes(module)
        for name, tensor in float_tensors(module):
            if (weights, name) not in self.items:
                label = self._label(f"{weights}/{name}")
                item = self._stored(label, _half(label, tensor), axes.get(id(tensor)))
                self.items[weights, name] = item

    def _label(self, label: str) -> str:
        other = self.labels.setdefault(mangled(label), label)
        if other != label:
            raise NanofluxError(f"{label} and {other} have one name in a program; rename one")
        return label

    def _stored(self, label: str, values: np.ndarray, axis: int | None) -> Item:
        if (
            axis is not None
            and self.scheme.kind == "palette"
            and is_palettized(self.scheme, values.shape, axis)
        ):
            return Item(label, values.shape, True, self._palettes(values, axis))
        if values.size < _FEWEST_IN_FILE:
            return Item(label, values.shape, False, partial(_spelled_out, values))
        return Item(label, values.shape, False, partial(_dense, self.blob.add(values, "fp16")))

    def _palettes(self, values: np.ndarray, axis: int) -> Callable[[str, Shape], Any]:
        bits, groups = self.scheme.bits, palette_groups(self.scheme, values.shape, axis)
        luts, codes = palettes.palette_groups(values, bits, groups, axis)
        along = [groups if at == axis else 1 for at in range(values.ndim)]
        indices = in_file(f"uint{bits}", values.shape, self.blob.add(codes, f"uint{bits}"))
        lut = in_file("fp16", (*along, 1 << bits, 1), self.blob.add(luts, "fp16"))
        return lambda name, shape: palettized(name, indices, lut, shape)


def _half(label: str, tensor: Tensor) -> np.ndarray:
    own = isinstance(tensor, nn.Parameter)
    check_finite(label, tensor if own else tensor[~tensor.isinf()])
    nearest: np.ndarray = half(label, tensor.detach()).half().contiguous().numpy()
    return nearest


def _dense(offset: int, name: str, shape: Shape) -> Any:
    return constant(name, in_file("fp16", shape, offset))


def _spelled_out(values: np.ndarray, name: str, shape: Shape) -> Any:
    value = in_file("fp16", shape, 0)
    value.immediateValue.tensor.bytes.values = values.tobytes()
    return constant(name, value)
