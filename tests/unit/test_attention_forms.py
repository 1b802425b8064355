"""Attention in every form is torch's, in memory and in saved files, with and without a bias.

Shapes: H heads, K head width, S queries, T keys, D = H K.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nanoflux_export.compression.rounding import rounded
from nanoflux_export.graph import MAIN, Function, MobileGraph, one_segment
from nanoflux_export.rewrites.head_attention import (
    FORMS,
    HeadAttention,
    split_heads,
    with_attention,
    written,
)
from nanoflux_export.torch_run import torch_runner
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme

EQUAL_DB = 120.0
"""Equal in float32 but for the order of sums of at most some dozens of products."""
SAVED_DB = 90.0
"""The same weights; Core ML stores the scalars of a program in half precision."""

FP16 = parse_scheme("fp16")
HEADS, WIDTH, LENGTH = 3, 8, 32
sizes = st.integers(2, 12)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Layers(nn.Module):
    """Attention as all networks use it: plain, one key head for all, a bias per head, a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        inner, heads = HEADS * WIDTH, (HEADS, 1, HEADS, HEADS)
        self.queries = nn.ModuleList(nn.Conv2d(inner, inner, 1) for _ in heads)
        self.keys = nn.ModuleList(nn.Conv2d(inner, WIDTH * few, 1) for few in heads)
        self.values = nn.ModuleList(nn.Conv2d(inner, WIDTH * few, 1) for few in heads)
        self.attend = nn.ModuleList(HeadAttention() for _ in heads)
        self.bias = nn.Parameter(torch.randn(1, HEADS, LENGTH, LENGTH))
        self.mask = nn.Parameter(torch.full((1, 1, LENGTH, LENGTH), -1e4).triu(1))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(1, D, 1, S) in and out."""
        convs = zip(self.queries, self.keys, self.values, strict=True)
        for attend, three, bias in zip(
            self.attend, convs, (None, None, self.bias, self.mask), strict=True
        ):
            q, k, v = (split_heads(y, y.shape[1] // WIDTH) for y in (f(x) for f in three))
            x = x + attend(q, k, v, bias)
        return x


AXES = ("batch", "channels", "one", "tokens")
SHAPE = (1, HEADS * WIDTH, 1, LENGTH)
COMPONENT = Component(
    "denoiser",
    (TensorSpec("x", AXES, SHAPE, "float32"),),
    (TensorSpec("y", AXES, SHAPE, "float32"),),
)


@pytest.fixture(scope="module")
def layers() -> Layers:
    """The module that all tests of files write."""
    return Layers().eval()


@pytest.fixture(scope="module")
def graph(layers: Layers) -> MobileGraph:
    """It as a graph of one segment."""
    return one_segment(COMPONENT, layers)


def inputs() -> dict[str, np.ndarray]:
    return {"x": normal(1, *SHAPE).numpy()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("biases", ["none", "one for all heads", "one per head"])
@given(
    heads=st.integers(1, 4),
    alike=st.booleans(),
    widths=st.tuples(sizes, sizes),
    queries=sizes,
    keys=sizes,
    seed=st.integers(0, 2**32 - 1),
)
def test_every_form_is_torchs(form, biases, heads, alike, widths, queries, keys, seed):
    """Keys and values of all heads `alike` or one for all; `widths` of a key and of a value."""
    width, value_width = widths
    few = heads if alike else 1
    q, k = normal(seed, 1, heads, queries, width), normal(seed + 1, 1, few, keys, width)
    v = normal(seed + 2, 1, few, keys, value_width)
    shape = {"none": 0, "one for all heads": 1, "one per head": heads}[biases]
    bias = normal(seed + 3, 1, shape, queries, keys) if shape else None
    exact = (x.double() for x in (q, k, v))
    expected = F.scaled_dot_product_attention(*exact, None if bias is None else bias.double())
    q_OHKS, k_OHKT, v_OHKT = (x.transpose(2, 3) for x in (q * width**-0.5, k, v))
    ours = HeadAttention(form)(q_OHKS, k_OHKT, v_OHKT, bias)
    columns = expected.transpose(2, 3).reshape(1, heads * value_width, 1, queries)
    assert psnr_db(ours.numpy(), columns.float().numpy()) >= EQUAL_DB


@pytest.mark.parametrize("form", ["per-head", "fused"])
def test_a_graph_in_another_form_is_another_kind_with_the_same_weights(graph, layers, form):
    changed = with_attention(graph, form)
    (old,), (new,) = (g.functions[MAIN].segments for g in (graph, changed))
    assert (old.kind, new.kind) == ("denoiser", f"denoiser~{form}")
    assert (new.weights, new.parameters) == (old.weights, old.parameters)
    module = new.build()
    assert [part.form for part in module.attend] == [form] * 4
    assert [part.form for part in layers.attend] == ["batched"] * 4
    for (name, ours), (same, theirs) in zip(
        module.named_parameters(), layers.named_parameters(), strict=True
    ):
        assert (name, ours.data_ptr()) == (same, theirs.data_ptr())
    runs = [torch_runner(g.functions[MAIN])(inputs())["y"] for g in (graph, changed)]
    assert psnr_db(*runs) >= EQUAL_DB


@pytest.mark.parametrize("form", ["", "batched"])
def test_a_graph_comes_in_the_batched_form(graph, form):
    assert with_attention(graph, form) is graph


def test_a_module_without_attention_is_a_copy_that_shares_its_weight():
    conv = nn.Conv2d(2, 3, 1)
    copied = written(conv, "fused")
    assert copied is not conv
    assert copied.weight is conv.weight


def twin_db(saved: dict[str, np.ndarray], function: Function) -> float:
    """Agreement of a saved file's answer with torch on the same half-precision weights."""
    run = torch_runner(function, lambda _, module: rounded(module, FP16))
    return psnr_db(saved["y"], run(inputs())["y"])


@pytest.mark.parametrize("form", FORMS)
def test_a_core_ml_file_keeps_the_form(graph, form, tmp_path: Path):
    pytest.importorskip("coremltools")
    from nanoflux_export.targets.coreml import target

    changed, out = with_attention(graph, form), tmp_path / "a.mlpackage"
    target.write(changed, FP16, out)
    ops = target.summarize(out).ops
    products = ("matmul", "einsum", "scaled_dot_product_attention")
    # With a bias, scores are made by matmul, as the bias of all heads is one constant.
    expected = {"batched": (8, 0, 0), "per-head": (4 * HEADS, 4 * HEADS, 0), "fused": (0, 0, 4)}
    assert tuple(ops.get(kind, 0) for kind in products) == expected[form]
    assert not {"gather", "gather_nd", "tile"} & ops.keys()
    ours = target.load(out, COMPONENT)(inputs())
    assert twin_db(ours, changed.functions[MAIN]) >= SAVED_DB


@pytest.mark.parametrize("form", ["per-head", "fused"])
def test_a_litert_file_stays_within_what_gpus_take(graph, form, tmp_path: Path):
    pytest.importorskip("litert_torch")
    from nanoflux_export.targets.litert import target
    from nanoflux_export.targets.litert.model_file import read_model

    changed, out = with_attention(graph, form), tmp_path / "a.tflite"
    target.write(changed, FP16, out)
    ops = target.summarize(out).ops
    assert not {"GATHER", "GATHER_ND", "BROADCAST_TO"} & ops.keys()
    tensors = (tensor for part in read_model(out).graphs for tensor in part.tensors)
    assert max(len(tensor.shape) for tensor in tensors) <= 4
    ours = target.load(out, COMPONENT)(inputs())
    assert twin_db(ours, changed.functions[MAIN]) >= SAVED_DB
