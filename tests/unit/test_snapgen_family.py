"""A SnapGen folder from opening to phone files, on a student as small as its form allows.

Shapes: Z latent channels, C channels, S cells, T text tokens, J text width, E time width.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nanoflux_export.bundle import target_named
from nanoflux_export.compression.rounding import rounded
from nanoflux_export.families import snapgen as mobile
from nanoflux_export.graph import MAIN, Function, MobileGraph, Segment
from nanoflux_export.recipe import load_recipe
from nanoflux_export.torch_run import torch_graphs, torch_runner
from nanoflux_mobile import variants
from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.drawing import draw, noise_tokens
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families import snapgen as family
from nanoflux_mobile.families.snapgen import Networks, SnapGenParts
from nanoflux_mobile.models.clip import ClipConfig, ClipText
from nanoflux_mobile.models.snapgen import STUDENT, SnapGen, SnapGenConfig, join_context
from nanoflux_mobile.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.sampler import unpack
from nanoflux_mobile.spec import Component, parse_scheme
from nanoflux_mobile.tokenizer import CLIP_END, CLIP_START, clip_tokenizer
from nanoflux_mobile.weights import network

EQUAL_DB = 100.0
"""Of float32 against float32 over some thirty layers; 130 dB and more measured."""
SAME_WEIGHTS_DB = 60.0
"""A saved file on the weights it holds; 115 dB measured, and 155 dB where no scalar is half."""
INT8_DB = 38.0
"""LiteRT's int8 also rounds what flows through a layer, to 8 bits; 44 dB measured."""
PROMPT, STEPS, TOKENS, SIDE = "a red circle", 3, 16, 16

UNET = SnapGenConfig(
    in_channels=4,
    block_out_channels=(16, 32),
    layers_per_block=(1, 1),
    down_transformers=(0, 1),
    up_transformers=(0, 1),
    self_attention=(False, True),
    attention_head_dim=8,
    multi_query=True,
    ff_mult=2,
    cross_attention_dim=48,
    encoder_hid_dim=0,
    resnet_conv="expanded",
    down_conv="separable",
    up_conv="dense",
    norm_num_groups=4,
    time_embed_dim=12,
    size_embeds=False,
)
DECODER = TinyDecoderConfig(4, 3, (8, 8), (1, 1), 4, 1.5, 0.1)


def letters() -> dict[str, int]:
    """A byte-pair vocabulary without merges."""
    tokens = [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    return {token: i for i, token in enumerate([*tokens, CLIP_START, CLIP_END])}


def tower(width: int, layers: int, activation: str) -> ClipConfig:
    count = len(letters())
    return ClipConfig(count, width, 2 * width, layers, 2, TOKENS, 1e-5, activation, count - 1)


CLIP_L, CLIP_G = tower(16, 3, "quick_gelu"), tower(24, 3, "gelu")


@pytest.fixture(scope="module")
def make(off_initial: Callable[[nn.Module, int], nn.Module]) -> Callable[..., SnapGenParts]:
    """Parts with random weights; a config of None leaves its part out."""

    def made(
        unet: SnapGenConfig = UNET,
        left: ClipConfig | None = CLIP_L,
        right: ClipConfig | None = CLIP_G,
        side: int = SIDE,
    ) -> SnapGenParts:
        torch.manual_seed(0)
        towers = (cfg and network(off_initial(ClipText(cfg), 2)) for cfg in (left, right))
        own = Networks(
            network(off_initial(SnapGen(unet), 1)),
            *towers,
            network(off_initial(TinyDecoder(DECODER), 3)),
        )
        return SnapGenParts(own, clip_tokenizer(letters(), []), {"shift": 3.0}, side)

    return made


@pytest.fixture(scope="module")
def parts(make) -> SnapGenParts:
    return make()


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory) -> Path:
    """It as a checkpoint; do not write into it."""
    path = tmp_path_factory.mktemp("snapgen") / "checkpoint"
    family.save(parts, path)
    return path


