"""What is inside a saved .mlpackage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nanoflux_export.graph import Summary, TensorLine
from nanoflux_export.targets.coreml.package import Package, open_package
from nanoflux_export.targets.coreml.program import TensorType, read_function

_DECODER = "constexpr_"


def summarize(path: Path) -> Summary:
    """Weight storage of a package, its ops, and inputs and outputs by name over all functions.

    A weight that two functions share counts once.
    """
    package = open_package(path)
    functions = [read_function(package, name) for name in sorted(package.model.mlProgram.functions)]
    kinds = Counter(op.kind for function in functions for op in function.operations)
    return Summary(
        format="Core ML ML Program",
        bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        functions=tuple(sorted(package.model.mlProgram.functions)),
        inputs=_lines({k: v for function in functions for k, v in function.inputs.items()}),
        outputs=_lines({k: v for function in functions for k, v in function.outputs.items()}),
        ops=dict(kinds.most_common()),
        storage=_storage(package),
    )


def _lines(values: Mapping[str, TensorType]) -> tuple[TensorLine, ...]:
    return tuple(TensorLine(name, kind.dtype, kind.shape) for name, kind in values.items())


def _storage(package: Package) -> dict[str, int]:
    """How many weights are stored in which way; one that two functions share counts once.

    A way is the ops that make the weight of what is stored, in their order.
    """
    found: dict[tuple[int, ...], str] = {}
    for function in package.model.mlProgram.functions.values():
        for block in function.block_specializations.values():
            found |= _weights(block.operations)
    found.pop((), None)  # spelled out in the program
    return dict(Counter(found.values()).most_common())


def _weights(operations: Iterable[Any]) -> dict[tuple[int, ...], str]:
    """The ways of a program's constants, by where in the weight file their parts lie."""
    made: dict[str, tuple[tuple[int, ...], str]] = {}
    parts: set[str] = set()
    for op in operations:
        if op.type != "const" and not op.type.startswith(_DECODER):
            continue
        bound = [binding for each in op.inputs.values() for binding in each.arguments]
        names = [binding.name for binding in bound if binding.name in made]
        taken = dict.fromkeys(made[name] for name in names)
        held = (*op.attributes.values(), *(binding.value for binding in bound))
        own = tuple(v.blobFileValue.offset for v in held if v.HasField("blobFileValue"))
        place = tuple(at for places, _ in taken for at in places) + own
        way = " + ".join([*(way for _, way in taken), op.type.removeprefix(_DECODER)])
        made |= {value.name: (place, way) for value in op.outputs}
        parts.update(names)
    ways = (item for name, item in made.items() if name not in parts)
    return {place: "dense" if way == "const" else way for place, way in ways}
