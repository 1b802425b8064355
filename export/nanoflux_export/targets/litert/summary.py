"""What is inside a saved .tflite file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from nanoflux_export.graph import Summary, TensorLine
from nanoflux_export.targets.litert.model_file import Tensor, read_model


def summarize(path: Path) -> Summary:
    """Ops, inputs, outputs and weight storage of every signature of a file."""
    model = read_model(path)
    first = model.graphs[0]
    kinds = Counter(op.kind for graph in model.graphs for op in graph.ops)
    constants = (t for graph in model.graphs for t in graph.tensors if t.constant)
    stored = Counter(dtype.lower() for _, dtype in {(t.buffer, t.dtype) for t in constants})
    return Summary(
        format="LiteRT flatbuffer",
        bytes=model.size_bytes,
        functions=tuple(graph.signature for graph in model.graphs),
        inputs=_lines(first.inputs),
        outputs=_lines(first.outputs),
        ops=dict(kinds.most_common()),
        storage=dict(stored.most_common()),
    )


def _lines(values: Mapping[str, Tensor]) -> tuple[TensorLine, ...]:
    return tuple(TensorLine(name, t.dtype.lower(), t.shape) for name, t in values.items())
