"""Segments linked into ONNX models while their weights pass through memory one by one.

As a linker does with object files: the nodes of each kind are copied once per segment, their values
are renamed, and their weights point at what the segment's own weights became in the weight file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanoflux_export.compression.plan import Storage, plan_of
from nanoflux_export.graph import Function, MobileGraph, Segment
from nanoflux_export.targets.onnx.data_file import FILE, DataFile, Place, Stored
from nanoflux_export.targets.onnx.trace import OPSET, Edge, Form, make_form
from nanoflux_mobile.errors import NanofluxError
from nanoflux_mobile.spec import TensorSpec
from nanoflux_mobile.storage import staged_folder, write_file

IR_VERSION = 9
"""The version of the file format that came with opset 20."""

_VALUES, _SCALE = "stored", "scale"


def write(
    graph: MobileGraph,
    storage: Storage,
    out: Path,
    on_segment: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write `graph` to the folder `out`, whole or not at all.

    It holds one model for each function, named after it, and one weight file for all of them.
    `on_segment` hears how many segments are done, and of how many.

    Raises:
        InputError: a scheme that is not stored here, a weight that half precision cannot hold, or
            `out` cannot be written.
        NanofluxError: a segment that does not become what its graph says.
    """
    import onnx

    total, done = sum(len(f.segments) for f in graph.functions.values()), 0
    with staged_folder(out) as stage:
        with (stage / FILE).open("xb") as file:
            data, models = DataFile(file, plan_of(storage)), {}
            for name, function in graph.functions.items():
                linked = _Linked(data, graph.forms, function)
                for index, segment in enumerate(function.segments):
                    linked.add(index, segment)
                    on_segment(done := done + 1, total)
                models[name] = linked.model(name)
        for name, model in models.items():
            path = stage / f"{name}.onnx"
            write_file(path, model.SerializeToString(deterministic=True))
            try:
                onnx.checker.check_model(str(path), full_check=True)
            except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
                raise NanofluxError(f"{graph.name}.{name} is no valid graph: {error}") from error


class _Linked:
    """One function as it grows, segment by segment."""

    def __init__(self, data: DataFile, forms: dict[Any, Any], function: Function) -> None:
        self.data, self.forms, self.function = data, forms, function
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.labels: set[str] = set()

    def add(self, index: int, segment: Segment) -> None:
        """Stamp a segment, its weights stored; each is decoded right before its first use."""
        form = self._form(segment)
        names = _Names(form, segment, f"{index}.{segment.weights}/")
        for node in form.nodes:
            for parameter in filter(None, map(form.weights.get, node.input)):
                label = f"{segment.weights}/{parameter}"
                if label not in self.labels:
                    self._declare(label, self.data.found[segment.weights, parameter])
            self.nodes.append(_renamed(node, names))

    def model(self, name: str) -> Any:
        """The function as a whole model; its weights are read from the file beside it."""
        from onnx import helper

        graph = helper.make_graph(
            self.nodes,
            name,
            [_value_info(spec) for spec in self.function.inputs],
            [_value_info(spec) for spec in self.function.outputs],
            initializer=self.tensors,
        )
        return helper.make_model(
            graph,
            producer_name="nanoflux-mobile",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )

    def _form(self, segment: Segment) -> Form:
        inputs, outputs = edges(self.function, segment)
        key = ("onnx", segment.kind, inputs)
        form: Form | None = self.forms.get(key)
        if form is None or self._lacks(segment, form):
            module = segment.build()
            if form is None:
                form = self.forms[key] = make_form(module, inputs)
            self.data.put(segment.weights, module)
        if len(form.outputs) != len(outputs) or self._lacks(segment, form):
            raise NanofluxError(
                f"segment {segment.weights} is not of the kind {segment.kind}: it has other "
                "weights or outputs than the first of them"
            )
        return form

    def _lacks(self, segment: Segment, form: Form) -> bool:
        return any((segment.weights, name) not in self.data.found for name in form.weights.values())

    def _declare(self, label: str, stored: Stored) -> None:
        """The tensors of a stored weight, and the node that makes float32 `label` of them."""
        self.labels.add(label)
        if stored.values.dtype not in (np.float16, np.int8):
            self.tensors.append(_in_file(label, stored.values))
            return
        values, scale = f"{label}:{_VALUES}", f"{label}:{_SCALE}"
        self.tensors.append(_in_file(values, stored.values))
        if stored.scale:
            self.tensors.append(_in_file(scale, stored.scale))
        self.nodes.append(_decode(label, values, scale, stored))


@dataclass(frozen=True)
class _Names:
    """What the values of a form are called in one segment."""

    form: Form
    segment: Segment
    own: str

    def of(self, name: str) -> str:
        """Wires by the graph's names, weights by theirs, the rest by segment; "" is no value."""
        for theirs, ours in (
            (self.form.inputs, self.segment.inputs),
            (self.form.outputs, self.segment.outputs),
        ):
            if name in theirs:
                return ours[theirs.index(name)]
        if parameter := self.form.weights.get(name):
            return f"{self.segment.weights}/{parameter}"
        return self.own + name.lstrip("/") if name else ""


def _renamed(node: Any, names: _Names) -> Any:
    from onnx import NodeProto

    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = names.of(node.name)
    copy.input[:] = map(names.of, node.input)
    copy.output[:] = map(names.of, node.output)
    return copy


def _decode(label: str, values: str, scale: str, stored: Stored) -> Any:
    from onnx import TensorProto, helper

    name = f"{label}:decode"
    if stored.scale is None:
        return helper.make_node("Cast", [values], [label], name, to=TensorProto.FLOAT)
    kind = "DequantizeLinear"
    return helper.make_node(kind, [values, scale], [label], name, axis=stored.axis)


def _in_file(name: str, place: Place) -> Any:
    from onnx import TensorProto, helper

    tensor = TensorProto(name=name, dims=place.shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(place.dtype)
    for key, value in (("location", FILE), ("offset", place.offset), ("length", place.bytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _value_info(spec: TensorSpec) -> Any:
    from onnx import helper

    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, dtype, spec.shape)


def edges(function: Function, segment: Segment) -> tuple[tuple[Edge, ...], tuple[Edge, ...]]:
    """Types and shapes of what a segment takes and returns; wires are float32."""
    outer = {spec.name: spec.dtype for spec in (*function.inputs, *function.outputs)}
    takes, returns = (
        tuple((outer.get(name, "float32"), function.shape(name)) for name in side)
        for side in (segment.inputs, segment.outputs)
    )
    return takes, returns
