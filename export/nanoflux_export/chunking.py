"""Graphs too large for one file, cut into chunks that run one after another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from nanoflux_export.compression.plan import Storage, plan_of
from nanoflux_export.graph import Function, MobileGraph, Segment
from nanoflux_mobile.spec import DType, TensorSpec

_SPARE = 1.03
"""What a file may hold beside the weights at their nominal bits: palettes, scales, tables."""


def cut(
    graph: MobileGraph, storage: Storage, most_bytes: int, wires: DType
) -> tuple[MobileGraph, ...]:
    """The graph as chunks of at most `most_bytes` of weights, in the order they run.

    A segment that several functions run lies in one chunk only, so that they share its weights;
    segments without weights that read nothing but the host's inputs are repeated where needed.
    `wires` is the type of what one chunk hands to the next. A single segment is never cut.
    """
    places = _places(graph, storage, most_bytes)
    count = 1 + max(places.values(), default=0)
    if count == 1:
        return (graph,)
    chunks = []
    for index in range(count):
        functions = {
            name: _part(function, places, index, wires)
            for name, function in graph.functions.items()
        }
        present = {name: part for name, part in functions.items() if part.segments}
        chunks.append(replace(graph, functions=present))
    return tuple(chunks)


def stored_bytes(segment: Segment, storage: Storage) -> int:
    """About what a segment takes in a file, at most."""
    bits = plan_of(storage).most_bits(segment.weights)
    return int(_SPARE * segment.parameters * bits / 8)


def _places(graph: MobileGraph, storage: Storage, most_bytes: int) -> dict[str, int]:
    """The chunk of every name of weights; equally filled chunks, as few as fit."""
    sizes = {s.weights: stored_bytes(s, storage) for s in _in_order(graph)}
    total = sum(sizes.values())
    share = total / max(1, -(-total // most_bytes))
    places, filled, chunk = {}, 0, 0
    for weights, size in sizes.items():
        if size and filled and (filled + size > most_bytes or filled >= share):
            filled, chunk = 0, chunk + 1
        filled += size
        places[weights] = chunk
    return places


def _in_order(graph: MobileGraph) -> list[Segment]:
    """Every segment once, by its weights, in an order that suits all functions.

    The longest function has them nearly all; what only others have comes where they first need it.
    """
    functions = sorted(graph.functions.values(), key=lambda f: -len(f.segments))
    order: list[Segment] = []
    for function in functions:
        at = 0
        for segment in function.segments:
            known = next((i for i, s in enumerate(order) if s.weights == segment.weights), None)
            if known is None:
                order.insert(at, segment)
                at += 1
            else:
                at = known + 1
    return order


def _part(function: Function, places: Mapping[str, int], index: int, wires: DType) -> Function:
    """What of a function runs in chunk `index`; without segments where that is nothing."""
    given, promised = ({s.name: s for s in side} for side in (function.inputs, function.outputs))
    free = [s for s in function.segments if not s.parameters and given.keys() >= set(s.inputs)]
    placed = [s for s in function.segments if places[s.weights] == index]
    own = [s for s in placed if s not in free or promised.keys() & set(s.outputs)]
    lent = [s for s in free if s not in own and _taken(own) & set(s.outputs)]
    segments = tuple(s for s in function.segments if s in own or s in lent)
    made, needed = _made(segments), _taken(segments)
    later = _taken(s for s in function.segments if places[s.weights] > index and s not in free)
    leaving = _made(s for s in own if s not in free) & later
    entering = needed - made - given.keys()
    specs = {name: _wire(name, shape, wires) for name, shape in function.wires.items()}
    return Function(
        inputs=(
            *(spec for name, spec in given.items() if name in needed),
            *(spec for name, spec in (specs | promised).items() if name in entering),
        ),
        outputs=(
            *(spec for name, spec in specs.items() if name in leaving),
            *(spec for name, spec in promised.items() if name in _made(own)),
        ),
        segments=segments,
        wires={n: shape for n, shape in function.wires.items() if n in needed | made},
    )


def _wire(name: str, shape: tuple[int, ...], dtype: DType) -> TensorSpec:
    axes = ("batch", "channels", "rows", "columns")
    return TensorSpec(name, axes, shape, dtype)


def _taken(segments: Iterable[Segment]) -> set[str]:
    return {name for segment in segments for name in segment.inputs}


def _made(segments: Iterable[Segment]) -> set[str]:
    return {name for segment in segments for name in segment.outputs}
