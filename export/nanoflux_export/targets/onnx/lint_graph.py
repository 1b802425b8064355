"""A saved ONNX folder as lint rules see it: who makes a value, and constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nanoflux_export.targets.onnx.model_file import (
    Graph,
    Op,
    model_paths,
    parse,
    read_graphs,
    stored,
)

FLOATS = ("float16", "float32")


@dataclass(frozen=True)
class View:
    """One function of a file, and a reader of its constants by name."""

    graph: Graph
    values: Callable[[str], np.ndarray]

    @cached_property
    def makers(self) -> dict[str, Op]:
        """Which op makes a value."""
        return {name: op for op in self.graph.ops for name in op.outputs}

    def kinds(self, *kinds: str) -> list[Op]:
        """The ops of these kinds."""
        return [op for op in self.graph.ops if op.kind in kinds]

    def constants(self, op: Op) -> Iterator[np.ndarray]:
        """The float constants that an op takes."""
        given = ((name, self.graph.values[name]) for name in op.inputs if name)
        return (self.values(n) for n, v in given if v.constant and v.dtype in FLOATS)

    def scalars(self, op: Op) -> Iterator[float]:
        """Those of one value."""
        return (float(values.flat[0]) for values in self.constants(op) if values.size == 1)


def read_views(path: Path) -> tuple[View, ...]:
    """Every function of a file.

    Raises:
        InputError: no readable model there.
    """
    weights = stored(path)
    files = model_paths(path)
    return tuple(
        View(graph, _values(files[graph.function], weights)) for graph in read_graphs(path)
    )


def _values(path: Path, weights: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
    """Constants that the graph spells out, or else the stored weight of that name."""
    from onnx import numpy_helper

    spelled = {
        node.output[0]: attribute.t
        for node in parse(path).graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }

    def values(name: str) -> np.ndarray:
        return numpy_helper.to_array(spelled[name]) if name in spelled else weights(name)

    return values
