"""What is inside a saved .mlpackage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanoflux_export.graph import Summary, TensorLine
from nanoflux_export.targets.coreml.package import Package, open_package
from nanoflux_export.targets.coreml.program import TensorType, read_function


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
    """How many weights are stored in which way; one that two functions share counts once."""
    found: dict[tuple[int, ...], str] = {}
    for function in package.model.mlProgram.functions.values():
        for block in function.block_specializations.values():
            for op in block.operations:
                kind = "dense" if op.type == "const" else op.type
                if kind == "dense" or kind.startswith("constexpr_"):
                    found[_places(op)] = kind.removeprefix("constexpr_")
    found.pop((), None)  # spelled out in the program
    return dict(Counter(found.values()).most_common())


def _places(op: Any) -> tuple[int, ...]:
    """Where in the weight file a constant lies; a compressed one has several parts."""
    bound = (binding.value for each in op.inputs.values() for binding in each.arguments)
    values = (*op.attributes.values(), *bound)
    return tuple(v.blobFileValue.offset for v in values if v.HasField("blobFileValue"))
