"""What the NPU cannot take, on models made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import NodeProto, TensorProto, helper

from nanoflux_export.targets.onnx import target

F, I64 = TensorProto.FLOAT, TensorProto.INT64


def model(path: Path, nodes: Sequence[NodeProto], shape: Sequence[Any], dtype: int = F) -> Path:
    """One input x of `shape`, one output y of any."""
    x = helper.make_tensor_value_info("x", dtype, shape)
    y = helper.make_tensor_value_info("y", dtype, None)
    graph = helper.make_graph(nodes, "any", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), str(path))
    return path


CASES: tuple[tuple[str, int, list[NodeProto], list[Any], int], ...] = (
    ("op-off-npu: Erf", 1, [helper.make_node("Erf", ["x"], ["y"])], [1, 2], F),
    ("rank-over-five", 2, [helper.make_node("Relu", ["x"], ["y"])], [1] * 6, F),
    ("dynamic-shape", 2, [helper.make_node("Relu", ["x"], ["y"])], ["batch", 2], F),
    ("wide-values", 1, [helper.make_node("Add", ["x", "x"], ["y"])], [2], I64),
    ("gelu-by-tanh", 1, [helper.make_node("Gelu", ["x"], ["y"], approximate="tanh")], [2], F),
)


@pytest.mark.parametrize(("rule", "count", "nodes", "shape", "dtype"), CASES)
def test_each_rule_finds_what_it_is_for(
    tmp_path: Path, rule: str, count: int, nodes: list[NodeProto], shape: list[Any], dtype: int
) -> None:
    (found,) = target.lint(model(tmp_path / "a.onnx", nodes, shape, dtype), "denoiser")
    assert (found.component, found.rule, found.count) == ("denoiser", rule, count)


def test_a_clean_graph_has_no_findings(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gelu", ["x"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    assert target.lint(model(tmp_path / "a.onnx", nodes, [1, 2, 3, 4]), "denoiser") == ()


def test_our_own_graphs(saved: Mapping[str, Path]) -> None:
    """Only the note: three blocks in one function, two in the other."""
    for folder in saved.values():
        assert [(f.rule, f.count) for f in target.lint(folder, "denoiser")] == [("gelu-by-tanh", 5)]
