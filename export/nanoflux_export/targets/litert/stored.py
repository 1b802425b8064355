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

from nanoflux_export.targets.litert.encoding import BITS, Encoded, Form, Layout, decode
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
        for of, tensor in (
            (graph, tensor) for graph in model.subgraphs for tensor in graph.tensors
        ):
            name = (tensor.name or b"").decode()
            if name in layouts and name not in found:
                held = content(model.buffers[tensor.buffer], data)
                form = _form(name, tensor, layouts[name])
                scales = _scales(form, tensor.quantization, of, model, data)
                found[name] = partial(decode, form, Encoded(held[: form.bytes], scales))
    except ValueError as error:
        raise _refusal(path, str(error)) from error
    if missing := sorted(layouts.keys() - found.keys()):
        raise _refusal(path, f"{missing[0]} is missing")
    return lambda name: found[name]()


def _scales(form: Form, grid: Any, graph: Any, model: Any, data: mmap.mmap) -> np.ndarray:
    """A weight's scales; ValueError where there are not as many as it has blocks."""
    if not form.block:
        return grid.scale if form.scales else np.zeros(0, np.float32)
    place = grid.details.scales
    tensor = graph.tensors[place] if 0 <= place < len(graph.tensors) else None
    held = np.zeros(0, np.uint8) if tensor is None else content(model.buffers[tensor.buffer], data)
    if held.nbytes * form.block != np.dtype(np.float16).itemsize * math.prod(form.shape):
        raise ValueError(f"{form.parameter} has {held.nbytes} bytes of scales for {form.shape}")
    return held.view(np.float16).astype(np.float32)


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
    if dtype not in BITS or math.prod(shape) != math.prod(layout.shape):
        raise ValueError(f"{name} is {dtype} {shape}, but the weight is {layout.shape}")
    if dtype.startswith("FLOAT"):
        return Form(name, layout, shape, dtype)
    if (details := grid.details) is not None:
        block = int(getattr(details, "blockSize", 0))
        if block < 1 or shape[-1] % block:
            raise ValueError(f"{name} has blocks of {block} for {shape}")
        return Form(name, layout, shape, dtype, block=block)
    axis, scales = grid.quantizedDimension, len(grid.scale)
    if scales != 1 and not (axis < len(shape) and scales == shape[axis]):
        raise ValueError(f"{name} has {scales} scales for {shape}")
    return Form(name, layout, shape, dtype, axis, scales)


def _refusal(path: Path, reason: str) -> InputError:
    return InputError(f"{path} does not tell its weights ({reason}); export it again")
