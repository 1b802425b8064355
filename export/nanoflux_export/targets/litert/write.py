"""A graph of any size as one .tflite file, in the memory of its largest segment."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from nanoflux_export.graph import Function, MobileGraph, Segment
from nanoflux_export.targets.litert.encoding import Form, encode
from nanoflux_export.targets.litert.flatbuffer import packed
from nanoflux_export.targets.litert.link import Linked, edges, link
from nanoflux_export.targets.litert.model_file import check_signature, read_model
from nanoflux_export.targets.litert.quantise import check_scheme
from nanoflux_export.targets.litert.template import (
    EDGE_DTYPES,
    Template,
    float_tensors,
    make_template,
)
from nanoflux_mobile.errors import InputError, NanofluxError
from nanoflux_mobile.spec import Component, Scheme

_ALIGNMENT = 16
"""Of constants behind the flatbuffer, as the schema asks for those inside."""

Progress = Callable[[int, int], None]


def write(
    graph: MobileGraph,
    scheme: Scheme,
    out: Path,
    on_segment: Progress = lambda done, of: None,
) -> None:
    """Write `graph` to `out` with its weights stored as `scheme`; whole or not at all.

    One segment of each kind is converted, then every segment's weights are stored in that form,
    each under the name "<weights of the segment>/<parameter>". `on_segment` hears how many of
    these steps are done.

    Raises:
        InputError: a scheme or an input type LiteRT files do not use, or a weight beyond the range
            of half precision.
        NanofluxError: segments that are not what the graph says, or that cannot be stamped.
    """
    check_scheme(scheme)
    _check_types(graph)
    kinds: dict[str, tuple[Function, Segment]] = {}
    for function, segment in _segments(graph):
        kinds.setdefault(segment.kind, (function, segment))
    of = len(kinds) + len(list(_segments(graph)))
    templates: dict[str, Template] = {}
    for done, (kind, first) in enumerate(kinds.items(), 1):
        templates[kind] = _template(graph, *first, scheme)
        on_segment(done, of)
    linked = link(graph, templates)
    with _whole_file(out) as part:
        with part.open("wb") as file:
            _fill(file, linked, graph, templates, lambda done: on_segment(len(kinds) + done, of))
        model = read_model(part)
        for name, function in graph.functions.items():
            check_signature(model, Component(graph.name, function.inputs, function.outputs), name)


def _segments(graph: MobileGraph) -> Iterator[tuple[Function, Segment]]:
    for function in graph.functions.values():
        for segment in function.segments:
            yield function, segment


def _check_types(graph: MobileGraph) -> None:
    for function in graph.functions.values():
        for spec in (*function.inputs, *function.outputs):
            if spec.dtype not in EDGE_DTYPES:
                raise InputError(
                    f"{graph.name}.{spec.name} is {spec.dtype}; "
                    f"LiteRT graphs take and return {', '.join(EDGE_DTYPES)}"
                )


def _template(graph: MobileGraph, function: Function, segment: Segment, scheme: Scheme) -> Template:
    key = (__name__, segment.kind, scheme)
    if key not in graph.forms:
        inputs, outputs = edges(function, segment.inputs), edges(function, segment.outputs)
        graph.forms[key] = make_template(segment.build(), inputs, outputs, scheme)
    found: Template = graph.forms[key]
    return found


def _fill(
    file: BinaryIO,
    linked: Linked,
    graph: MobileGraph,
    templates: dict[str, Template],
    on_segment: Callable[[int], None],
) -> None:
    """Constants first, behind the room for the flatbuffer; then that, with their places in it."""
    room = len(packed(linked.model))
    file.seek(room)
    known: dict[bytes, int] = {}
    for content, buffer in linked.constants.items():
        _put(file, linked.model, buffer, np.frombuffer(content, np.uint8), known)
    for done, (_, segment) in enumerate(_segments(graph), 1):
        _put_weights(file, linked, segment, templates[segment.kind], known)
        on_segment(done)
    header = packed(linked.model)
    if len(header) > room:
        raise NanofluxError(f"the flatbuffer takes {len(header)} bytes, more than its {room}")
    file.seek(0)
    file.write(header)


def _put_weights(
    file: BinaryIO, linked: Linked, segment: Segment, template: Template, known: dict[bytes, int]
) -> None:
    """The weights of a segment that no segment before it has stored."""
    waiting = linked.waiting.get(segment.weights, {})
    forms = [form for form in dict.fromkeys(template.weights.values()) if form in waiting]
    if not forms:
        return
    parameters = dict(float_tensors(segment.build()))
    for form in forms:
        _check_shape(form, segment, parameters)
        stored = encode(form, parameters[form.parameter])
        tensors = waiting.pop(form)
        buffer = _put(file, linked.model, tensors[0].buffer, stored.values, known)
        for tensor in tensors:
            tensor.buffer = buffer
            if form.scales:
                tensor.quantization.scale = stored.scales


def _check_shape(form: Form, segment: Segment, parameters: Mapping[str, Tensor]) -> None:
    found = parameters.get(form.parameter)
    if found is None or tuple(found.shape) != form.layout.shape:
        raise NanofluxError(
            f"{segment.weights} has no {form.parameter} of shape {form.layout.shape} as the first "
            f"segment of kind {segment.kind} has"
        )


def _put(
    file: BinaryIO, model: Any, buffer: int, values: np.ndarray, known: dict[bytes, int]
) -> int:
    """Write values, or find the same ones; which buffer has them."""
    content = values.reshape(-1).view(np.uint8).data
    digest = hashlib.sha256(content).digest()
    entry = model.buffers[buffer]
    if digest in known:
        entry.offset = entry.size = 0
        return known[digest]
    file.seek(-file.tell() % _ALIGNMENT, os.SEEK_CUR)
    entry.offset, entry.size = file.tell(), values.nbytes
    file.write(content)
    known[digest] = buffer
    return buffer


@contextmanager
def _whole_file(out: Path) -> Iterator[Path]:
    """A path beside `out` that takes its place when the block ends well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
