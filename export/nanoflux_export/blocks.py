"""A saved graph cut into blocks, and what each of them costs.

Every target translates its file into a `Graph`; everything after that is the same for all.

Where a block begins and ends: an op that multiplies by (or looks up in) a stored weight belongs to
the part of the network that the weight's name tells. The ops between two parts (norms, activations,
sums) belong to the earlier part up to the last residual sum between them, and to the later part
from there on. A graph whose weights tell nothing is a single block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from nanoflux_mobile.cost import SCHEMA, BlockCost, Cost


@dataclass(frozen=True)
class Value:
    """A tensor: its bytes, whether it is stored, and the part of the network its name tells."""

    bytes: int
    constant: bool = False
    part: str = ""


@dataclass(frozen=True)
class Op:
    """One op on values by name.

    `view`: the output is the first input in another shape, or as stored. `picks`: it reads only
    what it makes, as slices do. `located`: the weight it takes tells where in the network it is.
    `off`: it does not run on the accelerator.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    macs: int = 0
    view: bool = False
    picks: bool = False
    located: bool = False
    off: bool = False


@dataclass(frozen=True)
class Graph:
    """One function in execution order; names missing from `values` are settings, not data."""

    function: str
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ops: tuple[Op, ...]


def file_cost(target: str, component: str, graphs: Sequence[Graph]) -> Cost:
    """What the functions of one file cost."""
    whole = [without_views(graph) for graph in graphs]
    blocks = (block for graph in whole for block in _blocks(component, graph))
    return Cost(SCHEMA, target, tuple(blocks), sum(map(_crossings, whole)))


def without_views(graph: Graph) -> Graph:
    """The same graph where every op takes the value itself instead of a view of it."""
    source: dict[str, str] = {}
    ops = []
    for op in graph.ops:
        taken = (source.get(name, name) for name in op.inputs if name in graph.values)
        inputs = tuple(dict.fromkeys(taken))
        if op.view and inputs:
            source[op.outputs[0]] = inputs[0]
        else:
            ops.append(replace(op, inputs=inputs))
    outputs = tuple(dict.fromkeys(source.get(name, name) for name in graph.outputs))
    return replace(graph, ops=tuple(ops), outputs=outputs)


def _blocks(component: str, graph: Graph) -> Iterator[BlockCost]:
    values, held = graph.values, _held_bytes(graph)
    at: dict[str, list[int]] = {}
    for i, part in enumerate(_parts(graph)):
        at.setdefault(part, []).append(i)
    seen: set[str] = set()
    for part, places in at.items():
        ops = [graph.ops[i] for i in places]
        stored = {name for op in ops for name in op.inputs if values[name].constant}
        yield BlockCost(
            component=component,
            function=graph.function,
            block=part,
            macs=sum(op.macs for op in ops),
            weight_bytes=sum(values[name].bytes for name in stored - seen),
            activation_bytes=sum(_moved_bytes(graph, op) for op in ops)
            + sum(values[name].bytes for name in stored & seen),
            working_set_bytes=max(held[i] for i in places),
            ops=len(ops),
        )
        seen |= stored


def _parts(graph: Graph) -> list[str]:
    """The block of every op."""
    told = [_told(graph, op) for op in graph.ops]
    first = next(filter(None, told), graph.function)
    parts, part = list(told), ""
    for i in reversed(range(len(told))):
        part = told[i] or ("" if _is_residual(graph, graph.ops[i]) else part)
        parts[i] = part
    for i, part in enumerate(parts):
        parts[i] = part or (parts[i - 1] if i else first)
    return parts


def _told(graph: Graph, op: Op) -> str:
    """The part that the weight of an op tells, or else its result."""
    weights = [graph.values[name] for name in op.inputs if graph.values[name].constant]
    if not (op.located and weights):
        return ""
    return next((value.part for value in (*weights, graph.values[op.outputs[0]]) if value.part), "")


def _is_residual(graph: Graph, op: Op) -> bool:
    """Whether an op adds two computed values of the size of its result."""
    taken = [graph.values[name] for name in op.inputs]
    sizes = {value.bytes for value in (*taken, graph.values[op.outputs[0]])}
    computed = not any(value.constant for value in taken)
    return op.kind.lower() == "add" and len(taken) == 2 and computed and len(sizes) == 1


def _moved_bytes(graph: Graph, op: Op) -> int:
    """Bytes of computed values that an op reads and writes."""
    values = graph.values
    read = sum(values[name].bytes for name in op.inputs if not values[name].constant)
    made = sum(values[name].bytes for name in op.outputs)
    return made + (min(read, made) if op.picks else read)


def _held_bytes(graph: Graph) -> list[int]:
    """Bytes of all computed values that exist while each op runs."""
    values, end = graph.values, len(graph.ops)
    last = {name: i for i, op in enumerate(graph.ops) for name in (*op.outputs, *op.inputs)}
    last |= dict.fromkeys(graph.outputs, end)
    change = [0] * (end + 2)
    born = dict.fromkeys(graph.inputs, 0)
    born |= {name: i for i, op in enumerate(graph.ops) for name in op.outputs}
    for name, start in born.items():
        change[start] += values[name].bytes
        change[last.get(name, start) + 1] -= values[name].bytes
    held, now = [], 0
    for step in change[:end]:
        now += step
        held.append(now)
    return held


def _crossings(graph: Graph) -> int:
    """Passes between processors; what is computed from constants alone is computed beforehand."""
    values = graph.values
    runs = (op for op in graph.ops if any(not values[name].constant for name in op.inputs))
    return sum(before.off != after.off for before, after in pairwise(runs))
