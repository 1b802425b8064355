"""What is inside a saved ONNX folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from nanoflux_export.graph import Summary, TensorLine
from nanoflux_export.targets.onnx.model_file import Tensor, read_graphs


def summarize(path: Path) -> Summary:
    """Ops and weight storage of all functions, inputs and outputs of the first.

    Raises:
        InputError: no readable model there.
    """
    graphs = read_graphs(path)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    kinds = Counter(op.kind for graph in graphs for op in graph.ops)
    weights = {name: graph.values[name].dtype for graph in graphs for name in graph.weights}
    first = graphs[0]
    return Summary(
        format="ONNX",
        bytes=sum(file.stat().st_size for file in files),
        functions=tuple(graph.function for graph in graphs),
        inputs=_lines(first.values, first.inputs),
        outputs=_lines(first.values, first.outputs),
        ops=dict(kinds.most_common()),
        storage=dict(Counter(weights.values()).most_common()),
    )


def _lines(values: Mapping[str, Tensor], names: tuple[str, ...]) -> tuple[TensorLine, ...]:
    return tuple(TensorLine(name, values[name].dtype, values[name].shape) for name in names)
