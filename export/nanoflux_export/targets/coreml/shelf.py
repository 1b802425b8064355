"""The weights of a package: stored one by one as a plan says, and handed out as constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from nanoflux_export.compression.coding import code
from nanoflux_export.compression.plan import Plan
from nanoflux_export.compression.rounding import half, output_axes
from nanoflux_export.targets.coreml.blob import BlobWriter
from nanoflux_export.targets.coreml.protos import constant, in_file, mangled
from nanoflux_export.targets.coreml.stored_weight import operations
from nanoflux_export.targets.coreml.template import float_tensors
from nanoflux_mobile.errors import NanofluxError
from nanoflux_mobile.weights import check_finite

_FEWEST_IN_FILE = 10
"""coremltools spells out constants of fewer values in the program; so do we."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """A stored weight; `ops` make the constant of it in a shape, the last of them under its name.

    The values of a coded one keep their axes, as its palettes and scales lie along them.
    """

    label: str
    shape: Shape
    coded: bool
    ops: Callable[[Shape], tuple[Any, ...]]

    def constants(self, shape: Shape) -> tuple[Any, ...]:
        """The ops that define the weight in a program that wants it in `shape`."""
        alike = math.prod(shape) == math.prod(self.shape) and not self.coded
        if shape != self.shape and not alike:
            raise NanofluxError(f"{self.label} is {self.shape} but is used as {shape}")
        return self.ops(shape)


@dataclass
class Shelf:
    """Every weight stored so far, by the name of its values and its parameter."""

    blob: BlobWriter
    plan: Plan
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
                self.items[weights, name] = self._stored(label, tensor, axes.get(id(tensor)))

    def _label(self, label: str) -> str:
        other = self.labels.setdefault(mangled(label), label)
        if other != label:
            raise NanofluxError(f"{label} and {other} have one name in a program; rename one")
        return label

    def _stored(self, label: str, tensor: Tensor, axis: int | None) -> Item:
        halves, name, shape = _half(label, tensor), mangled(label), tuple(tensor.shape)
        if axis is not None and (ops := self._coded(label, tensor, axis)):
            return Item(label, shape, True, lambda shape: ops)
        if halves.size < _FEWEST_IN_FILE:
            return Item(label, shape, False, partial(_spelled_out, name, halves))
        return Item(label, shape, False, partial(_dense, name, self.blob.add(halves, "fp16")))

    def _coded(self, label: str, tensor: Tensor, axis: int) -> tuple[Any, ...]:
        """The ops of a weight that is not stored dense; none for one that is."""
        scheme, importance = self.plan.of(label), self.plan.importance.get(label)
        if scheme.kind == "fp16" and not scheme.sparse:
            return ()
        coded = code(tensor.detach().float().numpy(), axis, scheme, importance)
        return () if coded is None else operations(mangled(label), coded, self.blob)


def _half(label: str, tensor: Tensor) -> np.ndarray:
    own = isinstance(tensor, nn.Parameter)
    check_finite(label, tensor if own else tensor[~tensor.isinf()])
    nearest: np.ndarray = half(label, tensor.detach()).half().contiguous().numpy()
    return nearest


def _dense(name: str, offset: int, shape: Shape) -> tuple[Any, ...]:
    return (constant(name, in_file("fp16", shape, offset)),)


def _spelled_out(name: str, values: np.ndarray, shape: Shape) -> tuple[Any, ...]:
    value = in_file("fp16", shape, 0)
    value.immediateValue.tensor.bytes.values = values.tobytes()
    return (constant(name, value),)
