"""A graph of any size as one .tflite file, in the memory of its largest segment."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from nanoflux_export.compression.plan import Plan, Storage, plan_of
from nanoflux_export.graph import Function, MobileGraph, Segment
from nanoflux_export.targets.litert.dense import float_tensors, make_dense
from nanoflux_export.targets.litert.dense_layers import with_dense_layers
from nanoflux_export.targets.litert.encoding import Form, encode
from nanoflux_export.targets.litert.flatbuffer import Put, written
from nanoflux_export.targets.litert.link import Linked, Templates, edges, link
from nanoflux_export.targets.litert.model_file import check_signature, read_model
from nanoflux_export.targets.litert.quantised import (
    Schemes,
    make_quantised,
    make_static,
    without_lookups,
)
from nanoflux_export.targets.litert.schemes import CPU, GPU, check_scheme
from nanoflux_export.targets.litert.template import EDGE_DTYPES, Template
from nanoflux_mobile.errors import InputError, NanofluxError
from nanoflux_mobile.spec import Component

Progress = Callable[[int, int], None]


def write(
    graph: MobileGraph,
    storage: Storage,
    out: Path,
    on_segment: Progress = lambda done, of: None,
) -> None:
    """Write `graph` to `out` with its layers stored as told; whole or not at all.

    One segment of each kind is converted, and stored once in each combination of schemes that
    segments of the kind have. Then every segment's weights are stored in that form, each under the
    name "<weights of the segment>/<parameter>". Segments with layers that compute on 8-bit
    activations are stored one by one, in the ranges of the plan's samples. `on_segment` hears how
    many of the kinds and of the segments are done.

    Raises:
        InputError: a profile, a scheme or an input type LiteRT files do not use, or a weight beyond
            the range of half precision.
        NanofluxError: segments that are not what the graph says, that cannot be stamped, or that
            have no samples to take ranges from.
    """
    plan = plan_of(storage)
    _check_plan(graph, plan)
    _check_types(graph)
    kinds = {segment.kind for _, _, segment in _segments(graph)}
    of = len(kinds) + len(list(_segments(graph)))
    templates = _templates(graph, plan, lambda done: on_segment(done, of))
    linked = link(graph, templates)
    with _whole_file(out) as part:
        with written(linked.model, part) as put:
            _fill(put, linked, graph, templates, lambda done: on_segment(len(kinds) + done, of))
        model = read_model(part)
        for name, function in graph.functions.items():
            check_signature(model, Component(graph.name, function.inputs, function.outputs), name)


def _segments(graph: MobileGraph) -> Iterator[tuple[str, Function, Segment]]:
    for name, function in graph.functions.items():
        for segment in function.segments:
            yield name, function, segment


def _check_plan(graph: MobileGraph, plan: Plan) -> None:
    if plan.profile not in ("", GPU, CPU):
        raise InputError(f"LiteRT has no profile {plan.profile}; accepted: {GPU}, {CPU}")
    for scheme in {plan.default, *plan.layers.values()}:
        check_scheme(scheme)
        if scheme.group and plan.profile != CPU:
            raise InputError(
                f"{scheme} aborts the GPU delegate; store {graph.name} as int4 or int8, or for "
                f"the profile {CPU}"
            )
        if graph.name == "decoder" and scheme.kind == "int" and scheme.activations != 8:
            raise InputError(
                f"a decoder stored as {scheme} is slower than in float, for it rounds large "
                "pictures as it goes; store it as fp16 or int8-a8"
            )


def _check_types(graph: MobileGraph) -> None:
    for function in graph.functions.values():
        for spec in (*function.inputs, *function.outputs):
            if spec.dtype not in EDGE_DTYPES:
                raise InputError(
                    f"{graph.name}.{spec.name} is {spec.dtype}; "
                    f"LiteRT graphs take and return {', '.join(EDGE_DTYPES)}"
                )


def _templates(graph: MobileGraph, plan: Plan, on_kind: Callable[[int], None]) -> Templates:
    """The template of every segment; those of one kind are made together."""
    made: dict[tuple[str, int], Template] = {}
    places = [
        ((name, at), function, segment)
        for name, function in graph.functions.items()
        for at, segment in enumerate(function.segments)
    ]
    for done, kind in enumerate(dict.fromkeys(segment.kind for _, _, segment in places), 1):
        alike = [place for place in places if place[2].kind == kind]
        dense = _dense(graph, *alike[0][1:], plan.profile)
        for place, function, segment in alike:
            made[place] = _template(graph, function, segment, dense, plan)
        on_kind(done)
    return {
        name: [made[name, at] for at in range(len(function.segments))]
        for name, function in graph.functions.items()
    }


def _dense(graph: MobileGraph, function: Function, segment: Segment, profile: str) -> Template:
    key = (__name__, segment.kind)
    if key not in graph.forms:
        inputs, outputs = edges(function, segment.inputs), edges(function, segment.outputs)
        graph.forms[key] = make_dense(segment.build(), inputs, outputs)
    found: Template = graph.forms[key]
    return with_dense_layers(found) if profile == CPU else found


def _template(
    graph: MobileGraph, function: Function, segment: Segment, dense: Template, plan: Plan
) -> Template:
    asked = {name: plan.of(f"{segment.weights}/{name}") for name in dense.layers}
    schemes = without_lookups(dense, asked)
    if any(scheme.activations == 8 for scheme in schemes.values()):
        return _static(function, segment, dense, schemes, plan)
    key = (__name__, segment.kind, plan.profile == CPU, tuple(schemes.items()))
    if key not in graph.forms:
        graph.forms[key] = make_quantised(dense, schemes)
    found: Template = graph.forms[key]
    return found


def _static(
    function: Function, segment: Segment, dense: Template, schemes: Schemes, plan: Plan
) -> Template:
    samples = () if plan.samples is None else plan.samples(function, segment)
    parameters = dict(float_tensors(segment.build()))
    return make_static(dense, schemes, parameters, segment.weights, samples)


def _fill(
    put: Put,
    linked: Linked,
    graph: MobileGraph,
    templates: Templates,
    on_segment: Callable[[int], None],
) -> None:
    """All constants, then the weights of every segment."""
    for content, buffer in linked.constants.items():
        put(buffer, np.frombuffer(content, np.uint8))
    ordered = (template for of_function in templates.values() for template in of_function)
    pairs = zip(_segments(graph), ordered, strict=True)
    for done, ((_, _, segment), template) in enumerate(pairs, 1):
        _put_weights(put, linked, segment, template)
        on_segment(done)


def _put_weights(put: Put, linked: Linked, segment: Segment, template: Template) -> None:
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
        buffer = put(tensors[0].buffer, stored.values)
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
