"""Values beyond half precision: found where they arise, and folded away without changing a number.

Oracles: the same graph before it was made to overflow, torch's own half precision, and the Core ML
executor rounding every result of a saved package to half precision.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanoflux_export.families.nanoflux import graphs as flux_graphs
from nanoflux_export.fitting.activations import wire_ranges
from nanoflux_export.fitting.calibration import Calibration
from nanoflux_export.fitting.half_safety import Hazard, found_in, hazards
from nanoflux_export.graph import MAIN, MobileGraph, one_segment, rewritten
from nanoflux_export.mobile.clip_text import MobileClipLayer
from nanoflux_export.mobile.decoder import MobilePixelAttention
from nanoflux_export.mobile.text_encoder import MobileBlock, MobileGatedFeedForward
from nanoflux_export.mobile.unet import MobileTransformerBlock
from nanoflux_export.rewrites.channel_norm import ChannelLayerNorm, ChannelRMSNorm
from nanoflux_export.rewrites.group_norm import RankFourGroupNorm
from nanoflux_export.rewrites.scale_folding import (
    LIMIT,
    Folds,
    LinearPath,
    Range,
    find_folds,
    folded,
)
from nanoflux_export.tape import Lazy, Tape
from nanoflux_export.torch_run import torch_runner
from nanoflux_mobile.families.nanoflux import FluxParts, Networks
from nanoflux_mobile.models.clip import ClipConfig, ClipText
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.snapgen import STUDENT, SnapGen, TransformerBlock
from nanoflux_mobile.models.t5 import T5Config, T5Encoder
from nanoflux_mobile.models.vae import Autoencoder, PixelAttention, VaeConfig
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme
from nanoflux_mobile.weights import network

HALF_DB = 40.0
"""Every result rounded to 11 bits; 50 dB and more were measured."""
LOST_DB = 20.0

T5 = T5Config(40, 32, 8, 64, 2, 4, 32, 128, 1e-6, "gated-gelu")
FLUX = FluxConfig(16, 1, 1, 16, 2, 24, 8, False, (4, 6, 6), static_steps=2)
VAE = VaeConfig(3, 3, (8, 16), 1, 4, 4, 1.0, 0.0, True, False, True)
CLIP = ClipConfig(40, 24, 48, 1, 2, 8, 1e-5, "quick_gelu", 39)
UNET = dataclasses.replace(
    STUDENT,
    in_channels=4,
    block_out_channels=(16, 16, 16),
    down_transformers=(1, 1, 1),
    up_transformers=(1, 1, 1),
    attention_head_dim=8,
    cross_attention_dim=20,
    norm_num_groups=4,
    time_embed_dim=12,
)
WORDS = 6
AXES = ("batch", "channels", "one", "tokens")


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight drawn again, as large as keeps values about 1."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            bound = p[0].numel() ** -0.5 if p.ndim > 1 else 0.1
            p.copy_((p if p.ndim == 1 else 0) + bound * torch.randn(p.shape, generator=draw))
    return module.eval().requires_grad_(False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def first(kind: type[nn.Module], network: nn.Module) -> nn.Module:
    return next(part for part in filled(network).modules() if isinstance(part, kind))


# Folding changes no number in float32


def flux_segment(prefix: str) -> nn.Module:
    towers = filled(NanoFlux(FLUX)), filled(T5Encoder(T5)), filled(Autoencoder(VAE))
    parts = FluxParts(Networks(*map(network, towers)), None, None, {}, WORDS, side=16)  # type: ignore[arg-type]
    (denoiser,) = (graph for graph in flux_graphs(parts) if graph.name == "denoiser")
    segments = denoiser.functions[MAIN].segments
    return next(s for s in segments if s.weights.startswith(prefix)).build()


def t5_block(feed: str) -> nn.Module:
    return MobileBlock(
        filled(T5Encoder(dataclasses.replace(T5, feed_forward_proj=feed))).encoder.block[0]
    )


IMAGE, TEXT = normal(1, 32, 1, 16, seed=1), normal(1, 32, 1, WORDS, seed=2)
CASES: Mapping[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], int]] = {
    "T5 v1.1": (lambda: t5_block("gated-gelu"), (TEXT, normal(1, 4, WORDS, WORDS)), 2),
    "T5 v1.0": (lambda: t5_block("relu"), (TEXT, normal(1, 4, WORDS, WORDS)), 2),
    "double": (lambda: flux_segment("doubles"), (IMAGE, TEXT, normal(1, 32, 1, 12)), 1),
    "single": (
        lambda: flux_segment("singles"),
        (torch.cat((TEXT, IMAGE), 3), normal(1, 32, 1, 3)),
        1,
    ),
    "CLIP": (
        lambda: MobileClipLayer(filled(ClipText(CLIP)).text_model.encoder.layers[0]),
        (normal(1, 24, 1, 8), normal(1, 1, 8, 8)),
        1,
    ),
    "UNet": (
        lambda: MobileTransformerBlock(first(TransformerBlock, SnapGen(UNET))),
        (normal(1, 16, 1, 12), normal(1, 20, 1, 5), None),
        2,
    ),
    "decoder": (
        lambda: MobilePixelAttention(first(PixelAttention, Autoencoder(VAE))),
        (normal(1, 16, 4, 4),),
        1,
    ),
}
"""Modules with linear paths, what they take, and how many paths run through them."""


def alone(module: nn.Module) -> MobileGraph:
    return one_segment(Component("denoiser", (), ()), module)


def built(graph: MobileGraph) -> nn.Module:
    (segment,) = graph.functions[MAIN].segments
    return segment.build()


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_every_linear_path_can_be_scaled_without_changing_a_bit(case: str) -> None:
    make, inputs, count = CASES[case]
    module = make()
    graph = alone(module)
    before = module(*inputs)
    huge = {
        f"denoiser/{path}": Range(0.0, 2.0**20)
        for path, part in module.named_modules()
        if path.rpartition(".")[2] in ("v", "wi", "wi_1", "value")
    }
    folds = find_folds(graph, huge)
    assert len(folds.scales) == count
    assert set(folds.scales.values()) == {2.0**7}  # the least that gets 2**20 below 65504 / 4
    after = built(folded(graph, folds))
    for ours, theirs in zip(_all(after(*inputs)), _all(before), strict=True):
        assert torch.equal(ours, theirs)
    old, new = (dict(m.named_parameters()) for m in (module, after))
    assert old.keys() == new.keys()
    lines = [line for _, line in folds.scales]
    makers = {f"{path}.{p}" for line in lines for path in line.makers for p in ("weight", "bias")}
    takers = {f"{path}.weight" for line in lines for path in line.takers}
    for name, weight in old.items():
        changed = new[name] / weight
        if name in makers:
            assert (changed == 2.0**-7).all()
        elif name in takers and case != "single":
            assert (changed == 2.0**7).all()
        elif name in takers:
            assert (changed[:, :32] == 2.0**7).all()
            assert (changed[:, 32:] == 1).all()
        else:
            assert new[name] is weight  # shared, not copied
    assert torch.equal(_all(module(*inputs))[0], _all(before)[0])


def _all(made: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (made,) if isinstance(made, Tensor) else made


NORMS: Mapping[str, Callable[[], nn.Module]] = {
    "rms": lambda: ChannelRMSNorm(1 + 0.1 * normal(16), 1e-6),
    "layer": lambda: ChannelLayerNorm(1e-6),
    "group": lambda: RankFourGroupNorm(filled(nn.GroupNorm(4, 16))),  # type: ignore[arg-type]
}
SHAPE = (1, 16, 4, 4)


class Normed(nn.Module):
    """A convolution that gives values of about 700, their norm, and another convolution."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.norm, self.after = nn.Conv2d(16, 16, 1), norm, nn.Conv2d(16, 16, 1)
        self.before.weight.data *= 1000
        self.requires_grad_(False)

    def forward(self, latents: Tensor) -> Tensor:
        return self.after(self.norm(self.before(latents)))


