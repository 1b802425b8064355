"""Graphs known to be refused by the GPU delegate, and ours, which are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from nanoflux_export.targets.litert.convert import convert
from nanoflux_export.targets.litert.lint import findings, lint
from nanoflux_export.targets.litert.model_file import Graph, ModelFile, Op, Tensor
from nanoflux_export.targets.litert.quantise import quantise
from nanoflux_mobile.spec import parse_scheme

NOTES = {"transposes"}


def counts(path: Path) -> dict[str, int]:
    return {finding.rule: finding.count for finding in lint(path, "denoiser")}


@pytest.mark.parametrize("scheme", ["fp16", "int8"])
def test_the_decoder_stays_on_the_gpu(decoder, scheme):
    assert counts(decoder.files[scheme]) == {"transposes": 2}


@pytest.mark.parametrize("scheme", ["fp16", "int8"])
def test_only_the_token_lookup_leaves_the_gpu(block, scheme):
    found = counts(block.files[scheme]).keys() - NOTES
    assert found == {"op-off-gpu: EMBEDDING_LOOKUP", "computed-integers"}


class Refused(nn.Module):
    """What public models do and phones refuse, all of it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dense = nn.GroupNorm(4, 8), nn.Linear(4, 4)
        self.register_buffer("order", torch.tensor([2, 0, 3, 1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.gelu(self.dense(self.norm(x)[:, self.order].transpose(1, 3)))
        patches = x.reshape(1, 4, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(1, 4, 8, 8)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refused")
    convert(Refused(), {"x": torch.zeros(1, 8, 8, 8)}, ["y"], folder / "fp32.tflite")
    quantise(folder / "fp32.tflite", parse_scheme("int8"), folder / "int8.tflite")
    return folder


@pytest.mark.parametrize(
    ("scheme", "rule"),
    [
        ("fp32", "op-off-gpu: BROADCAST_TO"),
        ("fp32", "op-off-gpu: GATHER_ND"),
        ("fp32", "rank-over-four"),
        ("int8", "quantised-dense-before-elementwise"),
    ],
)
def test_what_the_delegate_refuses_is_found(refused, scheme, rule):
    assert counts(refused / f"{scheme}.tflite")[rule] >= 1


def test_dense_layers_in_float_are_fine(refused):
    rule = "quantised-dense-before-elementwise"
    assert rule not in counts(refused / "fp32.tflite")


def tensor(*shape: int, dtype: str = "FLOAT32", constant: bool = False, **more: bool) -> Tensor:
    return Tensor(shape, dtype, constant, **{"dynamic": False, "blockwise": False, **more})


X = tensor(1, 4)
INT8_WEIGHT = tensor(4, 4, dtype="INT8", constant=True)


def rules(*tensors: Tensor, ops: tuple[Op, ...] = (), size_bytes: int = 1000) -> set[str]:
    graph = Graph("main", tensors, ops, {}, {})
    model = ModelFile(Path("x.tflite"), size_bytes, (graph,))
    return {finding.rule for finding in findings(model, "denoiser")}


def dense_then(*kinds: str) -> set[str]:
    """Tensor 0 through a quantised dense layer (weight 1), then a chain of ops."""
    chain = tuple(Op(kind, (i + 2,), (i + 3,)) for i, kind in enumerate(kinds))
    tensors = (X, INT8_WEIGHT, *[X] * (len(kinds) + 1))
    return rules(*tensors, ops=(Op("FULLY_CONNECTED", (0, 1, -1), (2,)), *chain))


@pytest.mark.parametrize("chain", [("GELU",), ("RESHAPE", "MUL"), ("RESHAPE", "RESHAPE", "ADD")])
def test_quantised_dense_layers_before_elementwise_ops_are_found(chain):
    assert dense_then(*chain) == {"quantised-dense-before-elementwise"}


@pytest.mark.parametrize("chain", [(), ("RESHAPE", "BATCH_MATMUL"), ("BATCH_MATMUL", "ADD")])
def test_quantised_dense_layers_before_a_matmul_are_fine(chain):
    assert not dense_then(*chain)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("INT8", {"decompressed-integer-weights"}), ("FLOAT16", set())],
)
def test_decompressed_integer_weights_are_found(dtype, expected):
    weight = tensor(4, 4, dtype=dtype, constant=True)
    ops = (Op("DEQUANTIZE", (0,), (1,)), Op("CONV_2D", (2, 1), (3,)))
    assert rules(weight, X, X, X, ops=ops) == expected


@pytest.mark.parametrize(
    ("found", "rule"),
    [
        (tensor(1, 2, 2, 2, 2), "rank-over-four"),
        (tensor(1, 4, dynamic=True), "dynamic-shape"),
        (tensor(4, dtype="INT64", constant=True), "wide-values"),
        (tensor(4, 4, dtype="INT4", constant=True, blockwise=True), "blockwise-weights"),
    ],
)
def test_tensors_no_gpu_takes_are_found(found, rule):
    assert rules(found) == {rule}


def test_integers_computed_on_the_way_are_found():
    ids, cast = tensor(4, dtype="INT32"), Op("CAST", (0,), (1,))
    assert not rules(ids, X, ops=(cast,))
    assert rules(ids, ids, X, ops=(Op("MUL", (0, 0), (1,)), Op("CAST", (1,), (2,)))) == {
        "computed-integers"
    }


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [
        (1 << 30, set()),
        ((1 << 30) + 1, {"file-over-1-gib"}),
        (1 << 31, {"file-over-1-gib"}),
        ((1 << 31) + 1, {"file-over-2-gib"}),
    ],
)
def test_sizes_phones_cannot_load_are_found(size_bytes, expected):
    assert rules(X, size_bytes=size_bytes) == expected
