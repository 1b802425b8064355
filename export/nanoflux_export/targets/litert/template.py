"""One segment of each kind, converted by litert_torch: the form that all segments of it share.

A template is converted with random weights, no two tensors alike, and every constant of the result
is looked up by its values: it is one parameter of the module, perhaps with its axes in another
order, or it does not depend on the weights. No naming convention of the converter is relied on, and
a parameter that the converter changed (folded into another, say) is missing afterwards, which is an
error. The quantiser then works on that file, and every weight it stored must be what `encoding`
makes of the parameter, byte for byte.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nanoflux_export.targets.litert.convert import convert
from nanoflux_export.targets.litert.encoding import DTYPES, Form, Layout, encode
from nanoflux_export.targets.litert.flatbuffer import TYPES, content, unpacked
from nanoflux_export.targets.litert.quantise import quantise
from nanoflux_mobile.errors import NanofluxError
from nanoflux_mobile.spec import DType, Scheme

Edge = tuple[DType, tuple[int, ...]]
"""Type and shape of a value that enters or leaves a segment."""

EDGE_DTYPES = {"float32": torch.float32, "int32": torch.int32}
"""What graphs take and return."""

_FEW = 8
"""Values compared first: they tell almost all pairs of tensors apart."""


@dataclass(frozen=True)
class Template:
    """The graph of a kind of segment, between `inputs` and `outputs`.

    `model` is a `schema.ModelT` of one subgraph whose buffers are empty. Tensors are counted by
    their place in it: `entries` and `exits` are what enters and leaves, `weights` says which
    parameter a constant holds, `constants` holds the bytes of all others.
    """

    model: Any
    inputs: tuple[Edge, ...]
    outputs: tuple[Edge, ...]
    entries: tuple[int, ...]
    exits: tuple[int, ...]
    weights: Mapping[int, Form]
    constants: Mapping[int, bytes]


def make_template(
    module: nn.Module, inputs: tuple[Edge, ...], outputs: tuple[Edge, ...], scheme: Scheme
) -> Template:
    """The template of a float32 module with its weights stored as `scheme`.

    Raises:
        NanofluxError: the converted module has other outputs than told, lost a parameter, or
            stores one in an unknown way.
    """
    samples = {f"in_{i}": torch.zeros(s, dtype=EDGE_DTYPES[d]) for i, (d, s) in enumerate(inputs)}
    names = [f"out_{i}" for i in range(len(outputs))]
    marked = _marked(module)
    del module  # the converter needs the room
    with TemporaryDirectory(prefix="nanoflux-") as folder:
        dense, stored = Path(folder, "dense.tflite"), Path(folder, "stored.tflite")
        convert(marked, samples, names, dense)
        parameters = dict(float_tensors(marked))
        del marked
        layouts = _read_dense(dense, parameters)
        quantise(dense, scheme, stored)
        model, data = unpacked(stored)
        weights, constants = _sorted_out(model, data, layouts, parameters)
        for buffer in model.buffers:
            buffer.data, buffer.offset, buffer.size = None, 0, 0
        # Arrays in it are views of a file that is about to go.
        model = copy.deepcopy(model)
    entries, exits = _ends(model, list(samples), names, outputs)
    return Template(model, inputs, outputs, entries, exits, weights, constants)


def float_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a module that are weights, each once."""
    named = chain(module.named_parameters(), module.named_buffers())
    return ((name, tensor) for name, tensor in named if tensor.is_floating_point())


def _marked(module: nn.Module) -> nn.Module:
    """A copy with random weights, made without copying the old ones."""
    generator = torch.Generator().manual_seed(0)
    new: dict[int, Any] = {}
    for _, tensor in float_tensors(module):
        values = torch.rand(tensor.shape, generator=generator).sub_(0.5)
        parameter = isinstance(tensor, nn.Parameter)
        new[id(tensor)] = nn.Parameter(values, requires_grad=False) if parameter else values
    return copy.deepcopy(module, new)


@dataclass(frozen=True)
class Dense:
    """A float32 file: how many tensors it has, and which of them hold which parameter how."""

    tensors: int
    layouts: Mapping[int, tuple[str, Layout]]


