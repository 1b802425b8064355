"""The SnapGen UNet in mobile form: the same function, in operations that phones have.

Shapes: Z latent channels, h w latent cells, C channels, S positions, T text tokens, J text width,
E time width, K head width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from nanoflux_export.mobile.unet import (
    MobileAttention,
    MobileFeedForward,
    MobileStage,
    MobileTransformer,
    MobileUNet,
)
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.snapgen import (
    STUDENT,
    Attention,
    Conditions,
    FeedForward,
    SnapGen,
    SnapGenConfig,
    Transformer,
    grid_rope,
)
from nanoflux_mobile.parity import psnr_db

EQUAL_DB = 120.0
"""Of float32 against float32 over some forty layers; 140 dB measured, 100 dB asked for."""
ONE_PART = 1e-5
"""Share of the largest value: a few sums of at most a hundred float32 products, reordered."""

TINY = replace(
    STUDENT,
    in_channels=4,
    block_out_channels=(16, 24, 32),
    down_transformers=(1, 1, 2),
    up_transformers=(0, 1, 1),
    attention_head_dim=8,
    cross_attention_dim=20,
    norm_num_groups=4,
    time_embed_dim=12,
)
TEXTS, TEXT, TIME = 5, 20, 12


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def columns(x_BSC: Tensor) -> Tensor:
    """Rows of tokens in the layout of phones, (B, C, 1, S)."""
    return x_BSC.transpose(1, 2)[:, :, None].contiguous()


def assert_close(ours: Tensor, expected: Tensor) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= ONE_PART * expected.abs().max()


@pytest.fixture(scope="module")
def random(off_initial: Callable[[nn.Module, int], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """A module with its weights moved off their initial values."""
    return lambda module: off_initial(module, 1)


@pytest.fixture(scope="module")
def student(random) -> SnapGen:
    torch.manual_seed(0)
    return random(SnapGen(TINY))


@pytest.fixture(scope="module")
def mobile(student) -> MobileUNet:
    return MobileUNet(student, 8, 12).eval()


def inputs(cfg: SnapGenConfig = TINY, rows: int = 8, cells: int = 12) -> tuple[Tensor, ...]:
    """Latents, text and time as the model takes them."""
    text = normal(1, TEXTS, cfg.encoder_hid_dim or TEXT, seed=1)
    return normal(1, 4, rows, cells), text, normal(1, TIME, seed=2)


def on_phone(x_BZhw: Tensor, text_BTJ: Tensor, states_BE: Tensor) -> tuple[Tensor, ...]:
    """The same as a phone passes them."""
    return x_BZhw, columns(text_BTJ), states_BE[:, :, None, None]


# The same function


@pytest.mark.parametrize(
    ("changes", "rows", "cells"),
    [
        ({}, 8, 8),
        ({}, 4, 12),
        ({"encoder_hid_dim": 18}, 8, 4),
        ({"resnet_conv": "dense", "down_conv": "dense", "up_conv": "separable"}, 4, 4),
        ({"self_attention": (False, True, True), "up_transformers": (1, 1, 1)}, 8, 4),
    ],
    ids=["square", "wide", "projected text", "other convolutions", "self-attention in two stages"],
)
def test_the_mobile_unet_is_the_student(random, changes, rows, cells):
    cfg = replace(TINY, **changes)
    torch.manual_seed(0)
    model = random(SnapGen(cfg))
    given = inputs(cfg, rows, cells)
    expected = model(*given)
    assert expected.std() > 0.05, "an oracle that says nothing proves nothing"
    made = MobileUNet(model, rows, cells)(*on_phone(*given))
    assert made.shape == expected.shape
    assert psnr_db(made.numpy(), expected.numpy()) >= EQUAL_DB


def test_the_mobile_unet_reads_all_its_inputs(mobile):
    given = on_phone(*inputs())
    before = mobile(*given)
    for i, value in enumerate(given):
        other = [*given[:i], value + normal(*value.shape, seed=9), *given[i + 1 :]]
        assert (mobile(*other) - before).abs().max() > 1e-2, i


def test_making_it_leaves_the_student_alone():
    student = SnapGen(TINY)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    mobile = MobileUNet(student, 4, 4)
    after = student.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.requires_grad for p in student.parameters())
    assert not any(p.requires_grad for p in mobile.parameters())


def test_the_phone_gets_no_time_embedding(student, mobile):
    """All weights but those of the time, less the layer norms folded, plus biases and tables."""
    norms = [m for m in student.modules() if isinstance(m, nn.LayerNorm)]
    queries = [m for m in student.modules() if isinstance(m, Attention)]
    folded = sum(p.numel() for norm in norms for p in norm.parameters())
    biases = sum(m.to_q.out_features for m in queries)
    own = [m for name, m in student.named_modules() if name.endswith("attn1")]
    biases += sum(2 * m.head_dim for m in own)
    tables = 6 * 2 * (8 // 4) * (12 // 4) * (8 // 2)
    time = sum(p.numel() for p in student.time_embedding.parameters())
    whole = sum(p.numel() for p in student.parameters())
    assert sum(p.numel() for p in mobile.parameters()) == whole - time - folded + biases + tables


@pytest.mark.parametrize("sees_itself", [False, True], ids=["text", "self"])
def test_mobile_attention_is_attention_after_its_norm(random, sees_itself):
    norm = random(nn.LayerNorm(32))
    source = random(Attention(32, 32 if sees_itself else TEXT, TINY))
    x_BSD, text_BTJ = normal(1, 12, 32), normal(1, TEXTS, TEXT, seed=1)
    rope = grid_rope(3, 4, 8) if sees_itself else None
    h_BSD = norm(x_BSD)
    expected = source(h_BSD, h_BSD if sees_itself else text_BTJ, rope, None)
    normed = columns(nn.functional.layer_norm(x_BSD, (32,)))
    tables = tuple(table.T[None, None] for table in rope) if rope else None
    made = MobileAttention(source, norm, sees_itself)(
        normed, normed if sees_itself else columns(text_BTJ), tables
    )
    assert_close(made, columns(expected))


def test_mobile_feed_forward_is_the_gated_one_after_its_norm(random):
    norm, source = random(nn.LayerNorm(12)), random(FeedForward(12, 3))
    x_BSD = normal(1, 7, 12)
    normed = columns(nn.functional.layer_norm(x_BSD, (12,)))
    assert_close(MobileFeedForward(source, norm)(normed), columns(source(norm(x_BSD))))


@pytest.mark.parametrize("size", [(2, 5), (5, 2)])
def test_mobile_transformers_know_rows_from_columns(random, size):
    source = random(Transformer(32, 2, True, TINY))
    x_BCHW, text_BTJ = normal(1, 32, *size), normal(1, TEXTS, TEXT, seed=1)
    expected = source(x_BCHW, Conditions(normal(1, TIME), text_BTJ, None))
    assert_close(MobileTransformer(source, *size)(x_BCHW, columns(text_BTJ)), expected)


def test_latents_that_do_not_halve_are_refused(student):
    with pytest.raises(InputError, match=r"8x10 cells do not fit .* multiples of 4"):
        MobileUNet(student, 8, 10)


def test_students_with_many_key_heads_are_refused():
    with pytest.raises(InputError, match=r"2 key and value heads; .* multi-query"):
        MobileUNet(SnapGen(replace(TINY, multi_query=False)), 8, 8)


# Operations that phones have


class Watch(TorchDispatchMode):
    """Records what runs: operations, ranks, repeated values, batches of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: set[str] = set()
        self.batches: list[int] = []
        self.rank, self.repeats, self.longest = 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.ops.add(name)
        tensors = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        self.rank = max([self.rank, *(t.ndim for t in tensors)])
        self.longest = max([self.longest, *(n for t in tensors for n in t.shape)])
        if name in ("expand", "repeat"):
            self.repeats += out.shape != args[0].shape
        if name == "bmm":
            self.batches.append(len(out))
        return out