@pytest.fixture(scope="module")
def probes(parts) -> dict[str, dict[str, np.ndarray]]:
    """Inputs of every graph."""
    ids = family.token_ids(parts, PROMPT)
    states = family.graphs(parts).text_encoder({"token_ids": ids})["text_states"]
    noise, table = noise_tokens(0, parts.canvas), family.step_tables(parts, PROMPT, STEPS)[1]
    latents = unpack(noise[:, :, 0].transpose(0, 2, 1), 8, 8, 1)
    return {
        "text_encoder": {"token_ids": ids},
        "denoiser": {"latents": noise, "text_states": states, "step_table": table},
        "decoder": {"latents": np.ascontiguousarray(latents)},
    }


def only(graph: MobileGraph) -> Function:
    return graph.functions[MAIN]


def drawn(parts: SnapGenParts, graphs) -> np.ndarray:
    return draw(
        graphs,
        family.token_ids(parts, PROMPT),
        family.step_tables(parts, PROMPT, STEPS),
        family.noise_levels(parts, STEPS),
        parts.canvas,
        seed=0,
    ).image


# A folder


def test_a_folder_comes_back_as_it_was(parts, folder):
    opened = open_checkpoint(folder)
    back = family.load(opened)
    assert (opened.family, back.unet, back.side) == ("snapgen", UNET, SIDE)
    assert back.tokenizer.to_str() == parts.tokenizer.to_str()
    # Mapped weights lie elsewhere in memory, where torch may sum in another order.
    ours = drawn(back, family.graphs(back))
    assert psnr_db(ours, drawn(parts, family.graphs(parts))) >= EQUAL_DB


