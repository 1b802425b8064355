"""Each rule on a file that breaks it, which names the culprit, and on its mended twin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nanoflux_export.targets.litert.convert import convert
from nanoflux_export.targets.litert.lint import findings, lint
from nanoflux_export.targets.litert.lint_rules import CROSSINGS, LEAVING, RULES
from nanoflux_export.targets.litert.model_file import Graph, ModelFile, Op, Tensor

NOTES = {"gpu/transposes", "gpu/half-range", "gpu/subnormal-epsilon"}
"""What files that run on the GPU as a whole may break."""


def rules(path: Path, profile: str = "") -> set[str]:
    return {finding.rule for finding in lint(path, "denoiser", profile)}


@pytest.mark.parametrize("scheme", ["fp16", "int8"])
def test_the_decoder_stays_on_the_gpu(decoder, scheme):
    found = lint(decoder.files[scheme], "decoder")
    assert [(finding.rule, finding.count) for finding in found] == [("gpu/transposes", 2)]


@pytest.mark.parametrize("scheme", ["fp16", "int8"])
def test_only_the_token_lookup_leaves_the_gpu(block, scheme):
    found = {f.rule: f for f in lint(block.files[scheme], "denoiser") if f.rule not in NOTES}
    assert found.keys() == {"gpu/token-lookup"}
    assert found["gpu/token-lookup"].severity == "note"


def test_the_cpu_has_rules_of_its_own(decoder):
    assert rules(decoder.files["int8"], "cpu") == {"cpu/dynamic-int8-convolution"}
    assert rules(decoder.files["fp16"], "cpu") == set()


class Public(nn.Module):
    """What public models do and phones refuse, all of it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, 8)
        self.register_buffer("order", torch.tensor([2, 0, 3, 1]))
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (self.norm(x)[:, self.order] + self.mask).softmax(-1)
        x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * torch.cos(x)
        patches = x.reshape(1, 4, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(1, 4, 8, 8)


def test_what_the_converter_makes_of_a_public_model_is_found(tmp_path):
    convert(Public(), {"x": torch.zeros(1, 8, 8, 8)}, ["y"], tmp_path / "y.tflite")
    found = {finding.rule: finding for finding in lint(tmp_path / "y.tflite", "denoiser")}
    assert found.keys() >= {
        *("gpu/broadcast-to", "gpu/gather-nd", "gpu/rank", "gpu/crossings", "gpu/angles"),
        *("gpu/half-range", "gpu/subnormal-epsilon", "gpu/infinite-mask"),
    }
    assert all(finding.ops for finding in found.values())


def tensor(*shape: int, dtype: str = "FLOAT32", constant: bool = False, **more) -> Tensor:
    made = {"dynamic": False, "blockwise": False, "name": "culprit", **more}
    return Tensor(shape, dtype, constant, **made)


X = tensor(1, 4, name="x")
IDS = tensor(4, dtype="INT32", name="x")
INT8 = tensor(4, 4, dtype="INT8", constant=True)
KERNEL = tensor(8, 3, 3, 4, dtype="INT8", constant=True)
SCALAR = tensor(constant=True, name="x")
MADE = tensor(1, 4)


@dataclass(frozen=True)
class File:
    """Tensors and ops of a file made by hand, its bytes, and what its constants hold."""

    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...] = ()
    size_bytes: int = 1000
    values: Mapping[int, float] = field(default_factory=dict)

    def broken(self, profile: str) -> dict[str, tuple[str, ...]]:
        graph = Graph("main", self.tensors, self.ops, {}, {})
        model = ModelFile(Path("x.tflite"), self.size_bytes, (graph,))
        held = {at: np.array([value], np.float32) for at, value in self.values.items()}
        found = findings(model, "denoiser", profile, lambda graph, at: held.get(at))
        return {finding.rule: finding.ops for finding in found}


def chain(*kinds: str) -> File:
    """x through ops, one after another; the last makes what is called culprit."""
    ops = tuple(Op(kind, (i,), (i + 1,)) for i, kind in enumerate(kinds))
    return File((*[X] * len(kinds), MADE), ops)


def dense_then(*kinds: str, weight: Tensor = INT8) -> File:
    """x through a dense layer, whose result is the culprit, then a chain of ops."""
    ops = tuple(Op(kind, (i + 2,), (i + 3,)) for i, kind in enumerate(kinds))
    tensors = (X, weight, MADE, *[X] * len(kinds))
    return File(tensors, (Op("FULLY_CONNECTED", (0, 1, -1), (2,)), *ops))


def with_scalar(kind: str, value: float) -> File:
    """x and a stored scalar through an op."""
    return File((X, SCALAR, MADE), (Op(kind, (0, 1), (2,)),), values={1: value})


def squares(scale: float) -> File:
    """The mean of x times a scalar, squared."""
    ops = (Op("MUL", (0, 1), (2,)), Op("SQUARE", (2,), (3,)), Op("MEAN", (3,), (4,)))
    return File((X, SCALAR, X, X, MADE), ops, values={1: scale})


def beside_constant(*shape: int) -> File:
    """A value and a constant of its shape, added."""
    taken = tensor(*shape, name="x"), tensor(*shape, constant=True, name="c")
    return File((*taken, tensor(*shape)), (Op("ADD", (0, 1), (2,)),))


