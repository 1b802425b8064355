"""A float32 template with its layers stored smaller, each as its scheme says.

The quantiser works on a file of the template, and every weight it stored must be what `encoding`
makes of the parameter, byte for byte: so any other values can be stored in its place without it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanoflux_export.targets.litert.dense import random_values
from nanoflux_export.targets.litert.encoding import BITS, Encoded, Form, decode, encode
from nanoflux_export.targets.litert.flatbuffer import TYPES, content, op_kind, unpacked
from nanoflux_export.targets.litert.quantise import layer_steps, quantise, whole_steps
from nanoflux_export.targets.litert.ranges import ranges_of
from nanoflux_export.targets.litert.schemes import stored_type
from nanoflux_export.targets.litert.template import (
    Template,
    emptied,
    ends,
    save_template,
    tensor_name,
)
from nanoflux_mobile.errors import InputError, NanofluxError
from nanoflux_mobile.spec import Scheme

Schemes = Mapping[str, Scheme]
"""How each layer of a template is stored, by its parameter."""

_WEIGHED = """
BATCH_MATMUL CONV_2D DEPTHWISE_CONV_2D EMBEDDING_LOOKUP FULLY_CONNECTED TRANSPOSE_CONV
"""
_PLAIN = """
ADD CONCATENATION DEPTH_TO_SPACE LOGISTIC MAX_POOL_2D MUL PAD RELU RESHAPE RESIZE_BILINEAR
RESIZE_NEAREST_NEIGHBOR SLICE SPACE_TO_DEPTH SPLIT STRIDED_SLICE TANH TRANSPOSE
"""
_LAYERS = frozenset(_WEIGHED.split())
"""Ops that take weights in a stored form."""
_INTEGERS = _LAYERS - {"EMBEDDING_LOOKUP"} | frozenset(_PLAIN.split())
"""Ops that lose little in 8 bits: a network of these alone computes in integers throughout."""


def without_lookups(dense: Template, schemes: Schemes) -> Schemes:
    """The schemes with no activations asked of tables that are only looked up in."""
    (graph,) = dense.model.subgraphs
    lookups = (op for op in graph.operators if op_kind(dense.model, op) == "EMBEDDING_LOOKUP")
    tables = {
        dense.weights[at].parameter for op in lookups for at in op.inputs if at in dense.weights
    }
    return {
        name: dataclasses.replace(scheme, activations=16) if name in tables else scheme
        for name, scheme in schemes.items()
    }


def make_quantised(dense: Template, schemes: Schemes) -> Template:
    """The template with its layers stored as told, whatever values they will have.

    Raises:
        InputError: a layer that cannot be stored so.
        NanofluxError: the quantiser stored one in an unknown way.
    """
    _check_blocks(dense, schemes)
    steps = layer_steps(_by_tensor(dense, schemes))
    if not steps:
        _check_types(dense.weights, schemes)
        return dense
    generator = torch.Generator().manual_seed(0)
    shapes = {form.parameter: form.layout.shape for form in dense.weights.values()}
    random = {name: random_values(shape, generator) for name, shape in shapes.items()}
    with _saved(dense, random) as (source, out):
        quantise(source, steps, out)
        return _read(dense, out, schemes, random)


def make_static(
    dense: Template,
    schemes: Schemes,
    parameters: Mapping[str, Tensor],
    weights: str,
    samples: Iterable[tuple[np.ndarray, ...]],
) -> Template:
    """The template of one segment, some of whose layers compute on 8-bit activations.

    Its ranges are those of `samples` that enter the segment with these values of its parameters;
    `weights` is what errors call it.

    Raises:
        InputError: a layer that cannot be stored so.
        NanofluxError: no samples, or the quantiser stored a layer in an unknown way.
    """
    _check_blocks(dense, schemes)
    (scheme,) = {scheme for scheme in schemes.values() if scheme.activations == 8}
    whole = set(schemes.values()) == {scheme} and _computes_in_integers(dense)
    steps = whole_steps(scheme) if whole else layer_steps(_by_tensor(dense, schemes))
    with _saved(dense, parameters) as (source, out):
        ranges = ranges_of(source, samples, steps)
        if not ranges:
            raise NanofluxError(
                f"{weights} has layers stored as {scheme}, which takes ranges from what enters the "
                "segment on the calibration prompts, but the plan has no samples of it"
            )
        quantise(source, steps, out, ranges)
        return _read(dense, out, schemes, parameters)


@contextmanager
def _saved(dense: Template, parameters: Mapping[str, Tensor]) -> Iterator[tuple[Path, Path]]:
    """A file of the template, and where to put another."""
    with TemporaryDirectory(prefix="nanoflux-") as folder:
        source = Path(folder, "dense.tflite")
        save_template(dense, parameters, source)
        yield source, Path(folder, "stored.tflite")


def _by_tensor(dense: Template, schemes: Schemes) -> dict[str, Scheme]:
    """The schemes by the name of the tensor that the layer's op makes."""
    (graph,) = dense.model.subgraphs
    found: dict[str, Scheme] = {}
    for op in graph.operators:
        if op_kind(dense.model, op) in _LAYERS:
            taken = (dense.weights[at].parameter for at in op.inputs if at in dense.weights)
            named = (schemes[parameter] for parameter in taken if parameter in schemes)
            found |= {tensor_name(op.outputs[0]): scheme for scheme in named}
    return found