def _read_dense(path: Path, parameters: Mapping[str, Tensor]) -> Dense:
    model, data = unpacked(path)
    (graph,) = model.subgraphs
    found = {}
    for at, tensor in enumerate(graph.tensors):
        held = content(model.buffers[tensor.buffer], data)
        floats = held.view(np.float32) if TYPES[tensor.type] == "FLOAT32" else held[:0]
        if floats.size and (match := _match(floats, parameters)):
            found[at] = match
    if lost := sorted(parameters.keys() - {name for name, _ in found.values()}):
        raise NanofluxError(
            f"litert_torch changed or dropped the weight {lost[0]} of a segment; make the module "
            "use it as it is"
        )
    return Dense(len(graph.tensors), found)


def _match(values: np.ndarray, parameters: Mapping[str, Tensor]) -> tuple[str, Layout] | None:
    alike = {name: p for name, p in parameters.items() if p.numel() == values.size}
    for name, parameter in alike.items():
        for axes in permutations(range(parameter.ndim)):
            arranged = parameter.detach().numpy().transpose(axes)
            few = np.array_equal(arranged.flat[:_FEW], values[:_FEW])
            if few and np.array_equal(arranged.ravel(), values):
                return name, Layout(tuple(parameter.shape), axes)
    return None


def _sorted_out(
    model: Any, data: Any, dense: Dense, parameters: Mapping[str, Tensor]
) -> tuple[dict[int, Form], dict[int, bytes]]:
    """Every constant of the quantised file: how it stores a parameter, or its bytes."""
    (graph,) = model.subgraphs
    weights, constants = {}, {}
    for at, tensor in enumerate(graph.tensors):
        held = content(model.buffers[tensor.buffer], data)
        if at in dense.layouts:
            candidates = [dense.layouts[at]]
        else:
            # What the quantiser added may be a second copy of any weight.
            candidates = [] if at < dense.tensors else list(dense.layouts.values())
        forms = (_form(tensor, *candidate) for candidate in candidates if held.size)
        if form := next((f for f in forms if _is_stored(f, tensor, held, parameters)), None):
            weights[at] = form
        elif candidates and held.size:
            raise NanofluxError(
                f"the quantiser stored {candidates[0][0]} of a segment in an unknown way; install "
                "the version of ai-edge-quantizer that this package asks for"
            )
        elif held.size:
            constants[at] = held.tobytes()
    return weights, constants


def _form(tensor: Any, parameter: str, layout: Layout) -> Form:
    dtype, shape = TYPES[tensor.type], tuple(int(length) for length in tensor.shape)
    if dtype != "INT8":
        return Form(parameter, layout, shape, dtype)
    grid = tensor.quantization
    return Form(parameter, layout, shape, dtype, grid.quantizedDimension, len(grid.scale))


def _is_stored(form: Form, tensor: Any, held: np.ndarray, parameters: Mapping[str, Tensor]) -> bool:
    """Whether a constant is what our rule makes of the parameter."""
    if form.dtype not in DTYPES or form.bytes != held.size:
        return False
    ours, grid = encode(form, parameters[form.parameter]), tensor.quantization
    if not np.array_equal(ours.values.ravel().view(np.uint8), held):
        return False
    return not form.scales or (np.array_equal(ours.scales, grid.scale) and not grid.zeroPoint.any())


def _ends(
    model: Any, entries: list[str], exits: list[str], outputs: tuple[Edge, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The places of what enters and leaves."""
    (signature,), (graph,) = model.signatureDefs, model.subgraphs
    takes, gives = (
        {item.name.decode(): int(item.tensorIndex) for item in side}
        for side in (signature.inputs, signature.outputs)
    )
    made = [graph.tensors[gives[name]] for name in exits]
    found = [(TYPES[t.type].lower(), tuple(int(n) for n in t.shape)) for t in made]
    if found != list(outputs):
        raise NanofluxError(f"a segment became {found}, but its graph says {list(outputs)}")
    return tuple(takes[name] for name in entries), tuple(gives[name] for name in exits)
