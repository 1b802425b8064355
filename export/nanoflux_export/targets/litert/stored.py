"""The weights of a saved .tflite file, as a runtime decodes them."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nanoflux_export.targets.litert.encoding import DTYPES, Encoded, Form, Layout, decode
from nanoflux_export.targets.litert.flatbuffer import TYPES, content, unpacked
from nanoflux_export.targets.litert.link import LAYOUTS
from nanoflux_export.targets.litert.model_file import read_model
from nanoflux_mobile.errors import InputError


def stored(path: Path) -> Callable[[str], np.ndarray]:
    """A reader of the weights of a file that `write` made.

    It takes "<weights of a segment>/<parameter>" and gives float32 in the parameter's own shape;
    KeyError for a name that the file does not have.

    Raises:
        InputError: no .tflite file there, a damaged one, or one that does not tell its weights.
    """
    read_model(path)
    model, data = unpacked(path)
    layouts = _layouts(path, model, data)
    found: dict[str, Callable[[], np.ndarray]] = {}
    try:
        for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
            name = (tensor.name or b"").decode()
            if name in layouts and name not in found:
                held = content(model.buffers[tensor.buffer], data)
                found[name] = partial(_read, _form(name, tensor, layouts[name]), tensor, held)
    except ValueError as error:
        raise _refusal(path, str(error)) from error
    if missing := sorted(layouts.keys() - found.keys()):
        raise _refusal(path, f"{missing[0]} is missing")
    return lambda name: found[name]()


def _read(form: Form, tensor: Any, held: np.ndarray) -> np.ndarray:
    scales = tensor.quantization.scale if form.scales else np.zeros(0, np.float32)
    return decode(form, Encoded(held[: form.bytes].view(DTYPES[form.dtype]), scales))


def _layouts(path: Path, model: Any, data: mmap.mmap) -> dict[str, Layout]:
    entry = next((m for m in model.metadata or [] if (m.name or b"").decode() == LAYOUTS), None)
    if entry is None:
        raise _refusal(path, f"it has no {LAYOUTS}")
    try:
        listed = json.loads(content(model.buffers[entry.buffer], data).tobytes())
        return {name: _layout(*pair) for name, pair in listed.items()}
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise _refusal(path, f"{LAYOUTS} cannot be read: {error}") from error


def _layout(shape: list[int], axes: list[int]) -> Layout:
    if sorted(axes) != list(range(len(shape))):
        raise ValueError(f"{axes} is no order of {len(shape)} axes")
    return Layout(tuple(shape), tuple(axes))


def _form(name: str, tensor: Any, layout: Layout) -> Form:
    """How a tensor stores a weight; ValueError where it does not fit."""
    dtype, grid, shape = TYPES[tensor.type], tensor.quantization, tuple(map(int, tensor.shape))
    if dtype not in DTYPES or math.prod(shape) != math.prod(layout.shape):
        raise ValueError(f"{name} is {dtype} {shape}, but the weight is {layout.shape}")
    if dtype != "INT8":
        return Form(name, layout, shape, dtype)
    axis, scales = grid.quantizedDimension, len(grid.scale)
    if scales != 1 and not (axis < len(shape) and scales == shape[axis]):
        raise ValueError(f"{name} has {scales} scales for {shape}")
    return Form(name, layout, shape, dtype, axis, scales)


def _refusal(path: Path, reason: str) -> InputError:
    return InputError(f"{path} does not tell its weights ({reason}); export it again")
