"""One segment of each kind, converted by litert_torch: its float32 template.

It is converted with random weights, no two tensors alike, and every constant of the result is
looked up by its values: it is one parameter of the module, perhaps with its axes in another order,
or it does not depend on the weights. No naming convention of the converter is relied on, and a
parameter that the converter changed (folded into another, say) is missing afterwards, which is an
error.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import chain, permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nanoflux_export.compression.rounding import output_axes
from nanoflux_export.targets.litert.convert import convert
from nanoflux_export.targets.litert.encoding import Form, Layout
from nanoflux_export.targets.litert.flatbuffer import TYPES, content, unpacked
from nanoflux_export.targets.litert.template import (
    EDGE_DTYPES,
    Edge,
    Template,
    emptied,
    ends,
    entry_name,
    exit_name,
)
from nanoflux_mobile.errors import NanofluxError

_FEW = 8
"""Values compared first: they tell almost all pairs of tensors apart."""


def make_dense(module: nn.Module, inputs: tuple[Edge, ...], outputs: tuple[Edge, ...]) -> Template:
    """The template of a float32 module with its weights as they are.

    Raises:
        NanofluxError: the converted module has other outputs than told, or lost a parameter.
    """
    samples = {
        entry_name(i): torch.zeros(s, dtype=EDGE_DTYPES[d]) for i, (d, s) in enumerate(inputs)
    }
    axes = output_axes(module)
    layers = tuple(name for name, tensor in float_tensors(module) if id(tensor) in axes)
    marked = _marked(module)
    del module  # the converter needs the room
    with TemporaryDirectory(prefix="nanoflux-") as folder:
        path = Path(folder, "dense.tflite")
        convert(marked, samples, [exit_name(i) for i in range(len(outputs))], path)
        model, data = unpacked(path)
        weights, constants = _sorted_out(model, data, dict(float_tensors(marked)))
        model = emptied(model)
    places = ends(model, len(inputs), outputs)
    return Template(model, inputs, outputs, *places, weights, constants, layers)


def float_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a module that are weights, each once."""
    named = chain(module.named_parameters(), module.named_buffers())
    return ((name, tensor) for name, tensor in named if tensor.is_floating_point())


def random_values(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Values that no other tensor has."""
    return torch.rand(shape, generator=generator).sub_(0.5)


def _marked(module: nn.Module) -> nn.Module:
    """A copy with random weights, made without copying the old ones."""
    generator = torch.Generator().manual_seed(0)
    new: dict[int, Any] = {}
    for _, tensor in float_tensors(module):
        values = random_values(tuple(tensor.shape), generator)
        parameter = isinstance(tensor, nn.Parameter)
        new[id(tensor)] = nn.Parameter(values, requires_grad=False) if parameter else values
    return copy.deepcopy(module, new)


def _sorted_out(
    model: Any, data: Any, parameters: Mapping[str, Tensor]
) -> tuple[dict[int, Form], dict[int, bytes]]:
    """Every constant of a float32 file: how it holds a parameter, or its bytes."""
    (graph,) = model.subgraphs
    weights, constants = {}, {}
    for at, tensor in enumerate(graph.tensors):
        held = content(model.buffers[tensor.buffer], data)
        floats = held.view(np.float32) if TYPES[tensor.type] == "FLOAT32" else held[:0]
        if floats.size and (match := _match(floats, parameters)):
            weights[at] = Form(*match, tuple(int(n) for n in tensor.shape), "FLOAT32")
        elif held.size:
            constants[at] = held.tobytes()
    if lost := sorted(parameters.keys() - {form.parameter for form in weights.values()}):
        raise NanofluxError(
            f"litert_torch changed or dropped the weight {lost[0]} of a segment; make the module "
            "use it as it is"
        )
    return weights, constants


def _match(values: np.ndarray, parameters: Mapping[str, Tensor]) -> tuple[str, Layout] | None:
    alike = {name: p for name, p in parameters.items() if p.numel() == values.size}
    for name, parameter in alike.items():
        for axes in permutations(range(parameter.ndim)):
            arranged = parameter.detach().numpy().transpose(axes)
            few = np.array_equal(arranged.flat[:_FEW], values[:_FEW])
            if few and np.array_equal(arranged.ravel(), values):
                return name, Layout(tuple(parameter.shape), axes)
    return None