def test_the_folder_says_what_is_in_it(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index.pop("_class_name") == "SnapGenPipeline"
    assert index.keys() == {path.name for path in folder.iterdir() if path.is_dir()}


@pytest.mark.parametrize("absent", ["text_encoder", "text_encoder_2"])
def test_one_tower_is_enough(make, tmp_path, absent):
    left, right = (None, CLIP_G) if absent == "text_encoder" else (CLIP_L, None)
    alone = make(dataclasses.replace(UNET, cross_attention_dim=800), left, right)
    family.save(alone, tmp_path / "alone")
    assert not (tmp_path / "alone" / absent).exists()
    back = family.load(open_checkpoint(tmp_path / "alone"))
    states = family.graphs(back).text_encoder({"token_ids": family.token_ids(back, PROMPT)})
    text = states["text_states"][0, :, 0]
    begin, end = (768, 768 + 24) if absent == "text_encoder" else (0, 16)
    assert text.shape == (800, TOKENS)
    assert (text[begin:end] != 0).all()
    assert not text[:begin].any()
    assert not text[end:].any()


def test_a_tower_with_a_projection_opens_without_it(parts, folder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "text_encoder_2"
    copy.mkdir()
    tensors = load_file(folder / "text_encoder_2" / "model.safetensors")
    save_file(tensors | {"text_projection.weight": torch.ones(24, 24)}, copy / "model.safetensors")
    weights = dataclasses.replace(open_checkpoint(folder), path=tmp_path).weights
    assert (
        weights("text_encoder_2", family.CLIP_KEYS).keys() == parts.networks.clip_g.weights.keys()
    )


# Running


def test_the_graphs_are_the_networks(parts, probes):
    """The host's layouts undone by hand: cells in a row, time and text as columns."""
    own, given = parts.networks, probes["denoiser"]
    ids_BT = torch.from_numpy(probes["text_encoder"]["token_ids"]).long()
    states = [part.module.states(ids_BT)[0] for part in (own.clip_l, own.clip_g)]
    text_BTJ = join_context(*states, None, (16, 24, 48))
    text = given["text_states"][:, :, 0]
    assert psnr_db(text, text_BTJ.transpose(1, 2).numpy()) >= EQUAL_DB
    sigma_B = torch.tensor([family.noise_levels(parts, STEPS).sigmas[1]])
    states_BE = own.denoiser.module.time_states(sigma_B)
    assert given["step_table"][:, :, 0, 0] == pytest.approx(states_BE.numpy(), abs=1e-6)
    x_BZhw = torch.from_numpy(probes["decoder"]["latents"])
    expected = own.denoiser.module(x_BZhw, text_BTJ, states_BE)
    velocity = family.graphs(parts).denoiser(given)["velocity"]
    assert psnr_db(velocity.reshape(expected.shape), expected.numpy()) >= EQUAL_DB


def test_both_towers_read_ids_filled_up_with_the_end(parts):
    ids = family.token_ids(parts, PROMPT)
    end = parts.tokenizer.token_to_id(CLIP_END)
    first = ids[0].tolist().index(end)
    assert ids.shape == (1, TOKENS)
    assert 0 < first < TOKENS - 1
    assert set(ids[0, first:]) == {end}
    entry = family.tokenizer_entry(parts, "tokenizer")
    assert (entry.pad, entry.length) == (CLIP_END, TOKENS)


def test_levels_are_the_schedulers_and_any_number_of_steps_goes(parts):
    assert family.fixed_steps(parts) is None
    for steps in (1, 4, 9):
        levels = family.noise_levels(parts, steps)
        assert (levels.steps, levels.low_steps) == (steps, 0)
        assert family.step_tables(parts, PROMPT, steps).shape == (steps, 1, 12, 1, 1)
    assert levels.sigmas[1] == pytest.approx(3 * (8 / 9) / (1 + 2 * 8 / 9))
    assert family.make_student(parts, 4, [PROMPT]) is parts


def test_a_time_may_also_tell_the_size(make):
    parts = make(dataclasses.replace(UNET, size_embeds=True))
    table = family.step_tables(parts, PROMPT, 1)[0, :, :, 0, 0]
    sizes_B2 = torch.full((1, 2), float(SIDE))
    expected = parts.networks.denoiser.module.time_states(torch.ones(1), sizes_B2)
    assert table == pytest.approx(expected.numpy(), abs=1e-6)


# Mobile graphs


def assert_same_graphs(parts: SnapGenParts) -> None:
    own = torch_graphs(mobile.graphs(parts))
    whole = family.graphs(parts)
    ids = family.token_ids(parts, PROMPT)
    expected = whole.text_encoder({"token_ids": ids})
    text = own.text_encoder({"token_ids": ids})["text_states"]
    assert psnr_db(text, expected["text_states"]) >= EQUAL_DB
    table, noise = family.step_tables(parts, PROMPT, 1)[0], noise_tokens(0, parts.canvas)
    given = {"latents": noise, **expected, "step_table": table}
    answer = whole.denoiser(given)["velocity"]
    assert answer.std() > 0.05, "an oracle that says nothing proves nothing"
    assert psnr_db(own.denoiser(given)["velocity"], answer) >= EQUAL_DB


STAGES = {
    "two stages": {},
    "transformers in both": {"down_transformers": (1, 2), "up_transformers": (2, 1)},
    "three": {
        "block_out_channels": (16, 24, 16),
        "layers_per_block": (1, 2, 1),
        "down_transformers": (0, 1, 1),
        "up_transformers": (1, 0, 1),
        "self_attention": (False, True, True),
    },
    "projected text, dense": {
        "encoder_hid_dim": 40,
        "resnet_conv": "dense",
        "down_conv": "dense",
        "up_conv": "separable",
        "size_embeds": True,
    },
}


@pytest.mark.parametrize("changes", STAGES.values(), ids=STAGES)
def test_the_mobile_graphs_are_the_student(make, changes):
    assert_same_graphs(make(dataclasses.replace(UNET, **changes), side=32))


@pytest.mark.parametrize(
    ("left", "right", "width"),
    [(None, CLIP_G, 800), (CLIP_L, None, 48), (CLIP_L, None, 16), (CLIP_L, CLIP_G, 40)],
    ids=["CLIP-G alone", "CLIP-L alone", "CLIP-L and no zeros", "both and no zeros"],
)
def test_towers_are_joined_as_the_student_reads_them(make, left, right, width):
    assert_same_graphs(make(dataclasses.replace(UNET, cross_attention_dim=width), left, right))


def test_a_whole_picture_is_the_students(parts):
    graphs = torch_graphs(mobile.graphs(parts))
    assert psnr_db(drawn(parts, graphs), drawn(parts, family.graphs(parts))) >= EQUAL_DB


def test_segments_of_one_kind_are_built_alike(make):
    """The same parameters in the same shapes, on the same values: what targets stamp."""
    parts = make(dataclasses.replace(UNET, **STAGES["three"]), side=32)
    for graph in mobile.graphs(parts):
        function, kinds = only(graph), {}
        for segment in function.segments:
            shapes = {name: p.shape for name, p in segment.build().named_parameters()}
            edges = [function.shape(name) for name in (*segment.inputs, *segment.outputs)]
            assert kinds.setdefault(segment.kind, (shapes, edges)) == (shapes, edges)
        weights = [segment.weights for segment in function.segments]
        assert len(set(weights)) == len(weights)
        assert all(len(shape) == 4 for shape in function.wires.values())


@pytest.fixture(scope="module")
def published() -> SnapGenParts:
    """The student of the paper, as shapes."""
    from nanoflux_mobile.weights import Network, Stored

    def hollow(component: variants.Component) -> Network:
        module = variants.skeleton(component)
        stored = {
            k: Stored(tuple(v.shape), "float16", 0, v.clone) for k, v in module.state_dict().items()
        }
        return Network(module, stored)

    made = {k: hollow(part) for k, part in variants.load("snapgen").components.items()}
    own = Networks(made["unet"], made["text_encoder"], made["text_encoder_2"], made["vae"])
    return SnapGenParts(own, clip_tokenizer(letters(), []), {}, 1024)


def test_the_published_student_takes_few_conversions(published):
    """24 layers at the lowest resolution, 10 in the middle, 2 at the top: three forms."""
    text, denoiser, _ = mobile.graphs(published)
    kinds = Counter(segment.kind for segment in only(denoiser).segments)
    layers = [count for kind, count in kinds.items() if kind.startswith("layers")]
    assert sorted(layers) == [2, 10, 24]
    assert sum(count for kind, count in kinds.items() if kind.startswith("resnets")) == 15
    assert len(kinds) <= 30
    time = sum(p.numel() for p in published.networks.denoiser.skeleton.time_embedding.parameters())
    held = sum(segment.parameters for segment in only(denoiser).segments)
    assert held == published.networks.denoiser.count() - time
    assert max(segment.parameters for segment in only(denoiser).segments) < 20e6
    words = Counter(segment.kind for segment in only(text).segments)
    assert words["text_encoder.layers"], words["text_encoder_2.layers"] == (11, 31)
    assert only(text).outputs[0].shape == (1, 2304, 1, 77)
    assert [spec.shape for spec in only(denoiser).inputs] == [
        (1, 16, 1, 128 * 128),
        (1, 2304, 1, 77),
        (1, 1024, 1, 1),
    ]


# Files


def assert_the_file_answers(
    parts: SnapGenParts, probes, out: Path, target_name: str, component: str, scheme_name: str
) -> None:
    """A written graph against PyTorch on the same rounded weights."""
    target, scheme = target_named(target_name), parse_scheme(scheme_name)
    graph = next(graph for graph in mobile.graphs(parts) if graph.name == component)
    function, path = only(graph), out / f"{component}{target.SUFFIX}"
    target.write(graph, scheme, path)

    def stored(segment: Segment, module: nn.Module) -> nn.Module:
        return rounded(module, scheme, half_constants=target.HALF_CONSTANTS)

    given = probes[component]
    (expected,) = torch_runner(function, stored)(given).values()
    run = target.load(path, Component(graph.name, function.inputs, function.outputs))
    (made,) = run(given).values()
    floor = INT8_DB if scheme.kind == "int" else SAME_WEIGHTS_DB
    assert psnr_db(made, expected) >= floor


def test_the_text_encoder_becomes_a_core_ml_package(make, probes, tmp_path):
    """One tower with zeros before and behind it: every form that there is, each once."""
    pytest.importorskip("coremltools")
    parts = make(dataclasses.replace(UNET, cross_attention_dim=800), None)
    assert_the_file_answers(parts, probes, tmp_path, "coreml", "text_encoder", "palette6-g16")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp16", "int8"])
def test_the_text_encoder_becomes_a_litert_file(parts, probes, tmp_path, scheme):
    pytest.importorskip("litert_torch")
    assert_the_file_answers(parts, probes, tmp_path, "litert", "text_encoder", scheme)


@pytest.mark.slow
def test_the_denoiser_becomes_a_core_ml_package(parts, probes, tmp_path):
    pytest.importorskip("coremltools")
    assert_the_file_answers(parts, probes, tmp_path, "coreml", "denoiser", "palette6-g16")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp16", "int8"])
def test_the_denoiser_becomes_a_litert_file(parts, probes, tmp_path, scheme):
    pytest.importorskip("litert_torch")
    assert_the_file_answers(parts, probes, tmp_path, "litert", "denoiser", scheme)


def test_the_recipe_is_of_the_family():
    recipe = load_recipe("snapgen-1024")
    assert (recipe.family, recipe.side, recipe.proof) == ("snapgen", 1024, "steps")
    variant = variants.load("snapgen")
    assert (variant.steps, variant.components["unet"].config) == (recipe.steps, STUDENT)


# Bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"left": None, "right": None}, r"neither text_encoder \(CLIP-L\) nor text_encoder_2"),
        ({"unet": {"in_channels": 8}}, r"unet reads latents of 8 channels, the vae has 4"),
        ({"unet": {"cross_attention_dim": 32}}, r"width 32, text_encoder gives 16 .* 24"),
        ({"unet": {"cross_attention_dim": 2304}}, r"width 2304, text_encoder gives 16"),
        (
            {
                "unet": {"cross_attention_dim": 2304},
                "left": tower(1280, 1, "gelu"),
                "right": tower(768, 1, "gelu"),
            },
            r"width 2304, text_encoder gives 1280 of it and text_encoder_2 768",
        ),
        ({"right": dataclasses.replace(CLIP_G, max_position_embeddings=9)}, r"text_encoder_2 9"),
        ({"side": 18}, r"pictures of 18 px do not fit this UNet; give a multiple of 4"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_a_sentence(make, changes, words):
    changes = {**changes, "unet": dataclasses.replace(UNET, **changes.get("unet", {}))}
    with pytest.raises(InputError, match=words):
        make(**changes)


def test_a_folder_without_towers_is_refused(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "checkpoint"))
    for name in family.TOWERS:
        shutil.rmtree(copy / name)
    with pytest.raises(InputError, match="neither text_encoder"):
        family.load(open_checkpoint(copy))


def test_a_unet_of_another_class_is_refused(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "checkpoint"))
    config = json.loads((copy / "unet" / "config.json").read_text())
    text = json.dumps(config | {"_class_name": "UNet2DConditionModel"})
    (copy / "unet" / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"_class_name is 'UNet2DConditionModel'; only 'Snap"):
        family.load(open_checkpoint(copy))


def test_a_unet_with_many_key_heads_has_no_phone_graphs(make):
    with pytest.raises(InputError, match="key and value head for every query head"):
        mobile.graphs(make(dataclasses.replace(UNET, multi_query=False)))


def test_prompts_that_do_not_fit_are_refused_before_any_work(parts):
    with pytest.raises(InputError, match=f"this model reads {TOKENS}"):
        family.make_student(parts, 4, ["circle circle circle circle"])
    with pytest.raises(InputError, match="steps is 0"):
        family.make_student(parts, 0, [PROMPT])
