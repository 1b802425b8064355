"""A saved package as lint rules see it: the ops of each function, and who makes their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanoflux_export.targets.coreml.package import Package
from nanoflux_export.targets.coreml.program import Function, Operation, TensorType, read_function

Values = NDArray[Any]
"""A decoded constant: numbers, or a text."""

FLOATS = ("fp16", "fp32")
"""What the program calls the types of results that can be computed on the Neural Engine."""


@dataclass(frozen=True)
class Graph:
    """One function of a saved program, and the type of its every value."""

    function: Function
    types: Mapping[str, TensorType]

    @cached_property
    def makers(self) -> Mapping[str, Operation]:
        """Which op makes a value."""
        return {name: op for op in self.function.operations for name in op.outputs}

    def kinds(self, *kinds: str) -> list[Operation]:
        """The ops of these kinds."""
        return [op for op in self.function.operations if op.kind in kinds]

    def results(self) -> Iterator[tuple[str, TensorType]]:
        """The name of every op with each type it makes."""
        for op in self.function.operations:
            for made in op.outputs.values():
                yield op.name, made

    def floats(self) -> Iterator[tuple[str, TensorType]]:
        """The results that are numbers with a fraction."""
        return ((name, made) for name, made in self.results() if made.dtype in FLOATS)

    def edges(self) -> dict[str, TensorType]:
        """Inputs and outputs by name."""
        return {**self.function.inputs, **self.function.outputs}

    def given(self, op: Operation, parameter: str) -> TensorType:
        """The type of what an op is given."""
        return self.types[op.arguments[parameter][0]]

    def maker(self, op: Operation, parameter: str) -> Operation | None:
        """The op that makes what an op is given; None for inputs and constants."""
        return self.makers.get(op.arguments[parameter][0])

    def constant(self, name: str) -> Values | None:
        """The decoded constant of that name, None where a value is computed."""
        literal = self.function.literals.get(name)
        return None if literal is None else np.asarray(literal.read())

    def constants(self, op: Operation, parameter: str = "") -> Iterator[Values]:
        """The decoded constants that an op is given, those of one parameter or all."""
        for key, names in op.arguments.items():
            found = map(self.constant, names if parameter in ("", key) else ())
            yield from (values for values in found if values is not None)


@dataclass(frozen=True)
class File:
    """All functions of a package, and the bytes of its largest weight file."""

    graphs: tuple[Graph, ...]
    weight_bytes: int = 0


def read_file(package: Package) -> File:
    """Every function of an open package."""
    names = sorted(package.model.mlProgram.functions)
    sizes = [file.stat().st_size for file in package.model_folder.rglob("*.bin")]
    return File(tuple(_graph(package, name) for name in names), max(sizes, default=0))


def _graph(package: Package, name: str) -> Graph:
    function = read_function(package, name)
    types = dict(function.inputs)
    types |= {key: literal.type for key, literal in function.literals.items()}
    for operation in function.operations:
        types |= operation.outputs
    return Graph(function, types)


def known(made: TensorType) -> tuple[int, ...]:
    """A shape without the sizes that are left open."""
    return tuple(size for size in made.shape if size is not None)
