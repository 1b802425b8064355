"""Templates stamped out into one model, in which weights have names but no values yet."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nanoflux_export.graph import Function, MobileGraph, Segment
from nanoflux_export.targets.litert.encoding import Form, Layout
from nanoflux_export.targets.litert.flatbuffer import code_place, new_buffer
from nanoflux_export.targets.litert.template import Edge, Template
from nanoflux_mobile.errors import NanofluxError
from nanoflux_mobile.spec import TensorSpec

LAYOUTS = "nanoflux_layouts"
"""Metadata of a file: for every weight by name, its own shape and the order its axes lie in."""

SCALES = ".scales"
"""What the tensor with the scales of a weight's blocks is called, after the weight's name."""

_VERSION = 3

Templates = Mapping[str, Sequence[Template]]
"""The template of every segment, by function and in order."""


@dataclass(frozen=True)
class Linked:
    """A model, a `schema.ModelT`, and what is to fill its buffers.

    `constants` holds bytes and the buffer that takes them. `waiting` holds, by the name of a
    segment's weights, the forms in which parameters are stored and the tensors that have each.
    `layouts` holds how every weight lies, by name.
    """

    model: Any
    constants: dict[bytes, int] = field(default_factory=dict)
    waiting: dict[str, dict[Form, list[Any]]] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """A template, its op codes and constant buffers by their place in the whole model."""

    template: Template
    codes: list[int]
    buffers: Mapping[int, int]


def link(graph: MobileGraph, templates: Templates) -> Linked:
    """The graph as one model.

    Raises:
        NanofluxError: segments of one kind differ in more than their weights, or segments that
            share weights disagree on a shape.
    """
    # The first buffer stands for no constant.
    model = schema.ModelT(_VERSION, [], [], "nanoflux", [schema.BufferT()], signatureDefs=[])
    linked = Linked(model)
    known: dict[int, _Part] = {}
    for name, function in graph.functions.items():
        for template in templates[name]:
            if id(template) not in known:
                known[id(template)] = _part(template, linked)
        parts = [known[id(template)] for template in templates[name]]
        subgraph = _subgraph(name, function, parts, linked)
        model.signatureDefs.append(_signature(name, function, subgraph, len(model.subgraphs)))
        model.subgraphs.append(subgraph)
    model.metadata = [schema.MetadataT(LAYOUTS, len(model.buffers))]
    model.buffers.append(schema.BufferT(np.frombuffer(_layouts(linked), np.uint8)))
    return linked


def edges(function: Function, names: Iterable[str]) -> tuple[Edge, ...]:
    """Types and shapes of values; those between segments are float32."""
    specs = {spec.name: spec for spec in (*function.inputs, *function.outputs)}
    return tuple(
        (specs[name].dtype if name in specs else "float32", tuple(function.shape(name)))
        for name in names
    )


def _part(template: Template, linked: Linked) -> _Part:
    codes = [code_place(linked.model.operatorCodes, c) for c in template.model.operatorCodes]
    buffers = {}
    for at, content in template.constants.items():
        if content not in linked.constants:
            linked.constants[content] = new_buffer(linked.model)
        buffers[at] = linked.constants[content]
    return _Part(template, codes, buffers)


def _subgraph(name: str, function: Function, parts: Sequence[_Part], linked: Linked) -> Any:
    tensors = [_input(spec) for spec in function.inputs]
    operators: list[Any] = []
    values = {spec.name: at for at, spec in enumerate(function.inputs)}
    for segment, part in zip(function.segments, parts, strict=True):
        _check_edges(segment, function, part.template)
        taken = (values[name] for name in segment.inputs)
        places = dict(zip(part.template.entries, taken, strict=True))
        for at, tensor in _stamped(segment, part, linked):
            if at not in places:
                places[at] = len(tensors)
                tensors.append(tensor)
        _place_scales(part.template, tensors, places)
        operators += _operators(part, places)
        exits = zip(segment.outputs, part.template.exits, strict=True)
        values |= {output: places[at] for output, at in exits}
    ends = ([values[s.name] for s in side] for side in (function.inputs, function.outputs))
    return schema.SubGraphT(tensors, *ends, operators, name)


def _check_edges(segment: Segment, function: Function, template: Template) -> None:
    found = edges(function, segment.inputs), edges(function, segment.outputs)
    if found != (template.inputs, template.outputs):
        raise NanofluxError(
            f"segments of kind {segment.kind} have other inputs or outputs at {segment.weights}: "
            f"{found} instead of {(template.inputs, template.outputs)}"
        )


def _input(spec: TensorSpec) -> Any:
    code = getattr(schema.TensorType, spec.dtype.upper())
    shape, grid = np.array(spec.shape, np.int32), schema.QuantizationParametersT()
    return schema.TensorT(shape, code, name=spec.name, quantization=grid, hasRank=True)


def _stamped(segment: Segment, part: _Part, linked: Linked) -> Iterator[tuple[int, Any]]:
    """The template's tensors as those of a segment."""
    (graph,) = part.template.model.subgraphs
    names = dict(zip(part.template.exits, segment.outputs, strict=True))
    for at, tensor in enumerate(graph.tensors):
        new = copy.copy(tensor)
        new.name = names.get(at, f"{segment.weights}:{at}")
        new.buffer = part.buffers.get(at, 0)
        if form := part.template.weights.get(at):
            new.name = f"{segment.weights}/{form.parameter}"
            if form.part == "scales":
                new.name += SCALES
            else:
                _keep_layout(linked, new.name, form.layout)
            new.quantization = copy.copy(tensor.quantization)
            if not new.buffer:
                _await(linked, segment.weights, form, new)
        yield at, new


def _place_scales(template: Template, tensors: list[Any], places: Mapping[int, int]) -> None:
    """Tell weights in blocks where their scales are now."""
    for at, form in template.weights.items():
        if form.block and form.part == "values":
            grid = tensors[places[at]].quantization
            grid.details = copy.copy(grid.details)
            grid.details.scales = places[grid.details.scales]


def _await(linked: Linked, weights: str, form: Form, tensor: Any) -> None:
    sharing = linked.waiting.setdefault(weights, {}).setdefault(form, [])
    tensor.buffer = sharing[0].buffer if sharing else new_buffer(linked.model)
    sharing.append(tensor)


def _operators(part: _Part, places: Mapping[int, int]) -> Iterator[Any]:
    (graph,) = part.template.model.subgraphs
    for operator in graph.operators:
        new = copy.copy(operator)
        new.opcodeIndex = part.codes[operator.opcodeIndex]
        new.inputs = [places.get(at, -1) for at in operator.inputs]
        new.outputs = [places[at] for at in operator.outputs]
        yield new


def _signature(name: str, function: Function, subgraph: Any, index: int) -> Any:
    inputs, outputs = (
        [schema.TensorMapT(spec.name, at) for spec, at in zip(specs, places, strict=True)]
        for specs, places in (
            (function.inputs, subgraph.inputs),
            (function.outputs, subgraph.outputs),
        )
    )
    return schema.SignatureDefT(inputs, outputs, name, index)


def _keep_layout(linked: Linked, name: str, layout: Layout) -> None:
    shape = linked.layouts.setdefault(name, layout).shape
    if shape != layout.shape:
        raise NanofluxError(
            f"the weight {name} has the shapes {shape} and {layout.shape}; segments that "
            "share weights must agree on them"
        )


def _layouts(linked: Linked) -> bytes:
    listed = {name: (layout.shape, layout.axes) for name, layout in linked.layouts.items()}
    return json.dumps(listed, separators=(",", ":")).encode()
