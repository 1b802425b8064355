"""Our files in LiteRT's own GPU delegate, on a Vulkan driver in software.

Floors lie 5 to 6 dB below what Mesa's lavapipe 25.0.7 gave; PSNR is against XNNPACK on the same
file and inputs. Shapes: C channels, S image tokens, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("litert_torch")

from nanoflux_export.bundle import GOLDEN
from nanoflux_export.demo import tiny_student, tiny_teacher
from nanoflux_export.families.nanoflux import denoiser_function
from nanoflux_export.golden import load_golden, probes
from nanoflux_export.graph import MAIN, STEP_LOW, Function, MobileGraph
from nanoflux_export.recipe import load_recipe
from nanoflux_export.student import Student, make_student
from nanoflux_export.targets.litert import target
from nanoflux_export.targets.litert.convert import convert
from nanoflux_export.targets.litert.gpu import GpuRefusal, run_on_gpu
from nanoflux_export.targets.litert.gpu_check import check, worst_db
from nanoflux_mobile.manifest import read_manifest
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.nanoflux_layers import rope_tables
from nanoflux_mobile.sampler import image_ids, text_ids
from nanoflux_mobile.spec import Component, parse_scheme
from nanoflux_mobile.weights import network

pytestmark = pytest.mark.usefixtures("vulkan")

HALVED_TABLE = ("text_encoder", "fp16")
"""What is not accelerated whole: the table of token ids, once for each prompt."""
BLOCKS_DB = 46.0
STUDENT_DB = 44.0


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def drawn(function: Function) -> dict[str, np.ndarray]:
    """Inputs as random as they come; ids are small ones, which every vocabulary has."""
    ids = np.random.default_rng(0)
    return {
        spec.name: ids.integers(0, 50, spec.shape).astype(np.int32)
        if spec.dtype == "int32"
        else normal(*spec.shape, seed=i)
        for i, spec in enumerate(function.inputs)
    }


def on_cpu(path: Path, graph: MobileGraph, inputs: Mapping[str, np.ndarray], name: str = MAIN):
    face = graph.functions[name]
    part = Component(graph.name, face.inputs, face.outputs)
    return target.load(path, part, function=name)(inputs)


@pytest.fixture(scope="module")
def student() -> Student:
    return make_student(tiny_teacher(), load_recipe("tiny-small"))


# int8 files differ more in float32, because the CPU also rounds what flows through them.
TINY = {
    ("text_encoder", "fp16"): (137.0, 63.0),
    ("text_encoder", "int8"): (47.0, 47.0),
    ("denoiser", "fp16"): (132.0, 54.0),
    ("denoiser", "int8"): (44.0, 43.0),
    ("decoder", "fp16"): (129.0, 53.0),
}
"""Floors in dB of float32 and of half precision."""


@pytest.fixture(scope="module")
def saved(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a graph of the tiny student, by name and scheme."""
    folder = tmp_path_factory.mktemp("tiny")

    def save(name: str, scheme: str) -> Path:
        path = folder / f"{name}-{scheme}.tflite"
        if not path.exists():
            target.write(graph_of(student, name), parse_scheme(scheme), path)
        return path

    return save


def graph_of(student: Student, name: str) -> MobileGraph:
    return next(graph for graph in student.graphs if graph.name == name)


@pytest.mark.parametrize(("name", "scheme"), TINY)
def test_every_graph_of_the_tiny_bundle_computes_on_the_gpu_what_it_does_on_the_cpu(
    student: Student, saved: Callable[..., Path], name: str, scheme: str
) -> None:
    graph, path = graph_of(student, name), saved(name, scheme)
    inputs, whole = drawn(graph.functions[MAIN]), (name, scheme) != HALVED_TABLE
    expected = on_cpu(path, graph, inputs)
    for half, floor in zip((False, True), TINY[name, scheme], strict=True):
        ran = run_on_gpu(path, inputs, half=half, rest_on_cpu=not whole)
        assert ran.fully_accelerated is whole
        assert worst_db(ran.outputs, expected) >= floor


def test_rows_of_a_half_precision_table_are_all_that_the_text_encoder_leaves_to_the_cpu(
    student: Student, saved: Callable[..., Path]
) -> None:
    inputs = drawn(graph_of(student, HALVED_TABLE[0]).functions[MAIN])
    with pytest.raises(GpuRefusal) as refused:
        run_on_gpu(saved(*HALVED_TABLE), inputs)
    *words, count = refused.value.words
    # Half-precision weights become float32 as the file is loaded, since the graph is no longer one.
    assert words == ["DEQUANTIZE", "EMBEDDING_LOOKUP: EMBEDDING_LOOKUP: Empty quantization params."]
    assert "operations will run on the GPU" in count
    assert refused.value.partly


def test_a_low_step_of_the_shipped_student_runs_on_the_gpu_in_both_precisions(
    tmp_path: Path,
) -> None:
    graph = graph_of(make_student(tiny_student(), load_recipe("tiny-small")), "denoiser")
    path, inputs = tmp_path / "denoiser.tflite", drawn(graph.functions[STEP_LOW])
    target.write(graph, parse_scheme("int8"), path)
    expected = on_cpu(path, graph, inputs, STEP_LOW)
    for half in (False, True):
        ran = run_on_gpu(path, inputs, function=STEP_LOW, half=half)
        assert ran.fully_accelerated
        assert worst_db(ran.outputs, expected) >= STUDENT_DB


BLOCKS = FluxConfig(64, 1, 1, 64, 24, 768, 0, False, (16, 24, 24), 1)
"""A double and a single block of NanoFLUX's width, 1536."""
SIDE, WORDS = 4, 16  # 16 image tokens and 16 of text


