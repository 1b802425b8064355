"""Segments linked into one ML Program while their weights pass through memory one by one.

As a linker does with object files: the template of each kind is copied once per segment, its values
are renamed, and its weights point at what the segment's own weights became in the weight file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from nanoflux_export.compression.plan import Storage, plan_of
from nanoflux_export.graph import Function, MobileGraph, Segment
from nanoflux_export.targets.coreml.blob import BlobWriter
from nanoflux_export.targets.coreml.program import fixed, tensor_type
from nanoflux_export.targets.coreml.protos import (
    WEIGHTS,
    constant,
    describe,
    in_file,
    mangled,
    manifest_json,
    mil,
    value_type,
)
from nanoflux_export.targets.coreml.rounded_inputs import RoundedInputs
from nanoflux_export.targets.coreml.shelf import Shelf
from nanoflux_export.targets.coreml.stored_schemes import check_storable
from nanoflux_export.targets.coreml.template import (
    OPSET,
    Edge,
    Template,
    float_tensors,
    make_template,
)
from nanoflux_mobile.errors import NanofluxError
from nanoflux_mobile.spec import DType
from nanoflux_mobile.storage import staged_folder, write_file

SPECIFICATION = 9
"""The version of the model format that iOS 18 reads."""

OnSegment = Callable[[int, int], None]


@dataclass
class _Linker:
    """What one package shares between its functions: templates, stored weights, constants.

    `kinds` says what the constants of a template are called, which does not depend on the
    packages that shared `forms` before.
    """

    shelf: Shelf
    forms: dict[Any, Any]
    kinds: dict[Any, str] = field(default_factory=dict)

    def template(self, function: Function, segment: Segment) -> tuple[str, Template]:
        """The segment's template and what its constants are called; its weights on the shelf."""
        inputs, outputs = edges(function, segment)
        key = (segment.kind, inputs, outputs)
        made: Template | None = self.forms.get(key)
        if made is None or self.shelf.lacks(segment.weights, set(made.weights.values())):
            module = segment.build()
            if made is None:
                made = self.forms[key] = make_template(segment.kind, module, inputs, outputs)
            _check_alike(segment, module, made)
            self.shelf.put(segment.weights, module)
        return self.kinds.setdefault(key, f"{mangled(segment.kind)}{len(self.kinds)}"), made

    def function(self, function: Function, on_segment: Callable[[], None]) -> Any:
        """The function's message, all weights stored."""
        made = mil().Function(opset=OPSET)
        block = made.block_specializations[OPSET]
        for spec in function.inputs:
            made.inputs.add(name=spec.name).type.CopyFrom(value_type(spec.dtype, spec.shape))
        once: set[str] = set()
        rounding = RoundedInputs(self.shelf.plan, {value.name: value.type for value in made.inputs})
        for index, segment in enumerate(function.segments):
            kind, template = self.template(function, segment)
            names = _Names(template, segment, kind, f"{mangled(segment.weights)}_{index}")
            layers = (f"{segment.weights}/{name}" for name in template.weights.values())
            stamped = self.stamped(template, segment, names, once)
            passed = rounding.passed(stamped, {mangled(layer): layer for layer in layers})
            block.operations.extend(passed)
            on_segment()
        block.outputs.extend(spec.name for spec in function.outputs)
        _check_names(made, block)
        return made

    def stamped(
        self, template: Template, segment: Segment, names: _Names, once: set[str]
    ) -> Iterator[Any]:
        """The template's operations under the segment's names; constants of a kind only once."""
        for op in template.operations:
            old = op.outputs[0].name
            name = names.of(old)
            if op.type != "const":
                yield _renamed(op, names)
            elif name not in once:
                once.add(name)
                yield from self.constants(template, segment, op, name)

    def constants(
        self, template: Template, segment: Segment, op: Any, name: str
    ) -> tuple[Any, ...]:
        """A weight of the segment, or a constant of its kind."""
        old, shape = op.outputs[0].name, fixed(tensor_type(op.outputs[0].type))
        if parameter := template.weights.get(old):
            return self.shelf.items[segment.weights, parameter].constants(shape)
        if old not in template.blobs:
            return (constant(name, op.attributes["val"]),)
        dtype, data = template.blobs[old]
        packed = np.frombuffer(data, np.uint8)
        offset = self.shelf.blob.add_packed(packed, dtype, math.prod(shape))
        return (constant(name, in_file(dtype, shape, offset)),)


