"""The weight file beside the models: tensors one after another, each as its scheme stores it.

* fp16: the weights of the layers in `selection.OUTPUT_AXES`, rounded to the nearest half. The graph
  casts them to float32 before use, so that any runtime can compute with them, in the precision it
  likes; onnxruntime does that cast when it loads a model.
* int8: the same weights as int8 with a float32 scale per output channel and zero point 0,
  scale = max(max|w|, 1e-9) / 127, behind DequantizeLinear. Activations have no integer range.

Biases, norms and tables stay float32. Equal tensors are stored once, and large ones begin where
Windows can map them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from torch import Tensor, nn

from nanoflux_export.compression.plan import Plan
from nanoflux_export.compression.rounding import half, output_axes
from nanoflux_mobile.errors import InputError

FILE = "weights.bin"
SCHEMES = ("fp16", "int8")
"""How weights can be stored."""
_INT8_MAX, _LEAST_BOUND = 127, 1e-9  # the grid of `rounding.rounded`
_LARGE, _PAGE, _LINE = 1 << 20, 1 << 16, 64


@dataclass(frozen=True)
class Place:
    """Where in the file a tensor lies, and what it is."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """What it takes."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Stored:
    """A parameter in the file; `axis` counts what has a scale of its own."""

    values: Place
    scale: Place | None = None
    axis: int = 0


@dataclass
class DataFile:
    """A weight file being written; `found` has every parameter so far by segment and name."""

    file: BinaryIO
    plan: Plan
    found: dict[tuple[str, str], Stored] = field(default_factory=dict)
    _places: dict[Hashable, Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what ONNX graphs here do not store."""
        for scheme in (self.plan.default, *self.plan.layers.values()):
            if str(scheme) not in SCHEMES:
                known = ", ".join(SCHEMES)
                raise InputError(f"ONNX files cannot store weights as {scheme}; accepted: {known}")

    def put(self, weights: str, module: nn.Module) -> None:
        """Store what is not there yet of a segment's parameters and buffers.

        Raises:
            InputError: a value that half precision cannot hold.
        """
        axes = output_axes(module)
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if (weights, name) not in self.found:
                label, axis = f"{weights}/{name}", axes.get(id(tensor))
                self.found[weights, name] = self._stored(label, tensor.detach(), axis)

    def _stored(self, label: str, tensor: Tensor, axis: int | None) -> Stored:
        if axis is None:
            return Stored(self._add(tensor.numpy()))
        if self.plan.of(label).kind == "fp16":
            return Stored(self._add(half(label, tensor).half().numpy()))
        codes, scale = on_grid(tensor, axis)
        return Stored(self._add(codes), self._add(scale), axis)

    def _add(self, values: np.ndarray) -> Place:
        # As a buffer of bytes: `tobytes` would copy the tensor once more.
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        key = hashlib.sha256(data).digest(), values.dtype, values.shape
        if key not in self._places:
            boundary = _PAGE if values.nbytes >= _LARGE else _LINE
            self.file.write(bytes(-self.file.tell() % boundary))
            self._places[key] = Place(values.dtype, values.shape, self.file.tell())
            self.file.write(data)
        return self._places[key]


def on_grid(tensor: Tensor, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A float32 weight as int8 codes, and one float32 step for each entry of `axis`."""
    others = [at for at in range(tensor.ndim) if at != axis]
    step = tensor.abs().amax(others, keepdim=True).clamp(min=_LEAST_BOUND) / _INT8_MAX
    codes = (tensor / step).round_().clamp_(-_INT8_MAX, _INT8_MAX)
    return codes.char().numpy(), step.flatten().numpy()


def decoded(values: np.ndarray, scale: np.ndarray | None, axis: int) -> np.ndarray:
    """What a stored weight stands for, float32."""
    dense = values.astype(np.float32)
    if scale is None:
        return dense
    shape = [1] * dense.ndim
    shape[axis] = -1
    return dense * scale.reshape(shape)
