"""The graph that all segments of a kind share, with their weights left out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanoflux_export.targets.litert.encoding import Form, encode
from nanoflux_export.targets.litert.flatbuffer import TYPES, new_buffer, written
from nanoflux_mobile.errors import NanofluxError
from nanoflux_mobile.spec import DType

Edge = tuple[DType, tuple[int, ...]]
"""Type and shape of a value that enters or leaves a segment."""

EDGE_DTYPES = {"float32": torch.float32, "int32": torch.int32}
"""What graphs take and return."""


@dataclass(frozen=True)
class Template:
    """The graph of a kind of segment, between `inputs` and `outputs`.

    `model` is a `schema.ModelT` of one subgraph whose buffers are empty. Tensors are counted by
    their place in it: `entries` and `exits` are what enters and leaves, `weights` says which
    parameter a constant holds, `constants` holds the bytes of all others, and of parameters whose
    form depends on what flows through the segment. `layers` are the parameters that can have a
    scheme of their own.
    """

    model: Any
    inputs: tuple[Edge, ...]
    outputs: tuple[Edge, ...]
    entries: tuple[int, ...]
    exits: tuple[int, ...]
    weights: Mapping[int, Form]
    constants: Mapping[int, bytes]
    layers: tuple[str, ...] = ()


def tensor_name(at: int) -> str:
    """What a tensor is called in the file of a template."""
    return f"t{at}"


def entry_name(at: int) -> str:
    """What an input is called in the signature of a template's file."""
    return f"in_{at}"


def exit_name(at: int) -> str:
    """What an output is called in the signature of a template's file."""
    return f"out_{at}"


def save_template(template: Template, parameters: Mapping[str, Tensor], path: Path) -> None:
    """Write a template to `path` as a model of its own, with these values of its parameters."""
    model = copy.copy(template.model)
    model.buffers, (graph,) = list(model.buffers), map(copy.copy, model.subgraphs)
    model.subgraphs, graph.tensors = [graph], [copy.copy(tensor) for tensor in graph.tensors]
    held = {*template.weights, *template.constants}
    for at, tensor in enumerate(graph.tensors):
        tensor.name, tensor.buffer = tensor_name(at), new_buffer(model) if at in held else 0
    with written(model, path) as put:
        for at in sorted(held):
            tensor = graph.tensors[at]
            tensor.buffer = put(tensor.buffer, _values(template, at, parameters))


def _values(template: Template, at: int, parameters: Mapping[str, Tensor]) -> np.ndarray:
    if at in template.constants:
        return np.frombuffer(template.constants[at], np.uint8)
    form = template.weights[at]
    return encode(form, parameters[form.parameter]).values


def emptied(model: Any) -> Any:
    """A copy of a model without its constants, which are views of a file that is about to go."""
    for buffer in model.buffers:
        buffer.data, buffer.offset, buffer.size = None, 0, 0
    return copy.deepcopy(model)


def ends(
    model: Any, inputs: int, outputs: tuple[Edge, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The places of what enters and leaves.

    Raises:
        NanofluxError: it does not return `outputs`.
    """
    (signature,), (graph,) = model.signatureDefs, model.subgraphs
    takes, gives = (
        {item.name.decode(): int(item.tensorIndex) for item in side}
        for side in (signature.inputs, signature.outputs)
    )
    exits = tuple(gives[exit_name(i)] for i in range(len(outputs)))
    made = [graph.tensors[at] for at in exits]
    found = [(TYPES[t.type].lower(), tuple(int(n) for n in t.shape)) for t in made]
    if found != list(outputs):
        raise NanofluxError(f"a segment became {found}, but its graph says {list(outputs)}")
    return tuple(takes[entry_name(i)] for i in range(inputs)), exits
