"""Each rule on a model that breaks it, which names the culprit, and on its mended twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from nanoflux_export.targets.onnx import target
from nanoflux_export.targets.onnx.lint_rules import CROSSINGS, RULES

F, I64 = TensorProto.FLOAT, TensorProto.INT64


@dataclass(frozen=True)
class Model:
    """Nodes from the input x to the output y, which the culprit makes."""

    nodes: Sequence[NodeProto]
    shape: tuple[Any, ...] = (1, 2)
    dtype: int = F
    stored: float | None = None  # of a weight called s

    def save(self, path: Path) -> Path:
        x = helper.make_tensor_value_info("x", self.dtype, self.shape)
        y = helper.make_tensor_value_info("y", self.dtype, None)
        weights = [] if self.stored is None else [_scalar(self.stored, "s")]
        graph = helper.make_graph(self.nodes, "any", [x], [y], weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        onnx.save(made, str(path))
        return path


def _scalar(value: float, name: str) -> TensorProto:
    return numpy_helper.from_array(np.array([value], np.float32), name)


def one(kind: str, shape: tuple[Any, ...] = (1, 2), dtype: int = F, **attributes: Any) -> Model:
    """A single op of one input."""
    return Model([helper.make_node(kind, ["x"], ["y"], **attributes)], shape, dtype)


def chain(*kinds: str) -> Model:
    """x through ops, one after another."""
    names = ["x", *(f"h{i}" for i in range(len(kinds) - 1)), "y"]
    pairs = zip(kinds, names, names[1:], strict=False)
    return Model([helper.make_node(kind, [a], [b]) for kind, a, b in pairs])


def with_scalar(kind: str, value: float) -> Model:
    """x and a stored scalar through an op."""
    return Model([helper.make_node(kind, ["x", "s"], ["y"])], stored=value)


def squares(scale: float) -> Model:
    """The mean of x times a scalar that the graph spells out, squared."""
    nodes = [
        helper.make_node("Constant", [], ["c"], value=_scalar(scale, "c")),
        helper.make_node("Mul", ["x", "c"], ["small"]),
        helper.make_node("Mul", ["small", "small"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["y"], keepdims=1),
    ]
    return Model(nodes)


CASES: dict[str, tuple[Model, Model]] = {
    "npu/refused-op": (one("Erf"), one("Tanh")),
    "npu/rank": (one("Relu", (1,) * 6), one("Relu", (1,) * 5)),
    "npu/dynamic-shape": (one("Relu", ("batch", 2)), one("Relu", (1, 2))),
    "npu/wide-values": (one("Neg", (2,), I64), one("Neg", (2,))),
    "npu/infinite-mask": (with_scalar("Add", -np.inf), with_scalar("Add", -40000.0)),
    "npu/angles": (one("Cos"), one("Tanh")),
    "npu/gelu-by-tanh": (one("Gelu", approximate="tanh"), one("Gelu")),
    "npu/half-range": (squares(1.0), squares(1 / 16)),
    "npu/subnormal-epsilon": (with_scalar("Add", 1e-6), with_scalar("Add", 1e-4)),
    "npu/crossings": (chain("Relu", "Erf", "Relu"), chain("Erf", "Relu")),
}
NAMED = {"npu/rank": {"x", "y"}, "npu/dynamic-shape": {"x", "y"}, "npu/crossings": {"h1"}}
"""What findings name where it is not y."""


def found(model: Model, path: Path) -> dict[str, set[str]]:
    return {f.rule: set(f.ops) for f in target.lint(model.save(path), "denoiser")}


@pytest.mark.parametrize("rule", CASES)
def test_a_model_that_breaks_a_rule_breaks_it_alone(rule: str, tmp_path: Path) -> None:
    told = found(CASES[rule][0], tmp_path / "a.onnx")
    others = {"npu/refused-op"} if rule == CROSSINGS.id else set()
    assert told.keys() - others == {rule}
    assert told[rule] == NAMED.get(rule, {"y"})


@pytest.mark.parametrize("rule", CASES)
def test_its_mended_twin_keeps_it(rule: str, tmp_path: Path) -> None:
    assert rule not in found(CASES[rule][1], tmp_path / "a.onnx")


def test_every_rule_has_models() -> None:
    assert {*CASES} == {*(rule.id for rule in RULES), CROSSINGS.id}


def test_our_own_graphs_keep_all_but_notes(saved: Mapping[str, Path]) -> None:
    """Three blocks in one function, two in the other."""
    for folder in saved.values():
        findings = {finding.rule: finding for finding in target.lint(folder, "denoiser")}
        assert findings["npu/gelu-by-tanh"].count == 5
        assert {finding.severity for finding in findings.values()} == {"note"}