def _check_alike(segment: Segment, module: nn.Module, template: Template) -> None:
    odd = {name for name, _ in float_tensors(module)} ^ set(template.weights.values())
    if odd:
        raise NanofluxError(
            f"{segment.weights} and the first {segment.kind} do not both have the weight "
            f"{min(odd)}; give them kinds of their own"
        )


def _check_names(function: Any, block: Any) -> None:
    given = [value.name for value in function.inputs]
    if odd := [name for name in (*given, *block.outputs) if name != mangled(name)]:
        raise NanofluxError(f"a program has no value {odd[0]}; use letters, digits and _ in names")
    made = given + [value.name for op in block.operations for value in op.outputs]
    if twice := [name for name, count in Counter(made).items() if count > 1]:
        raise NanofluxError(f"two values of a program would be called {twice[0]}; rename one")


@dataclass(frozen=True)
class _Names:
    """What the values of a template are called in one segment."""

    template: Template
    segment: Segment
    kind: str
    own: str

    def of(self, name: str) -> str:
        """Wires by the graph's names, weights by theirs, constants by kind, the rest by segment."""
        for theirs, ours in (
            (self.template.inputs, self.segment.inputs),
            (self.template.outputs, self.segment.outputs),
        ):
            if name in theirs:
                return mangled(ours[theirs.index(name)])
        if parameter := self.template.weights.get(name):
            return mangled(f"{self.segment.weights}/{parameter}")
        return f"{self.kind if name in self.template.constants else self.own}_{name}"


def _renamed(op: Any, names: _Names) -> Any:
    copy = mil().Operation()
    copy.CopyFrom(op)
    for output in copy.outputs:
        output.name = names.of(output.name)
    for argument in copy.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                binding.name = names.of(binding.name)
    label = copy.attributes["name"].immediateValue.tensor.strings.values
    label[0] = f"{names.own}_{label[0]}"
    return copy


def edges(function: Function, segment: Segment) -> tuple[tuple[Edge, ...], tuple[Edge, ...]]:
    """Types and shapes of what a segment takes and returns: inside, half precision."""
    outer: dict[str, DType] = {s.name: s.dtype for s in (*function.inputs, *function.outputs)}
    takes, returns = (
        tuple((outer.get(name, "float16"), function.shape(name)) for name in side)
        for side in (segment.inputs, segment.outputs)
    )
    return takes, returns


def write(
    graph: MobileGraph,
    storage: Storage,
    out: Path,
    on_segment: OnSegment = lambda done, of: None,
) -> None:
    """Write `graph` to the package `out`, its weights stored as told; whole or not at all.

    `on_segment` hears how many segments are done, and of how many.

    Raises:
        InputError: a scheme Core ML files are not made with, a weight that half precision cannot
            hold, or `out` cannot be written.
        NanofluxError: a segment that does not become what its graph says, or 8-bit inputs of a
            layer that has no range.
    """
    plan = plan_of(storage)
    for scheme in (plan.default, *plan.layers.values()):
        check_storable(scheme)
    total, done = sum(len(f.segments) for f in graph.functions.values()), 0

    def count() -> None:
        nonlocal done
        done += 1
        on_segment(done, total)

    with staged_folder(out) as stage:
        folder = stage / "Data" / "com.apple.CoreML"
        (folder / WEIGHTS).parent.mkdir(parents=True)
        with BlobWriter(folder / WEIGHTS) as blob:
            linker = _Linker(Shelf(blob, plan), graph.forms)
            functions = {n: linker.function(f, count) for n, f in graph.functions.items()}
        model = _model(graph, functions)
        write_file(folder / "model.mlmodel", model.SerializeToString(deterministic=True))
        write_file(stage / "Manifest.json", manifest_json())


def _model(graph: MobileGraph, functions: dict[str, Any]) -> Any:
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model(specificationVersion=SPECIFICATION)
    model.mlProgram.version = 1
    for name, function in functions.items():
        model.mlProgram.functions[name].CopyFrom(function)
    describe(model.description, graph.functions)
    metadata = model.description.metadata.userDefined
    metadata["com.github.apple.coremltools.version"] = version("coremltools")
    metadata["com.github.apple.coremltools.source"] = f"torch=={version('torch')}"
    return model
