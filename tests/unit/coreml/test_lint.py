"""Each rule on a program that breaks it, which names the culprit, and on its mended twin.

The programs are built with coremltools' own builder, saved with its own writer, and read back.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coremltools")

import coremltools as ct
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil import mil
from coremltools.converters.mil.backend.mil.load import load as to_spec
from coremltools.converters.mil.mil import types

from nanoflux_export.findings import broken
from nanoflux_export.graph import MobileGraph, one_segment
from nanoflux_export.targets.coreml import target
from nanoflux_export.targets.coreml.lint_graph import File, Graph
from nanoflux_export.targets.coreml.lint_rules import CROSSINGS, LEAVING, RULES
from nanoflux_export.targets.coreml.program import Function, Operation, TensorType
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme

Build = Callable[..., Any]
GIB = 1 << 30
FP16 = parse_scheme("fp16")
SPECIFICATION = 9  # of iOS 18
FILE = "com.apple.CoreML/model.mlmodel"
LIKE_X = (1, 64, 1, 32)


@dataclass(frozen=True)
class Case:
    """A program with an op called `culprit`, and one without the fault; inputs by shape."""

    bad: Build
    good: Build
    shapes: tuple[tuple[Any, ...], ...] = (LIKE_X,)
    dtypes: tuple[Any, ...] = (types.fp16,)
    culprit: str = "culprit"
    others: frozenset[str] = frozenset()  # rules the bad one cannot but break too
    good_shapes: tuple[tuple[Any, ...], ...] = ()  # of the good one's inputs, where they differ


def save(path: Path, build: Build, case: Case) -> Path:
    """The program that `build` makes of the inputs, as a package."""
    dtypes = case.dtypes * (len(case.shapes) // len(case.dtypes))
    pairs = enumerate(zip(case.shapes, dtypes, strict=True))
    inputs = {f"x{i}": mil.Placeholder(shape, dtype=dtype) for i, (shape, dtype) in pairs}
    program = mil.Program()
    with mil.Function(inputs, opset_version=ct.target.iOS18) as function:
        made = build(*function.inputs.values())
        function.set_outputs([made])
    program.add_function("main", function)
    weights = path / "Data" / "com.apple.CoreML" / "weights"
    weights.mkdir(parents=True)
    spec = to_spec(program, weights_dir=str(weights), specification_version=SPECIFICATION)
    (path / "Data" / FILE).write_bytes(spec.SerializeToString())
    entry = {"author": "", "description": "", "name": "model.mlmodel", "path": FILE}
    items = {"itemInfoEntries": {"m": entry}, "rootModelIdentifier": "m"}
    (path / "Manifest.json").write_text(json.dumps({"fileFormatVersion": "1.0.0", **items}))
    return path


def half(*shape: int, value: float | None = None) -> np.ndarray:
    if value is not None:
        return np.full(shape, value, np.float16)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float16)


def _attention(q: Any, k: Any, v: Any) -> Any:
    scores = mb.matmul(x=q, y=k, transpose_y=True)
    return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=v)


def _fused(q: Any, k: Any, v: Any, name: str = "culprit") -> Any:
    return mb.scaled_dot_product_attention(query=q, key=k, value=v, name=name)


def _grouped(shape: tuple[int, ...], axes: list[int]) -> Build:
    """Group norm's first half: values less their group's mean over `axes` of `shape`."""

    def build(x: Any) -> Any:
        grouped = mb.reshape(x=x, shape=shape)
        mean = mb.reduce_mean(x=grouped, axes=axes, keep_dims=True, name="culprit")
        return mb.reshape(x=mb.sub(x=grouped, y=mean), shape=x.shape)

    return build


def _squares(scale: float) -> Build:
    def build(x: Any) -> Any:
        small = mb.mul(x=x, y=np.float16(scale))
        mean = mb.reduce_mean(x=mb.square(x=small), axes=[1], keep_dims=True, name="culprit")
        return mb.mul(x=small, y=mean)

    return build


def _relu(x: Any) -> Any:
    return mb.relu(x=x)


def _moved(order: list[int]) -> Build:
    return lambda x: mb.transpose(x=x, perm=order, name="culprit")


def _plus(*shape: int, value: float) -> Build:
    return lambda x: mb.add(x=x, y=half(*shape, value=value), name="culprit")


def _times(*shape: int) -> Build:
    values = np.broadcast_to(half(1, 128, 1, 1), shape).copy()
    return lambda x: mb.mul(x=x, y=values, name="culprit")


def _einsum(equation: str) -> Build:
    return lambda x, y: mb.einsum(values=(x, y), equation=equation, name="culprit")


def _conv(*weight: int, **more: Any) -> Build:
    values = half(*weight, value=1.0)
    return lambda x: mb.conv(x=x, weight=values, pad_type="same", name="culprit", **more)


def _normed(epsilon: float) -> Build:
    return lambda x: mb.layer_norm(x=x, axes=[1], epsilon=np.float16(epsilon), name="culprit")


def _cut_to(length: int) -> Build:
    def build(x: Any) -> Any:
        cut = mb.slice_by_size(x=x, begin=[0] * 4, size=[1, 64, 1, length], name="culprit")
        return mb.pad(x=cut, pad=[0, 64 - length], mode="constant", constant_val=np.float16(0))

    return build


def _averaged(axis: int) -> Build:
    def build(x: Any) -> Any:
        mean = mb.reduce_mean(x=x, axes=[axis], keep_dims=True, name="culprit")
        return mb.mul(x=x, y=mean)

    return build


QKV = ((1, 4, 32, 64),) * 3
CASES: dict[str, Case] = {
    "ane/dimension-limit": Case(
        lambda x: mb.relu(x=x, name="culprit"),
        lambda x: mb.slice_by_size(x=x, begin=[0] * 4, size=[1, 1, 16384, 32]),
        ((1, 1, 16416, 32),),
    ),
    "ane/float32": Case(
        lambda x: mb.relu(x=x, name="culprit"),
        lambda x: mb.relu(x=mb.cast(x=x, dtype="fp16")),
        dtypes=(types.fp32,),
    ),
    "ane/linear-layer": Case(
        lambda x: mb.linear(x=x, weight=half(32, 32), name="culprit"),
        lambda x: mb.conv(x=x, weight=half(64, 64, 1, 1)),
    ),
    "ane/io-last-axis": Case(
        lambda x: mb.pad(x=x, pad=[0, 16], mode="constant", constant_val=np.float16(0)),
        _relu,
        ((1, 64, 1, 48),),
        culprit="x0",
        good_shapes=((1, 64, 1, 64),),
    ),
    "ane/singleton-last-axis": Case(_averaged(3), _averaged(1)),
    "ane/ragged-last-axis": Case(_cut_to(48), _cut_to(32), ((1, 64, 1, 64),)),
    "ane/token-lookup": Case(
        lambda ids: mb.gather(x=half(50, 64), indices=ids, axis=0, name="culprit"),
        lambda ids: mb.cast(x=ids, dtype="fp16"),
        ((1, 32),),
        (types.int32,),
    ),
    "ane/gather": Case(
        lambda x: mb.gather(x=x, indices=np.int32([3, 1]), axis=1, name="culprit"),
        lambda x: mb.slice_by_size(x=x, begin=[0] * 4, size=[1, 2, 1, 32]),
    ),
    "ane/tile": Case(
        lambda x: mb.tile(x=x, reps=[1, 1, 4, 1], name="culprit"),
        lambda x: mb.add(x=x, y=half(1, 64, 4, 32)),
    ),
    "ane/off-engine": Case(lambda x: mb.cumsum(x=x, axis=1, name="culprit"), _relu),
    "ane/spread-constant": Case(_times(1, 128, 1, 64), _times(1, 128, 1, 1), ((1, 128, 1, 64),)),
    "ane/group-norm": Case(
        _grouped((1, 8, 8, 8, 32), [2, 3]), _grouped((1, 8, 64, 32), [2]), ((1, 64, 8, 32),)
    ),
    "ane/dilated-convolution": Case(
        _conv(8, 64, 3, 3, dilations=[2, 2]), _conv(8, 64, 3, 3), ((1, 64, 8, 32),)
    ),
    "ane/einsum": Case(
        _einsum("khc,chq->khq"),
        _einsum("bkhc,bchq->bkhq"),
        ((32, 32, 32),) * 2,
        good_shapes=((1, 32, 32, 32),) * 2,
    ),
    "ane/fused-attention": Case(_fused, _attention, QKV),
    "ane/several-fused-attentions": Case(
        lambda q, k, v: _fused(_fused(q, k, v), k, v, "again"),
        lambda q, k, v: _attention(_attention(q, k, v), k, v),
        QKV,
    ),
    "ane/last-axis-moved": Case(_moved([0, 1, 3, 2]), _moved([0, 2, 1, 3]), ((1, 64, 32, 64),)),
    "ane/subnormal-epsilon": Case(_normed(1e-6), _normed(1e-4)),
    "ane/infinite-mask": Case(_plus(1, 1, 1, 32, value=-np.inf), _plus(1, 1, 1, 32, value=-4e4)),
    "ane/dma-notch": Case(  # one core streams the whole weight: 1 MiB, or 768 KiB
        _conv(1, 1 << 15, 1, 16), _conv(1, 1 << 15, 1, 12), ((1, 1 << 15, 1, 32),)
    ),
    "ane/angles": Case(lambda x: mb.cos(x=x, name="culprit"), lambda x: mb.tanh(x=x)),
    "ane/half-range": Case(_squares(1.0), _squares(1 / 16)),
    "ane/crossings": Case(
        lambda x: _relu(mb.cumsum(x=_relu(x), axis=1, name="culprit")),
        lambda x: _relu(mb.cumsum(x=x, axis=1)),
        others=frozenset({"ane/off-engine"}),
    ),
}


def lint(path: Path, build: Build, case: Case) -> dict[str, tuple[str, ...]]:
    """Rules that the program breaks, with the ops they name."""
    return {f.rule: f.ops for f in target.lint(save(path, build, case), "denoiser")}


@pytest.mark.parametrize("rule", CASES)
def test_a_program_that_breaks_a_rule_breaks_it_alone(rule: str, tmp_path: Path) -> None:
    case = CASES[rule]
    found = lint(tmp_path / "bad.mlpackage", case.bad, case)
    assert found.keys() - case.others == {rule}
    assert found[rule][0].startswith(case.culprit)


@pytest.mark.parametrize("rule", CASES)
def test_its_mended_twin_keeps_it(rule: str, tmp_path: Path) -> None:
    case = CASES[rule]
    twin = replace(case, shapes=case.good_shapes or case.shapes)
    assert rule not in lint(tmp_path / "good.mlpackage", case.good, twin)


def _made(*shape: int | None) -> File:
    """What no builder makes: a result of any shape."""
    kind = TensorType("fp16", shape)
    relu = Operation("relu", "culprit", {"x": ("x",)}, {"y": kind})
    x = TensorType("fp16", (1, 32))
    return File((Graph(Function({"x": x}, {}, {}, (relu,)), {"x": x, "y": kind}),))


BY_HAND: dict[str, tuple[File, File]] = {
    "ane/rank": (_made(1, 1, 1, 1, 1, 32), _made(1, 1, 1, 1, 32)),
    "ane/flexible-shape": (_made(1, 64, None, 32), _made(1, 64, 1, 32)),
    "ane/weight-file-2-gib": (File((), 2 * GIB + 1), File((), 10**9)),
    "ane/weight-file-1-gb": (File((), 2 * GIB), File((), 10**9)),
}


@pytest.mark.parametrize("rule", BY_HAND)
def test_rules_about_what_no_builder_makes(rule: str) -> None:
    bad, good = (broken(RULES, file, "denoiser") for file in BY_HAND[rule])
    assert [finding.rule for finding in bad] == [rule]
    assert bad[0].ops == ("weights" if "weight-file" in rule else "culprit",)
    assert good == ()


def test_every_rule_has_programs() -> None:
    assert {*CASES, *BY_HAND} == {*(rule.id for rule in RULES), CROSSINGS.id}
    assert not CASES.keys() & BY_HAND.keys()
    assert set(LEAVING) <= CASES.keys()


def test_open_sizes_of_a_saved_program_do_not_stop_the_linter(tmp_path: Path) -> None:
    case = Case(_relu, _relu, ((1, 64, 1, mil.get_new_symbol()),))
    assert "ane/flexible-shape" in lint(tmp_path / "open.mlpackage", _relu, case)


@pytest.mark.parametrize(
    ("rule", "shape", "count"),
    [
        ("ane/dimension-limit", (1, 1, 16385), 1),
        ("ane/dimension-limit", (1, 16385, 1, 1, 32), 1),
        ("ane/dimension-limit", (1, 16385, 1, 32), 0),
        ("ane/dimension-limit", (65536, 65536, 16384, 16384), 0),
        ("ane/singleton-last-axis", (1, 1, 1, 1), 0),
        ("ane/singleton-last-axis", (1, 1, 2, 1), 1),
        ("ane/ragged-last-axis", (1, 64, 1, 33), 1),
        ("ane/ragged-last-axis", (), 0),
    ],
)
def test_borders(rule: str, shape: tuple[int, ...], count: int) -> None:
    found = {f.rule: f.count for f in broken(RULES, _made(*shape), "denoiser")}
    assert found.get(rule, 0) == count


def test_an_epsilon_that_nobody_chose_is_not_told(tmp_path: Path) -> None:
    found = lint(tmp_path / "root.mlpackage", lambda x: mb.rsqrt(x=x), Case(_relu, _relu))
    assert found == {}


class Public(nn.Module):
    """What public models do: rows of tokens, a lookup, torch's own norms and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.linear = nn.Embedding(32, 64), nn.Linear(64, 64)
        self.norm = nn.GroupNorm(4, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        """(1, 32) ids to (1, 32, 8, 8)."""
        x = self.linear(self.words(tokens)).reshape(1, 4, 32, 16)
        x = nn.functional.scaled_dot_product_attention(x, x, x)
        return self.norm(x.reshape(1, 32, 8, 8))


class Channels(nn.Module):
    """Tokens on the last axis of a 1x1 convolution: nothing to say."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(1, 64, 1, 32) to the same."""
        return torch.relu(self.conv(x))


def test_what_the_converter_makes_of_a_public_model_is_found(tmp_path: Path) -> None:
    tokens = TensorSpec("tokens", ("batch", "tokens"), (1, 32), "int32")
    axes = ("batch", "channels", "rows", "columns")
    image = TensorSpec("image", axes, (1, 32, 8, 8), "float32")
    path = tmp_path / "rows.mlpackage"
    target.write(one_segment(Component("text_encoder", (tokens,), (image,)), Public()), FP16, path)
    findings = target.lint(path, "text_encoder")
    assert {f.rule for f in findings} >= {
        *("ane/linear-layer", "ane/token-lookup", "ane/fused-attention", "ane/group-norm"),
        *("ane/io-last-axis", "ane/ragged-last-axis", "ane/last-axis-moved"),
    }
    assert {finding.component for finding in findings} == {"text_encoder"}
    assert all(finding.ops for finding in findings)


def test_a_graph_in_mobile_form_has_no_findings(tmp_path: Path) -> None:
    axes = ("batch", "channels", "one", "tokens")
    x, y = (TensorSpec(name, axes, (1, 64, 1, 32), "float32") for name in "xy")
    path = tmp_path / "channels.mlpackage"
    target.write(one_segment(Component("denoiser", (x,), (y,)), Channels()), FP16, path)
    assert target.lint(path, "denoiser") == ()


class Notched(nn.Module):
    """A weight of 1 MiB that one core streams."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1 << 15, 1, (1, 16), padding="same", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(1, 32768, 1, S) to (1, 1, 1, S), through a cosine."""
        return torch.cos(self.conv(x))


def test_what_functions_share_counts_once_and_what_they_do_in_each(tmp_path: Path) -> None:
    axes, layer = ("batch", "channels", "one", "tokens"), Notched()
    functions = {}
    for name, tokens in (("step_low", 32), ("step_full", 64)):
        x = TensorSpec("x", axes, (1, 1 << 15, 1, tokens), "float32")
        y = TensorSpec("y", axes, (1, 1, 1, tokens), "float32")
        functions[name] = one_segment(Component("denoiser", (x,), (y,)), layer).functions["main"]
    path = tmp_path / "both.mlpackage"
    target.write(MobileGraph("denoiser", functions), FP16, path)
    found = {finding.rule: finding.count for finding in target.lint(path, "denoiser")}
    assert (found["ane/dma-notch"], found["ane/angles"]) == (1, 2)


def test_refuses_what_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a Core ML package"):
        target.lint(tmp_path, "denoiser")