def through_int32(last: str) -> File:
    """Ids through an op on integers, whose result is the culprit, to a last op."""
    ops = (Op("MUL", (0, 0), (1,)), Op(last, (1,), (2,)))
    return File((IDS, tensor(4, dtype="INT32"), X), ops)


def decompressed(dtype: str) -> File:
    ops = (Op("DEQUANTIZE", (0,), (1,)), Op("CONV_2D", (2, 1), (3,)))
    return File((tensor(4, 4, dtype=dtype, constant=True, name="w"), MADE, X, X), ops)


def convolution(kernel: Tensor) -> File:
    return File((tensor(1, 8, 8, 4, name="x"), kernel, MADE), (Op("CONV_2D", (0, 1), (2,)),))


CASES: dict[str, tuple[File, File]] = {
    "gpu/broadcast-to": (chain("BROADCAST_TO"), chain("ADD")),
    "gpu/gather-nd": (chain("GATHER_ND"), chain("SLICE")),
    "gpu/sort": (chain("STABLEHLO_SORT"), chain("RELU")),
    "gpu/refused-op": (chain("ROUND"), chain("FLOOR")),
    "gpu/token-lookup": (chain("EMBEDDING_LOOKUP"), chain("RELU")),
    "gpu/computed-integers": (through_int32("CAST"), chain("MUL")),
    "gpu/rank": (File((tensor(1, 2, 2, 2, 2),)), File((tensor(1, 2, 2, 4),))),
    "gpu/dynamic-shape": (File((tensor(1, 4, dynamic=True),)), File((X,))),
    "gpu/wide-values": (
        File((tensor(4, dtype="INT64", constant=True),)),
        File((tensor(4, dtype="INT32", constant=True),)),
    ),
    "gpu/quantised-dense": (dense_then("GELU"), dense_then("BATCH_MATMUL")),
    "gpu/constant-beside-batch": (beside_constant(4, 8, 8), beside_constant(1, 32, 1, 8)),
    "gpu/decompressed-weights": (decompressed("INT8"), decompressed("FLOAT16")),
    "gpu/blockwise-weights": (
        File((tensor(4, 4, dtype="INT4", constant=True, blockwise=True),)),
        File((tensor(4, 4, dtype="INT4", constant=True),)),
    ),
    "gpu/infinite-mask": (with_scalar("ADD", -np.inf), with_scalar("ADD", -40000.0)),
    "gpu/file-2-gib": (File((X,), size_bytes=(1 << 31) + 1), File((X,), size_bytes=1 << 30)),
    "gpu/file-1-gib": (File((X,), size_bytes=1 << 31), File((X,), size_bytes=1 << 30)),
    "gpu/angles": (chain("SIN"), chain("TANH")),
    "gpu/half-range": (squares(1.0), squares(1 / 16)),
    "gpu/subnormal-epsilon": (with_scalar("ADD", 1e-6), with_scalar("ADD", 1e-4)),
    "gpu/transposes": (chain("TRANSPOSE"), chain("RESHAPE")),
    "cpu/sort": (chain("STABLEHLO_SORT"), chain("RELU")),
    "cpu/dynamic-int8-convolution": (
        convolution(KERNEL),
        convolution(tensor(8, 1, 1, 4, dtype="INT8", constant=True)),
    ),
}


def profile(rule: str) -> str:
    return rule.partition("/")[0]


@pytest.mark.parametrize("rule", CASES)
def test_a_file_that_breaks_a_rule_breaks_it_alone(rule):
    found = CASES[rule][0].broken(profile(rule))
    assert found.keys() == {rule}
    assert "culprit" in found[rule][0] or found[rule] == ("file",)


@pytest.mark.parametrize("rule", CASES)
def test_its_mended_twin_keeps_every_rule(rule):
    assert CASES[rule][1].broken(profile(rule)) == {}


def test_every_rule_has_files():
    assert {*CASES} == {rule.id for rules in RULES.values() for rule in rules}
    assert set(LEAVING) <= {*CASES}
    assert CROSSINGS.id == "gpu/crossings"  # which converted files above break, and keep


def test_the_gpu_is_not_asked_about_files_for_the_cpu():
    for rule, (bad, _) in CASES.items():
        if profile(rule) == "gpu" and rule != "gpu/sort":
            assert bad.broken("cpu") == {}


@pytest.mark.parametrize(
    ("found", "rule", "broken"),
    [
        (dense_then("RESHAPE", "RESHAPE", "ADD"), "gpu/quantised-dense", True),
        (dense_then("GELU", weight=tensor(4, 4, constant=True)), "gpu/quantised-dense", False),
        (dense_then("BATCH_MATMUL", "ADD"), "gpu/quantised-dense", False),
        (through_int32("EMBEDDING_LOOKUP"), "gpu/computed-integers", False),
        (through_int32("EMBEDDING_LOOKUP"), "gpu/token-lookup", True),
        (with_scalar("ADD", 0.0), "gpu/subnormal-epsilon", False),
        (with_scalar("MUL", -np.inf), "gpu/infinite-mask", False),
        (with_scalar("ADD", -65504.0), "gpu/infinite-mask", True),
        (File((X,), size_bytes=1 << 31), "gpu/file-2-gib", False),
    ],
)
def test_borders(found, rule, broken):
    assert (rule in found.broken("")) is broken