def normed(norm: str) -> MobileGraph:
    axes = ("batch", "channels", "rows", "columns")
    specs = (TensorSpec(name, axes, SHAPE, "float32") for name in ("latents", "velocity"))
    takes, gives = specs
    return one_segment(Component("denoiser", (takes,), (gives,)), Normed(NORMS[norm]()))


LATENTS = {"latents": normal(*SHAPE).numpy()}
CALIBRATION = Calibration({("denoiser", MAIN): (LATENTS,)})


@pytest.mark.parametrize("norm", NORMS)
@torch.inference_mode()
def test_a_norm_whose_square_overflows_is_divided_and_torch_in_half_precision_agrees(
    norm: str,
) -> None:
    graph, latents = normed(norm), torch.from_numpy(LATENTS["latents"])
    module, (hazard,) = built(graph), hazards(graph, CALIBRATION)
    assert (hazard.module, hazard.op) == ("denoiser/norm", "square")
    assert hazard.overflows
    assert hazard.foldable
    expected = module(latents)
    lost = _half(module)(latents.half()).float()
    assert not psnr_db(lost.numpy(), expected.numpy()) >= LOST_DB
    folds = _folds(graph, CALIBRATION)
    (divisor,) = folds.divisors.values()
    assert hazard.most / divisor**2 <= LIMIT / 4 < hazard.most / (divisor / 2) ** 2
    after = folded(graph, folds)
    assert torch.equal(built(after)(latents), expected)
    assert hazards(after, CALIBRATION) == ()
    mended = _half(built(after))(latents.half()).float()
    assert psnr_db(mended.numpy(), expected.numpy()) >= HALF_DB
    assert module.norm.divisor == 1.0  # that of the graph before


