"""Pairs of quantize and dequantize before the layers of a program that compute on 8-bit inputs.

coremltools' linear_quantize_activations writes the same; on phones that have them, the pair and the
integers of the weight make the layer an 8-bit one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nanoflux_export.compression.activation_rounding import activation_scale
from nanoflux_export.compression.plan import Plan
from nanoflux_export.targets.coreml.program import fixed, tensor_type
from nanoflux_export.targets.coreml.protos import constant, operation, scalar, value_type

_LAYERS = ("conv", "linear")


@dataclass
class RoundedInputs:
    """One function on its way to be written.

    `types` holds the types of the values made so far; `grids` says what a value is called once it
    was rounded in steps of a size, so that layers of one input and one range share a pair.
    """

    plan: Plan
    types: dict[str, Any]
    grids: dict[tuple[str, float], str] = field(default_factory=dict)

    def passed(self, ops: Iterable[Any], layers: Mapping[str, str]) -> Iterator[Any]:
        """The operations with the pairs between them; `layers` names the layer of every weight."""
        for op in ops:
            layer = self._layer(op, layers)
            if layer:
                yield from self._pair(op.inputs["x"].arguments[0], layer)
            self.types.update((value.name, value.type) for value in op.outputs)
            yield op

    def _layer(self, op: Any, layers: Mapping[str, str]) -> str:
        if op.type not in _LAYERS:
            return ""
        layer = layers.get(op.inputs["weight"].arguments[0].name, "")
        return layer if layer and self.plan.of(layer).activations == 8 else ""

    def _pair(self, taken: Any, layer: str) -> Iterator[Any]:
        """The operations that round what a layer takes, if none do yet; it takes that then."""
        old, scale = taken.name, float(activation_scale(self.plan, layer))
        known = self.grids.get((old, scale))
        taken.name = known or f"{old}__grid_{len(self.grids)}"
        if known is None:
            self.grids[old, scale] = taken.name
            yield from _rounding(old, taken.name, scale, fixed(tensor_type(self.types[old])))


def _rounding(old: str, new: str, scale: float, shape: tuple[int, ...]) -> Iterator[Any]:
    step, kind, integers = (f"{new}_{part}" for part in ("step", "type", "integers"))
    yield constant(step, scalar("fp16", scale))
    yield constant(kind, scalar("string", "int8"))
    made = {integers: value_type("int8", shape)}
    yield operation("quantize", made, {"input": old, "scale": step, "output_dtype": kind})
    made = {new: value_type("fp16", shape)}
    yield operation("dequantize", made, {"input": integers, "scale": step})