@pytest.fixture(scope="module")
def watched(mobile) -> Watch:
    given = on_phone(*inputs())
    with Watch() as watch:
        mobile(*given)
    return watch


def test_nothing_inside_has_more_than_four_axes(watched):
    assert watched.rank == 4


def test_no_operation_is_left_that_phones_lack(watched):
    assert watched.repeats == 0, "LiteRT makes BROADCAST_TO of it"
    names = {"norm", "linear", "addmm", "attention", "index", "gather", "stack", "sin", "cos"}
    assert not [op for op in watched.ops if any(name in op.split("_") for name in names)]


def test_matrix_products_are_batches_of_heads(watched):
    """A batch of one LiteRT's converter takes for a dense layer, and gets wrong."""
    assert set(watched.batches) == {16 // 8, 24 // 8, 32 // 8}


def test_the_student_at_1024_pixels_keeps_to_the_limits_of_the_neural_engine():
    """On the meta device. 16384 is the longest axis its compiler takes."""
    with torch.device("meta"), torch.no_grad():
        mobile = MobileUNet(SnapGen(STUDENT), 128, 128)
        given = (
            torch.empty(1, 16, 128, 128),
            torch.empty(1, 2304, 1, 160),
            torch.empty(1, 1024, 1, 1),
        )
        with Watch() as watch:
            assert mobile(*given).shape == (1, 16, 128, 128)
    assert (watch.rank, watch.longest, watch.repeats) == (4, 16384, 0)
    assert set(watch.batches) == {4, 8, 14}


def test_the_watch_sees_what_the_student_does(student):
    given = inputs()
    with Watch() as watch:
        student(*given)
    assert watch.rank > 4
    assert {"native_group_norm", "native_layer_norm", "stack", "cos"} <= watch.ops


# Conversion


class LastOf(nn.Module):
    """A stage as a graph of one output."""

    def __init__(self, stage: MobileStage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor, text: Tensor, states: Tensor) -> Tensor:
        return self.stage(x, text, states)[-1]


@pytest.fixture(scope="module")
def stage(student) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """One stage with self-attention, text attention and a residual block, and its inputs."""
    given = normal(1, 24, 2, 3), normal(1, TEXT, 1, TEXTS, seed=1), normal(1, TIME, 1, 1, seed=2)
    return LastOf(MobileStage(student.down_blocks[2], 2, 3)).eval(), given


@pytest.mark.slow
def test_a_stage_becomes_a_core_ml_program_without_copies(stage, tmp_path):
    coremltools = pytest.importorskip("coremltools")
    from nanoflux_export.targets.coreml.executor import load

    module, given = stage
    names = ("x", "text", "states")
    with torch.no_grad():
        model = coremltools.convert(
            torch.jit.trace(module, given, check_trace=False),
            inputs=[
                coremltools.TensorType(name, tuple(value.shape), np.float32)
                for name, value in zip(names, given, strict=True)
            ],
            outputs=[coremltools.TensorType("y", None, np.float32)],
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS18,
            compute_precision=coremltools.precision.FLOAT16,
            skip_model_load=True,
        )
    path = tmp_path / "stage.mlpackage"
    model.save(str(path))
    run = load(path)
    made = run(**{name: value.numpy() for name, value in zip(names, given, strict=True)})["y"]
    # Weights are rounded to half precision: 70 to 80 dB.
    assert psnr_db(made, module(*given).numpy()) >= 60
    operations = model._mil_program.functions["main"].operations
    kinds = Counter(op.op_type for op in operations)
    assert not kinds.keys() & {"transpose", "tile", "linear", "einsum"}
    assert max(len(value.shape) for op in operations for value in op.outputs) == 4


@pytest.mark.slow
def test_a_stage_becomes_a_litert_file_that_gpus_take(stage, tmp_path):
    litert_torch = pytest.importorskip("litert_torch")
    from nanoflux_export.targets.litert.lint import findings
    from nanoflux_export.targets.litert.model_file import read_model

    module, given = stage
    with torch.no_grad():
        model = litert_torch.convert(module, given, lightweight_conversion=True)
    path: Path = tmp_path / "stage.tflite"
    model.export(str(path))
    assert psnr_db(model(*given), module(*given).numpy()) >= EQUAL_DB
    read = read_model(path)
    kinds = Counter(op.kind for op in read.graphs[0].ops)
    assert kinds["BATCH_MATMUL"] == 2 * kinds["SOFTMAX"] > 0
    assert "FULLY_CONNECTED" not in kinds
    assert {finding.rule for finding in findings(read, "denoiser")} <= {"gpu/transposes"}