@pytest.fixture(scope="module")
def blocks() -> MobileGraph:
    torch.manual_seed(0)
    model = NanoFlux(BLOCKS).eval().requires_grad_(False)
    ids = torch.from_numpy(np.concatenate((text_ids(WORDS), image_ids(SIDE, SIDE))))
    rope = rope_tables(ids, BLOCKS.axes_dims_rope)
    return MobileGraph("denoiser", {MAIN: denoiser_function(network(model), SIDE**2, WORDS, rope)})


def test_blocks_of_full_width_run_in_true_half_precision(
    blocks: MobileGraph, tmp_path: Path
) -> None:
    path, inputs = tmp_path / "blocks.tflite", drawn(blocks.functions[MAIN])
    target.write(blocks, parse_scheme("int8"), path)
    expected, ran = on_cpu(path, blocks, inputs), run_on_gpu(path, inputs, half=True)
    assert ran.fully_accelerated
    assert worst_db(ran.outputs, expected) >= BLOCKS_DB


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def test_a_function_is_run_by_its_name(tmp_path: Path) -> None:
    import litert_torch

    path, x = tmp_path / "two.tflite", np.float32([[1.0, 2.0, 3.0, 5.0]])
    sample = {"sample_kwargs": {"x": torch.ones(1, 4)}}
    both = litert_torch.signature("double", Doubled().eval(), **sample)
    both.signature("square", Squared().eval(), **sample).convert().export(str(path))
    for function, expected in (("double", 2 * x), ("square", x * x)):
        (answer,) = run_on_gpu(path, {"x": x}, function=function).outputs.values()
        assert np.array_equal(answer, expected)


class Spread(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True).expand(1, 8, 4, 4).contiguous()


class FiveAxes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        five = x.reshape(1, 2, 4, 4, 4)
        return torch.cat((five[:, :, 1:3], five[:, :, :1]), 2).reshape(1, 2, 12, 4)


class Picked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, torch.tensor([2, 0, 5, 1])]


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) + x


def quantised(path: Path, recipe: str) -> Path:
    """A file as the stock quantiser stores it."""
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer import recipe as recipes

    out = path.with_name(f"{recipe}.tflite")
    made = quantizer.Quantizer(str(path))
    made.load_quantization_recipe(getattr(recipes, recipe)())
    made.quantize().export_model(str(out))
    return out


CROWD, ROWS = (1, 8, 4, 4), (1, 16, 64)
REFUSED = {
    "broadcast": (Spread, CROWD, "", "BROADCAST_TO: Operation is not supported."),
    "five axes": (FiveAxes, CROWD, "", "SLICE: Slicing is unsupported for input with rank > 4"),
    "picked": (Picked, CROWD, "", "GATHER_ND: Operation is not supported."),
    "int8 dense": (Dense, ROWS, "dynamic_wi8_afp32", "Unable to parse bc coord for BATCH axis"),
    "stored dense": (Dense, ROWS, "weight_only_wi8_afp32", "Shape mismatch"),
    "blockwise": (Dense, ROWS, "dynamic_wi4b32_afp32", "its process was ended by SIG"),
}
"""What the accelerator of ai-edge-litert 2.3.0 does not take: why the mobile form avoids it."""


@pytest.mark.parametrize("case", REFUSED)
def test_what_phones_refuse_is_refused_here_in_the_delegates_own_words(
    case: str, tmp_path: Path
) -> None:
    made, shape, recipe, words = REFUSED[case]
    path = tmp_path / "one.tflite"
    convert(made(), {"x": torch.zeros(shape)}, ["y"], path)
    path = quantised(path, recipe) if recipe else path
    with pytest.raises(GpuRefusal) as refused:
        run_on_gpu(path, {"x": normal(*shape)})
    assert words in str(refused.value)


class Biased(nn.Module):
    """Scores (H, S, S) and a constant for each head, as attention with a position bias has them."""

    def __init__(self, folded: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bias, self.folded = nn.Parameter(torch.randn(1, 4, 16, 16)), folded

    def forward(self, scores: Tensor) -> Tensor:
        if self.folded:
            flat = scores.reshape(1, 64, 1, 16) + self.bias.reshape(1, 64, 1, 16)
            return flat.reshape(1, 4, 16, 16)
        return scores + self.bias


@pytest.mark.parametrize("folded", [False, True])
def test_a_constant_beside_a_batch_is_computed_wrongly_without_a_word(
    folded: bool, tmp_path: Path
) -> None:
    """Why attention adds its bias to scores of one batch; also that wrong numbers are seen."""
    path, scores = tmp_path / "one.tflite", normal(4, 16, 16)
    module = Biased(folded)
    convert(module, {"scores": torch.zeros(4, 16, 16)}, ["y"], path)
    ran, expected = run_on_gpu(path, {"scores": scores}), module(torch.from_numpy(scores))
    assert ran.fully_accelerated
    db = worst_db(ran.outputs, {"y": expected.detach().numpy()})
    assert db >= 140 if folded else db <= 30  # 25 dB where it is wrong


def test_a_bundle_is_checked_component_by_component(micro) -> None:
    bundle = micro.bundles["litert"]
    found = check(bundle, read_manifest(bundle), probes(load_golden(bundle / GOLDEN)))
    assert [figure.component for figure in found] == ["text_encoder", "denoiser", "decoder"]
    assert [figure.fully_accelerated for figure in found] == [False, True, True]
    assert any(words.startswith("EMBEDDING_LOOKUP") for words in found[0].on_cpu)
    assert all(figure.device.startswith("llvmpipe") for figure in found)
    for figure in found:
        assert figure.holds, figure
