"""What is inside a saved .mlpackage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from nanoflux_export.graph import Summary, TensorLine
from nanoflux_export.targets.coreml.package import Package, open_package
from nanoflux_export.targets.coreml.program import TensorType, read_function


def summarize(path: Path) -> Summary:
    """Ops, inputs, outputs and weight storage of a package's main function."""
    package = open_package(path)
    function = read_function(package, "main")
    kinds = Counter(op.kind for op in function.operations)
    return Summary(
        format="Core ML ML Program",
        bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        functions=tuple(sorted(package.model.mlProgram.functions)),
        inputs=_lines(function.inputs),
        outputs=_lines(function.outputs),
        ops=dict(kinds.most_common()),
        storage=_storage(package),
    )


def _lines(values: Mapping[str, TensorType]) -> tuple[TensorLine, ...]:
    return tuple(TensorLine(name, kind.dtype, kind.shape) for name, kind in values.items())


def _storage(package: Package) -> dict[str, int]:
    """How many weights are stored in which way."""
    found: Counter[str] = Counter()
    for function in package.model.mlProgram.functions.values():
        for block in function.block_specializations.values():
            for op in block.operations:
                stored = "val" in op.attributes and op.attributes["val"].HasField("blobFileValue")
                if op.type.startswith("constexpr_"):
                    found[op.type.removeprefix("constexpr_")] += 1
                elif op.type == "const" and stored:
                    found["dense"] += 1
    return dict(found.most_common())
