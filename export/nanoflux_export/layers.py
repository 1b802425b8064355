"""The layers of a graph whose weights can be stored small, and which of them a recipe means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from nanoflux_export.compression.selection import OUTPUT_AXES
from nanoflux_export.graph import MobileGraph, Segment
from nanoflux_mobile.errors import InputError

Wish = TypeVar("Wish")


@dataclass(frozen=True)
class Layer:
    """A weight that has a scheme of its own.

    name: that of its segment's weights, a slash, and its parameter's, as in
        `singles.3/block.mlp.weight`.
    segment: `Segment.weights` of the segment that holds it.
    module: the path of its module inside the segment's.
    shape, axis: of the weight, and the axis that counts output channels.
    """

    name: str
    segment: str
    module: str
    shape: tuple[int, ...]
    axis: int

    @property
    def inputs(self) -> int:
        """Channels that enter it (of one group of a convolution)."""
        return self.shape[0 if self.axis else 1]


def compressible(segment: Segment, module: nn.Module) -> Iterator[tuple[Layer, nn.Module]]:
    """Every layer of a segment's module that can be stored small, and its own module."""
    seen: set[int] = set()
    for path, part in module.named_modules():
        axis = next((axis for kind, axis in OUTPUT_AXES.items() if isinstance(part, kind)), None)
        if axis is None or id(part.weight) in seen:
            continue
        seen.add(id(part.weight))
        parameter = f"{path}.weight" if path else "weight"
        name = f"{segment.weights}/{parameter}"
        yield Layer(name, segment.weights, path, tuple(part.weight.shape), axis), part


def distinct(graph: MobileGraph) -> dict[str, Segment]:
    """The segments of all functions, one for each name of weights."""
    segments = (s for function in graph.functions.values() for s in function.segments)
    return {segment.weights: segment for segment in segments}


def layers_of(graph: MobileGraph) -> tuple[Layer, ...]:
    """All layers of a graph, in the order they run; builds its segments one by one."""
    return tuple(
        layer
        for segment in distinct(graph).values()
        if segment.parameters
        for layer, _ in compressible(segment, segment.build())
    )


def resolved(
    wishes: Mapping[str, Wish],
    layers: Sequence[Layer],
    classes: Mapping[str, Sequence[str]],
    where: str,
) -> dict[str, Wish]:
    """A recipe's wishes by class or pattern as wishes by layer; the last that fits holds.

    InputError, opened by `where`, for a name that is no class and fits no layer.
    """
    found: dict[str, Wish] = {}
    for name, wish in wishes.items():
        patterns = classes.get(name, (name,))
        fitting = [x.name for x in layers if any(fnmatchcase(x.name, p) for p in patterns)]
        if not fitting:
            known = ", ".join(classes) or "none"
            raise InputError(
                f"{where}.layers names {name!r}, which is no class of layers ({known}) and fits no "
                f"layer; layers are called like {layers[0].name}"
            )
        found |= dict.fromkeys(fitting, wish)
    return found
