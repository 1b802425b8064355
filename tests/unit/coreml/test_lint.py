"""Each rule on a graph that breaks it and on the nearest graph that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coremltools")

from nanoflux_export.graph import MobileGraph, one_segment
from nanoflux_export.targets.coreml import target
from nanoflux_export.targets.coreml.lint_rules import RULES, Graph, Rule
from nanoflux_export.targets.coreml.program import Function, Literal, Operation, TensorType
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme

Shape = tuple[int | None, ...]
GIB = 1 << 30
FP16 = parse_scheme("fp16")


def _count(rule: str, graph: Graph) -> int:
    (found,) = (each for each in RULES if each.name == rule)
    return found.count(graph)


def _graph(
    kind: str,
    shape: Shape = (1, 64, 1, 32),
    made: Shape = (1, 64, 1, 32),
    dtype: str = "fp16",
    **constants: Any,
) -> Graph:
    """One op on x of `shape` and on constants; arrays are tensors, others settings."""
    literals = {name: _literal(value) for name, value in constants.items()}
    arguments = {"x": ("x",), **{name: (name,) for name in constants}}
    op = Operation(kind, "op", arguments, {"y": TensorType(dtype, made)})
    inputs = {"x": TensorType(dtype, shape)}
    function = Function(inputs, op.outputs, literals, (op,))
    types = {**inputs, **op.outputs, **{name: lit.type for name, lit in literals.items()}}
    return Graph(function, types, 0)


def _literal(value: Any) -> Literal:
    if isinstance(value, str):
        return Literal(TensorType("string", ()), lambda: value)
    array = np.asarray(value, np.float16 if isinstance(value, float) else None)
    names = {"float16": "fp16", "float32": "fp32", "int64": "int32"}
    kind = TensorType(names.get(array.dtype.name, array.dtype.name), array.shape)
    return Literal(kind, lambda: array)


def _weight(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.float16(0), shape)


def _sized(weight_bytes: int) -> Graph:
    return Graph(Function({}, {}, {}, ()), {}, weight_bytes)


def _mask(value: float) -> np.ndarray:
    return np.array([[0, value]], np.float16)


CASES: dict[str, tuple[Graph, Graph]] = {
    "linear-layer": (_graph("linear", weight=_weight(8, 8)), _graph("conv", weight=_weight(8, 8))),
    "io-last-axis": (_graph("relu", shape=(1, 32, 1, 48)), _graph("relu", shape=(1, 48, 1, 96))),
    "singleton-last-axis": (_graph("relu", made=(1, 64, 1, 1)), _graph("relu", made=(1, 1, 1, 1))),
    "ragged-last-axis": (_graph("relu", made=(1, 64, 1, 33)), _graph("relu", made=(1, 64, 1, 1))),
    "rank-over-five": (_graph("relu", made=(1, 1, 1, 1, 1, 32)), _graph("relu", made=(1,) * 5)),
    "float32-op": (_graph("relu", dtype="fp32"), _graph("cast", dtype="fp32")),
    "flexible-shape": (_graph("relu", shape=(1, 64, 1, None)), _graph("relu")),
    "size-over-limit": (
        _graph("relu", made=(1, 8, 16416, 32)),
        _graph("relu", made=(65536, 65536, 16384, 16384)),
    ),
    "op-off-engine": (_graph("gather"), _graph("slice_by_index")),
    "dilated-convolution": (
        _graph("conv", weight=_weight(8, 8), dilations=[2, 2]),
        _graph("conv", weight=_weight(8, 8), dilations=[1, 1]),
    ),
    "weight-file-limit": (_sized(2 * GIB + 1), _sized(2 * GIB)),
    "weight-file-chunk": (_sized(2 * GIB), _sized(10**9)),
    "fused-attention": (_graph("scaled_dot_product_attention"), _graph("matmul")),
    "odd-einsum": (
        _graph("einsum", equation="bhcq,bhck->bhkq"),
        _graph("einsum", equation="bchq, bkhc -> bkhq"),
    ),
    "last-axis-moved": (
        _graph("transpose", perm=[0, 1, 3, 2]),
        _graph("transpose", perm=[0, 2, 1, 3]),
    ),
    "subnormal-scalar": (_graph("layer_norm", epsilon=1e-6), _graph("layer_norm", epsilon=1e-4)),
    "infinite-mask": (_graph("add", y=_mask(-np.inf)), _graph("add", y=_mask(-40000))),
    "dma-notch": (
        _graph("conv", weight=_weight(2048, 4096, 1, 1)),  # 128 units of 8 KiB a core: 1 MiB
        _graph("conv", weight=_weight(1536, 6144, 1, 1)),  # 1.125 MiB
    ),
    "angles-in-graph": (_graph("cos"), _graph("tanh")),
}


def test_every_rule_has_a_case_an_advice_and_a_source() -> None:
    assert list(CASES) == [rule.name for rule in RULES]
    for rule in RULES:
        assert rule.advice
        assert "Source" in (rule.count.__doc__ or "")


@pytest.mark.parametrize("rule", CASES)
def test_counts_what_breaks_the_rule(rule: str) -> None:
    assert _count(rule, CASES[rule][0]) == 1


@pytest.mark.parametrize("rule", CASES)
def test_passes_what_keeps_the_rule(rule: str) -> None:
    assert _count(rule, CASES[rule][1]) == 0


@pytest.mark.parametrize(
    ("rule", "graph", "count"),
    [
        ("last-axis-moved", _graph("reshape", made=(1, 2, 32, 32)), 0),
        ("last-axis-moved", _graph("reshape", made=(1, 32, 1, 64)), 1),
        ("last-axis-moved", _graph("transpose", perm=[0, 2, 1, -1]), 0),
        ("io-last-axis", _graph("relu", dtype="int32", shape=(1, 7), made=(1, 7)), 0),
        ("io-last-axis", _graph("relu", shape=(1, 8, 1, 16), made=(1, 8, 1, 1)), 2),
        ("size-over-limit", _graph("relu", made=(1, 1, 16385)), 1),
        ("size-over-limit", _graph("relu", made=(1, 16385, 1, 1, 1)), 1),
        ("size-over-limit", _graph("relu", made=(1, 16385, 1, 1)), 0),
        ("subnormal-scalar", _graph("add", y=0.0), 0),
        ("infinite-mask", _graph("mul", y=_mask(-np.inf)), 0),
        ("dma-notch", _graph("conv", weight=_weight(16, 16, 1, 1)), 0),
    ],
)
def test_borders(rule: str, graph: Graph, count: int) -> None:
    assert _count(rule, graph) == count


class Rows(nn.Module):
    """Tokens as rows and a lookup: what the rules are about."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(32, 64)
        self.linear = nn.Linear(64, 64)
        self.head = nn.Linear(64, 64)

    def forward(self, tokens: Tensor) -> Tensor:
        """(1, 32) ids to (1, 32, 64)."""
        return self.head(torch.relu(self.linear(self.words(tokens))))


