"""A saved .tflite file as lint rules see it: who makes a value, who takes it, and constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanoflux_export.targets.litert.model_file import Graph, ModelFile, Op, Tensor

Floats = NDArray[np.floating]
Values = Callable[[int, int], Floats | None]
"""Values of a constant by the number of its graph and its own; None for what is no float."""

_FLOATS = {"FLOAT16": np.float16, "FLOAT32": np.float32}


@dataclass(frozen=True)
class View:
    """One graph of a file, and a reader of its float constants by their number."""

    graph: Graph
    values: Callable[[int], Floats | None]

    @property
    def ops(self) -> tuple[Op, ...]:
        """All ops in the order they run."""
        return self.graph.ops

    def name(self, op: Op) -> str:
        """What viewers call an op: its kind and the tensor that it makes."""
        return f"{op.kind} {self.graph.tensors[op.outputs[0]].name}".strip()

    def kinds(self, *kinds: str) -> list[Op]:
        """The ops of these kinds."""
        return [op for op in self.ops if op.kind in kinds]

    def tensors(self, op: Op) -> Iterator[Tensor]:
        """All that an op takes and makes."""
        return (self.graph.tensors[at] for at in (*op.inputs, *op.outputs) if at >= 0)

    @cached_property
    def makers(self) -> dict[int, Op]:
        """Which op makes a tensor."""
        return {at: op for op in self.ops for at in op.outputs}

    @cached_property
    def takers(self) -> dict[int, list[Op]]:
        """Which ops take a tensor."""
        found: dict[int, list[Op]] = {}
        for op in self.ops:
            for at in set(op.inputs):
                found.setdefault(at, []).append(op)
        return found

    def users(self, op: Op) -> Iterator[Op]:
        """The ops that take what an op makes, seen through reshapes."""
        for user in (user for at in op.outputs for user in self.takers.get(at, ())):
            if user.kind == "RESHAPE":
                yield from self.users(user)
            else:
                yield user

    def constants(self, op: Op) -> Iterator[Floats]:
        """The float constants that an op takes."""
        found = (self.values(at) for at in op.inputs if at >= 0)
        return (values for values in found if values is not None)

    def scalars(self, op: Op) -> Iterator[float]:
        """Those of one value."""
        return (float(values.flat[0]) for values in self.constants(op) if values.size == 1)


@dataclass(frozen=True)
class File:
    """All graphs of a file, and its bytes."""

    graphs: Sequence[View]
    size_bytes: int


def view(model: ModelFile, values: Values = lambda graph, tensor: None) -> File:
    """A file already read."""

    def reader(number: int) -> Callable[[int], Floats | None]:
        return lambda at: values(number, at)

    graphs = [View(graph, reader(i)) for i, graph in enumerate(model.graphs)]
    return File(graphs, model.size_bytes)


def constants_of(path: Path) -> Values:
    """A reader of the float constants of a file known to be whole."""
    from nanoflux_export.targets.litert.flatbuffer import TYPES, content, unpacked

    model, data = unpacked(path)

    def values(graph: int, at: int) -> Floats | None:
        tensor = model.subgraphs[graph].tensors[at]
        dtype = _FLOATS.get(TYPES[tensor.type])
        held = content(model.buffers[tensor.buffer], data)
        return held.view(dtype) if dtype and held.size else None

    return values