def _half(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).half()


def _folds(graph: MobileGraph, calibration: Calibration, headroom: float = 4.0) -> Folds:
    return find_folds(graph, wire_ranges(graph, calibration), headroom)


# A student that overflows


STATES = TensorSpec("text_states", AXES, (1, 32, 1, WORDS), "float32")
INPUT = TensorSpec("x_0", AXES, (1, 32, 1, WORDS), "float32")
TEXT_CALIBRATION = Calibration(
    {
        ("text_encoder", MAIN): tuple(
            {"x_0": normal(1, 32, 1, WORDS, seed=i).numpy()} for i in (3, 4)
        )
    }
)


class Biased(nn.Module):
    """A T5 layer with its position bias."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.block = MobileBlock(filled(T5Encoder(T5), 7).encoder.block[index])
        self.bias = nn.Parameter(normal(1, 4, WORDS, WORDS), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, self.bias)


@pytest.fixture(scope="module")
def encoder() -> MobileGraph:
    """Two T5 layers of one kind."""
    tape = Tape()
    for i, made in enumerate(("x_1", "text_states")):
        count = sum(p.numel() for p in Biased(i).parameters())
        tape.put(
            f"blocks.{i}", Lazy(lambda i=i: Biased(i), count), (f"x_{i}",), **{made: STATES.shape}
        )
    return MobileGraph("text_encoder", {MAIN: tape.function((INPUT,), (STATES,))})


def inflated(graph: MobileGraph, up: str, down: str, by: float) -> MobileGraph:
    """The same function of float32 numbers; between `up` and `down` of block 1 they are larger."""

    @torch.no_grad()
    def change(segment, module):
        if segment.weights == "blocks.1":
            module.get_submodule(up).weight.mul_(by)
            module.get_submodule(down).weight.div_(by)
        return module

    return rewritten(graph, change)


@pytest.mark.parametrize(
    ("up", "down", "by"),
    [("block.feed.wi_1", "block.feed.wo", 2.0**16), ("block.v", "block.o", 2.0**16)],
)
def test_an_inflated_layer_is_named_alone_and_folded_back(
    encoder: MobileGraph, up: str, down: str, by: float
) -> None:
    graph = inflated(encoder, up, down, by)
    assert hazards(encoder, TEXT_CALIBRATION) == ()
    (hazard,) = hazards(graph, TEXT_CALIBRATION)
    assert (hazard.module, hazard.op) == (f"blocks.1/{up}", "conv2d")
    assert hazard.overflows
    assert hazard.foldable
    folds = _folds(graph, TEXT_CALIBRATION)
    assert folds.scales.keys() == {("blocks.1", LinearPath((up,), (down,)))}
    after = folded(graph, folds)
    assert hazards(after, TEXT_CALIBRATION) == ()
    assert {s.kind for s in after.functions[MAIN].segments} == {"blocks"}
    for inputs in TEXT_CALIBRATION.inputs["text_encoder", MAIN]:
        answers = [torch_runner(g.functions[MAIN])(inputs) for g in (encoder, graph, after)]
        for answer in answers[1:]:
            np.testing.assert_array_equal(answer["text_states"], answers[0]["text_states"])


class Fed(nn.Module):
    """A norm and a gated feed-forward whose values between are larger by a factor."""

    def __init__(self, larger: float) -> None:
        super().__init__()
        dense = filled(T5Encoder(T5), 7).encoder.block[0].layer[1].DenseReluDense
        self.norm = ChannelRMSNorm(1 + 0.1 * normal(32), 1e-6)
        self.feed = MobileGatedFeedForward(dense)
        with torch.no_grad():
            self.feed.wi_1.weight.mul_(larger)
            self.feed.wo.weight.div_(larger)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed(self.norm(x))


def fed(larger: float) -> MobileGraph:
    return one_segment(Component("text_encoder", (INPUT,), (STATES,)), Fed(larger))


def test_the_saved_package_in_half_precision_is_lost_before_and_right_after(
    tmp_path: Path,
) -> None:
    """As the Core ML executor computes: an inflated layer, behind the norm of a large input."""
    pytest.importorskip("coremltools")
    from nanoflux_export.targets.coreml import target

    graph, loud = fed(2.0**16), {"x_0": 300 * normal(1, 32, 1, WORDS, seed=5).numpy()}
    calibration = Calibration({("text_encoder", MAIN): (loud,)})
    assert {(hazard.module, hazard.op) for hazard in hazards(graph, calibration)} == {
        ("text_encoder/norm", "square"),
        ("text_encoder/feed.wi_1", "conv2d"),
    }
    expected = torch_runner(fed(1.0).functions[MAIN])(loud)["text_states"]
    found = {}
    after = folded(graph, _folds(graph, calibration))
    for name, one in (("before", graph), ("after", after)):
        target.write(one, parse_scheme("fp16"), tmp_path / f"{name}.mlpackage")
        component = Component("text_encoder", (INPUT,), (STATES,))
        run = target.load(tmp_path / f"{name}.mlpackage", component, precision="fp16")
        with np.errstate(all="ignore"):
            found[name] = psnr_db(run(loud)["text_states"], expected)
    assert found["before"] < LOST_DB
    assert found["after"] >= HALF_DB


def test_a_residual_stream_that_overflows_is_told_but_not_folded(encoder: MobileGraph) -> None:
    @torch.no_grad()
    def change(segment, module):
        if segment.weights == "blocks.0":
            module.block.o.weight.mul_(2.0**20)
        return module

    graph = rewritten(encoder, change)
    found = hazards(graph, TEXT_CALIBRATION)
    assert [h.most for h in found] == sorted((h.most for h in found), reverse=True)
    assert {(h.module, h.op, h.foldable) for h in found if h.overflows} == {
        ("blocks.0/block.o", "conv2d", False)
    }
    words = found[0].describe()
    assert words.startswith("conv2d in blocks.0/block.o reaches ")
    assert "65504" in words
    assert "float32" in words
    assert "clamp" in words


# What is said of measured ranges


def test_a_value_is_named_where_it_arises_the_worst_first() -> None:
    ranges = {
        "latents": Range(0.0, 30_000.0),
        "blocks.0/": Range(10.0, 1e6),  # a module shows what its operations make
        "blocks.0/up": Range(10.0, 1e6),
        "blocks.0/up:conv2d": Range(10.0, 1e6),
        "blocks.0/:relu": Range(1e6, 1e6),  # given it
        "blocks.0/:mul": Range(1e6, 3e6),  # infinite already
        "blocks.0/:add": Range(60_000.0, 65_000.0),
        "blocks.0/:sub": Range(5.0, 16_376.0),  # 65504 / 4
        "x_1": Range(1e6, 1e6),
    }
    found = found_in(ranges, Folds(covered=frozenset({"blocks.0/up:conv2d"})))
    assert found == (
        Hazard("blocks.0/up", "conv2d", 1e6, True),
        Hazard("blocks.0/", "add", 65_000.0, False),
        Hazard("latents", "", 30_000.0, False),
    )
    assert [hazard.overflows for hazard in found] == [True, False, False]
    assert found_in(ranges, Folds(), headroom=1.0) == (Hazard("blocks.0/up", "conv2d", 1e6, False),)


def test_hazards_are_said_in_one_sentence() -> None:
    assert Hazard("blocks.0/up", "conv2d", 131_008.0, True).describe() == (
        "conv2d in blocks.0/up reaches 1.31e+05, 2 times the 65504 of half precision; scale "
        "folding brings it down by a power of two, with equal results in float32"
    )
    said = Hazard("latents", "", 32_752.0, False).describe()
    assert said.startswith("the input latents reaches 3.275e+04, 50% of the 65504 of half")


def test_what_is_infinite_in_float32_or_small_is_not_folded(encoder: MobileGraph) -> None:
    for most in (math.inf, 16_000.0):
        assert _nothing(find_folds(encoder, {"blocks.0/block.v": Range(1.0, most)}))
    square = {"blocks.0/block.feed_norm:square": Range(1e5, 1e10)}
    lost = square | {"blocks.0/block.feed_norm": Range(1e5, 1.0)}
    assert _nothing(find_folds(encoder, lost))  # infinite before it is squared
    assert folded(encoder, Folds()).functions[MAIN].segments[0].kind == "blocks"


def _nothing(folds: Folds) -> bool:
    return not (folds.divisors or folds.scales or folds.covered)


def test_all_norms_of_a_kind_get_one_divisor_and_the_kind_another_name(
    encoder: MobileGraph,
) -> None:
    name = "block.feed_norm:square"
    ranges = {f"blocks.{i}/{name}": Range(1e3, most) for i, most in enumerate((1e6, 1e8))}
    folds = find_folds(encoder, ranges)
    assert folds.divisors == {("blocks", "block.feed_norm"): 2.0**7}
    segments = folded(encoder, folds).functions[MAIN].segments
    (kind,) = {segment.kind for segment in segments}
    assert kind.startswith("blocks~")
    assert [s.build().block.feed_norm.divisor for s in segments] == [2.0**7, 2.0**7]
    assert folds.key == {"divisors": {"blocks block.feed_norm": 2.0**7}, "scales": {}}
    milder = find_folds(encoder, dict(list(ranges.items())[:1]))
    assert folded(encoder, milder).functions[MAIN].segments[0].kind != kind