class Channels(nn.Module):
    """Tokens on the last axis of a 1x1 convolution: nothing to say."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(1, 64, 1, 32) to the same."""
        return torch.relu(self.conv(x))


def test_a_saved_package_is_read_without_running_it(tmp_path: Path) -> None:
    tokens = TensorSpec("tokens", ("batch", "tokens"), (1, 32), "int32")
    states = TensorSpec("states", ("batch", "tokens", "channels"), (1, 32, 64), "float32")
    path = tmp_path / "rows.mlpackage"
    graph = one_segment(Component("text_encoder", (tokens,), (states,)), Rows())
    target.write(graph, FP16, path)
    findings = target.lint(path, "text_encoder")
    assert {finding.rule: finding.count for finding in findings} == {
        "linear-layer": 2,
        "op-off-engine": 1,
    }
    assert {finding.component for finding in findings} == {"text_encoder"}
    assert all(finding.advice for finding in findings)


def test_a_graph_in_mobile_form_has_no_findings(tmp_path: Path) -> None:
    axes = ("batch", "channels", "one", "tokens")
    x, y = (TensorSpec(name, axes, (1, 64, 1, 32), "float32") for name in "xy")
    path = tmp_path / "channels.mlpackage"
    target.write(one_segment(Component("denoiser", (x,), (y,)), Channels()), FP16, path)
    assert target.lint(path, "denoiser") == ()


def test_what_functions_share_counts_once_and_what_they_do_in_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes, layer = ("batch", "channels", "one", "tokens"), Channels()
    functions = {}
    for name, tokens in (("step_low", 32), ("step_full", 64)):
        x, y = (TensorSpec(n, axes, (1, 64, 1, tokens), "float32") for n in "xy")
        functions[name] = one_segment(Component("denoiser", (x,), (y,)), layer).functions["main"]
    path = tmp_path / "both.mlpackage"
    target.write(MobileGraph("denoiser", functions), FP16, path)

    def convolution(graph: Graph) -> int:
        return len(graph.kinds("conv"))

    rules = (Rule(convolution, "none", stored=stored) for stored in (True, False))
    monkeypatch.setattr("nanoflux_export.targets.coreml.lint.RULES", tuple(rules))
    assert [finding.count for finding in target.lint(path, "denoiser")] == [1, 2]


def test_refuses_what_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a Core ML package"):
        target.lint(tmp_path, "denoiser")