def _computes_in_integers(dense: Template) -> bool:
    """Whether all its ops lose little in 8 bits, and none but its layers takes a parameter."""
    (graph,) = dense.model.subgraphs
    kinds = [(op_kind(dense.model, op), op) for op in graph.operators]
    taken = {at for kind, op in kinds if kind not in _LAYERS for at in op.inputs}
    return {kind for kind, _ in kinds} <= _INTEGERS and not taken & dense.weights.keys()


def _read(
    dense: Template, path: Path, schemes: Schemes, parameters: Mapping[str, Tensor]
) -> Template:
    """The template of a quantised file, all its weights proved to be stored by our rule."""
    model, data = unpacked(path)
    (graph,) = model.subgraphs
    held = {at: content(model.buffers[t.buffer], data) for at, t in enumerate(graph.tensors)}
    held = {at: values for at, values in held.items() if values.size}
    weights = dict(_weights(dense, graph.tensors, held, parameters))
    for at, form in list(weights.items()):
        if form.block:
            place, scales = _block_scales(form, graph.tensors, at)
            _check(scales, graph.tensors[place], held[place], parameters)
            weights[place] = scales
    _check_types(weights, schemes)
    by_ranges = {at for at, form in weights.items() if form.dtype == "INT32"}
    constants = {at: held[at].tobytes() for at in held.keys() - (weights.keys() - by_ranges)}
    model = emptied(model)
    places = ends(model, len(dense.inputs), dense.outputs)
    return Template(model, dense.inputs, dense.outputs, *places, weights, constants, dense.layers)


def _weights(
    dense: Template,
    tensors: list[Any],
    held: Mapping[int, np.ndarray],
    parameters: Mapping[str, Tensor],
) -> Iterator[tuple[int, Form]]:
    """Every constant that is a parameter."""
    (graph,) = dense.model.subgraphs
    for at, values in held.items():
        if at in dense.weights:
            form = _form(tensors[at], dense.weights[at])
            _check(form, tensors[at], values, parameters)
            yield at, form
        elif at >= len(graph.tensors):
            # What the quantiser added may be a second copy of any weight.
            forms = (_form(tensors[at], candidate) for candidate in dense.weights.values())
            same = (f for f in forms if _is_stored(f, tensors[at], values, parameters))
            yield from ((at, copy) for copy in islice(same, 1))


def _form(tensor: Any, dense: Form) -> Form:
    """How a tensor would store the parameter of a form."""
    dtype, shape = TYPES[tensor.type], tuple(int(length) for length in tensor.shape)
    form, grid = dataclasses.replace(dense, dtype=dtype, shape=shape), tensor.quantization
    if dtype.startswith("FLOAT") or grid is None:
        return form
    if grid.details is not None:
        return dataclasses.replace(form, block=grid.details.blockSize)
    scales = 0 if grid.scale is None else len(grid.scale)
    return dataclasses.replace(form, axis=grid.quantizedDimension, scales=scales)


def _block_scales(form: Form, tensors: list[Any], at: int) -> tuple[int, Form]:
    """The scales of a weight in blocks, and which tensor holds them."""
    place = tensors[at].quantization.details.scales
    tensor = tensors[place]
    dtype, shape = TYPES[tensor.type], tuple(int(length) for length in tensor.shape)
    return place, dataclasses.replace(form, dtype=dtype, shape=shape, part="scales")


def _check(form: Form, tensor: Any, held: np.ndarray, parameters: Mapping[str, Tensor]) -> None:
    if not _is_stored(form, tensor, held, parameters):
        raise NanofluxError(
            f"the quantiser stored {form.parameter} of a segment in an unknown way; install "
            "the version of ai-edge-quantizer that this package asks for"
        )


def _is_stored(form: Form, tensor: Any, held: np.ndarray, parameters: Mapping[str, Tensor]) -> bool:
    """Whether a constant is what our rule makes of the parameter."""
    grid, parameter = tensor.quantization, parameters[form.parameter]
    whole = form.part == "scales" or math.prod(form.shape) == parameter.numel()
    if not whole or form.dtype not in BITS or form.bytes != held.size:
        return False
    if form.scales and grid.zeroPoint.any():
        return False
    if form.dtype == "INT32":
        return _is_nearest(form, Encoded(held, grid.scale), parameter)
    ours = encode(form, parameter)
    if not np.array_equal(ours.values.reshape(-1).view(np.uint8), held):
        return False
    return not form.scales or np.array_equal(ours.scales, grid.scale)


def _is_nearest(form: Form, stored: Encoded, parameter: Tensor) -> bool:
    """Whether integers on whatever grid are the nearest to a bias, but for float32 arithmetic."""
    wanted = parameter.detach().numpy()
    most = stored.scales / 2 + np.abs(wanted) * 2.0**-20
    return bool((np.abs(decode(form, stored) - wanted) <= most).all())


def _check_blocks(dense: Template, schemes: Schemes) -> None:
    """The quantiser fails where blocks do not fill the inputs of a layer."""
    for form in dense.weights.values():
        scheme = schemes.get(form.parameter)
        if scheme and scheme.group and form.shape[-1] % scheme.group:
            raise _refusal(form, scheme)


def _check_types(weights: Mapping[int, Form], schemes: Schemes) -> None:
    """The quantiser leaves as they are the layers for which there is no kernel."""
    for form in weights.values():
        scheme = schemes.get(form.parameter)
        if scheme and form.part == "values" and form.dtype != stored_type(scheme):
            raise _refusal(form, scheme)


def _refusal(form: Form, scheme: Scheme) -> InputError:
    return InputError(
        f"LiteRT cannot store a layer such as {form.parameter}, of shape {form.layout.shape}, as "
        f"{scheme}; give it another scheme, such as int8 or fp16"
    )
