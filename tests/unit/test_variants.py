"""The family as published: counts of NanoFLUX's stages, on networks that take no memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from nanoflux_export.inspecting import facts, inspect, overview, overview_row, size_rows
from nanoflux_mobile import variants
from nanoflux_mobile.cli import main
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models._blocks import Rows
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.sizing import Sizes
from nanoflux_mobile.strict_json import from_plain, to_plain

EXACT = 0.001
"""Published in millions with four digits; the counts themselves are exact."""
PAPER = 0.03
"""Published TMAC have three digits and leave small layers out."""
SHIPPED = "nanoflux-2.4b"


def transformer(name: str) -> Sizes:
    variant = variants.load(name)
    return variants.sizes(variant)["transformer"]


def network(**changes: object) -> NanoFlux:
    cfg = variants.load(SHIPPED).components["transformer"].config
    with torch.device("meta"):
        return NanoFlux(dataclasses.replace(cfg, **changes))


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if name != "step_table")


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("flux-12b", 11_891),
        ("nanoflux-5b", 5_289),
        ("nanoflux-3b", 2_978),
        ("nanoflux-2.5b", 2_482),
        ("nanoflux-1.8b", 1_763),
    ],
)
def test_every_stage_has_its_published_parameters(name, millions):
    assert transformer(name).parameters / 1e6 == pytest.approx(millions, rel=EXACT)


def test_token_downsampling_adds_what_the_paper_adds():
    """187 M is D, U and the projections of their scales and shifts, as AdaLN needs them.

    The paper's count has a time embedding of its own besides (2.8 M); Static-LN has neither, which
    leaves the convolutions: 8 of 9 d^2.
    """
    for steps, millions in ((0, 187), (10, 170)):
        off = network(static_steps=steps, low_resolution_blocks=(0, 0))
        added = count(network(static_steps=steps)) - count(off)
        assert added / 1e6 == pytest.approx(millions, rel=0.1)
    assert added == 8 * (9 * 1536**2 + 1536)


def test_a_quarter_of_the_teacher_is_modulation():
    with torch.device("meta"):
        teacher = NanoFlux(variants.load("flux-12b").components["transformer"].config)
    held = [count(part) for part in teacher.modules() if isinstance(part, Rows)]
    assert sum(held) / 1e9 == pytest.approx(3.247, rel=EXACT)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("flux-12b", 8.84),
        ("nanoflux-5b", 4.06),
        ("nanoflux-3b", 2.35),
        ("nanoflux-2.5b", 1.78),
        ("nanoflux-1.8b", 1.78),
        (SHIPPED, 1.78),
    ],
)
def test_a_full_step_computes_what_the_paper_says(name, tera):
    assert transformer(name).macs["full"] / 1e12 == pytest.approx(tera, rel=PAPER)


def test_a_low_step_saves_what_the_paper_says():
    """1.18 TMAC are those of the transformer's blocks; the resamplers cost another 0.125.

    So a low step is 0.734 of a full one, as near to the measured 0.205 s of 0.275 s (0.745) as the
    blocks alone (0.664) are far from it.
    """
    sizes = transformer(SHIPPED)
    resamplers = sum(b.macs["low"] for b in sizes.blocks if "sampler" in b.name)
    low, kernel = sizes.macs["low"], 9 * 1536**2
    assert (low - resamplers) / 1e12 == pytest.approx(1.18, rel=PAPER)
    assert resamplers == kernel * (2 * 1024 + 256) + kernel * (2 * 256 + 3 * 1024)
    assert low / sizes.macs["full"] == pytest.approx(0.205 / 0.275, rel=PAPER)


def test_23_of_43_blocks_run_on_512_tokens_instead_of_1280():
    cfg = variants.load(SHIPPED).components["transformer"].config
    blocks = [b for b in transformer(SHIPPED).blocks if "transformer_blocks" in b.name]
    low = [b.name for b in blocks if b.macs["low"] < b.macs["full"]]
    assert len(blocks) == 43
    assert low == [f"single_transformer_blocks.{i}" for i in range(1, 24)]
    for block in blocks:
        for run in ("full", "low"):
            length = 512 if run == "low" and block.name in low else 1280
            assert block.macs[run] == 12 * 1536**2 * length + 2 * length**2 * 1536
    assert cfg.low_steps(10) == 5


def test_the_step_table_has_as_many_numbers_as_the_paper_implies():
    cfg = variants.load("nanoflux-1.8b").components["transformer"].config
    assert cfg.modulation_rows * cfg.width == 463_872
    shipped = variants.load(SHIPPED).components["transformer"].config
    assert shipped.modulation_rows * shipped.width == 463_872 + 6 * 1536


def test_the_whole_system_is_as_large_as_its_name_without_the_tower_it_drops():
    sizes = variants.sizes(variants.load(SHIPPED))
    text = sizes["text_encoder_2"].parameters / 1e6
    assert text == pytest.approx(334.9 + 21.0, rel=EXACT)
    clip = variants.sizes(variants.load("flux-12b"))["text_encoder"].parameters
    whole = sum(part.parameters for part in sizes.values())
    assert (whole + clip) / 1e9 == pytest.approx(2.4, rel=0.02)
    assert transformer(SHIPPED).parameters / 1e9 == pytest.approx(1.95, rel=0.02)


def test_text_encoders_and_decoder_of_the_teacher_have_their_known_sizes():
    sizes = variants.sizes(variants.load("flux-12b"))
    known = {"text_encoder": 123.06, "text_encoder_2": 4762.31, "vae": 49.55}
    assert {name: sizes[name].parameters / 1e6 for name in known} == pytest.approx(known, rel=EXACT)


FLUX = [name for name in variants.names() if "snapgen" not in name]


@pytest.mark.parametrize("name", FLUX)
def test_a_variant_is_of_one_piece(name):
    variant = variants.load(name)
    assert variant.name == name
    parts = {key: part.config for key, part in variant.components.items()}
    flux, text, vae = (parts[key] for key in ("transformer", "text_encoder_2", "vae"))
    assert flux.joint_attention_dim == text.states_width
    assert (vae.latent_channels, vae.factor) == (variant.latents[0], variant.side // 64)
    assert variant.side == vae.factor * variant.latents[1] == vae.factor * variant.latents[2]
    assert flux.in_channels == 4 * vae.latent_channels
    assert ("text_encoder" in parts) == (not flux.static_steps), "only AdaLN reads pooled text"
    assert flux.static_steps in (0, variant.steps)
    assert variant.denoiser == "transformer"


@pytest.mark.parametrize("name", sorted(set(variants.names()) - set(FLUX)))
def test_a_unet_reads_the_latents_of_its_picture(name):
    variant = variants.load(name)
    cfg = variant.components[variant.denoiser].config
    assert cfg.in_channels == variant.latents[0]
    assert variant.side == 8 * variant.latents[1] == 8 * variant.latents[2]


@pytest.mark.parametrize("name", variants.names())
def test_a_config_goes_through_config_json(name):
    for part in variants.load(name).components.values():
        plain = json.loads(json.dumps(to_plain(part.config)))
        assert from_plain(type(part.config), plain, "config.json") == part.config


def test_skeletons_hold_shapes_alone():
    made = variants.skeletons(variants.load(SHIPPED))
    assert list(made) == ["transformer", "text_encoder_2", "vae"]
    assert all(p.is_meta for part in made.values() for p in part.parameters())
    assert isinstance(made["transformer"], NanoFlux)


def test_guidance_is_all_that_tells_dev_from_schnell():
    parts = [variants.load(name).components["transformer"] for name in ("flux-12b", "flux-12b-dev")]
    teacher, dev = (part.config for part in parts)
    assert dev == dataclasses.replace(teacher, guidance_embeds=True)
    embedder = 256 * 3072 + 3072 + 3072**2 + 3072
    counts = [count(variants.skeleton(part)) for part in parts]
    assert counts[1] - counts[0] == embedder


OWN = """
schema = "variant/1"
family = "nanoflux"
summary = "Mine."
side = 64
text_tokens = 8
steps = 2
latents = [4, 8, 8]

[transformer]
kind = "flux"
in_channels = 16
num_layers = 1
num_single_layers = 2
attention_head_dim = 8
num_attention_heads = 2
joint_attention_dim = 12
pooled_projection_dim = 6
guidance_embeds = false
axes_dims_rope = [4, 2, 2]
low_resolution_blocks = [1, 2]

[vae]
same_as = "flux-12b"
"""


def test_a_variant_of_ones_own_is_a_file(tmp_path: Path):
    path = tmp_path / "mine-0.1b.toml"
    path.write_text(OWN)
    mine = variants.load(str(path))
    assert mine.name == "mine-0.1b"
    assert mine.components["vae"] == variants.load("flux-12b").components["vae"]
    assert mine.components["transformer"].config.low_resolution_blocks == (1, 2)
    denoiser = {"transformer": mine.components["transformer"]}
    alone = dataclasses.replace(mine, components=denoiser)
    assert variants.sizes(alone)["transformer"].macs["low"] > 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('kind = "flux"', 'kind = "flax"', r"transformer.kind is 'flax'; known: flux, t5"),
        ('kind = "flux"', "", r"transformer.kind is None"),
        ("num_layers = 1", "num_layer = 1", r"has no field 'num_layer'"),
        ("in_channels = 16", 'in_channels = "16"', r"transformer.in_channels must be int"),
        ("steps = 2", "steps = 0", r"steps is 0"),
        ("variant/1", "variant/2", r"schema is 'variant/2'"),
        ('same_as = "flux-12b"', 'same_as = "flux"', r"same_as is 'flux'; known: flux-12b"),
        ('[vae]\nsame_as = "flux-12b"', '[unet]\nsame_as = "flux-12b"', r"flux-12b has no unet"),
    ],
)
def test_a_variant_that_is_none_is_refused_in_a_sentence(tmp_path: Path, old, new, words):
    path = tmp_path / "mine.toml"
    text = OWN.replace(old, new, 1)
    assert text != OWN
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        variants.load(str(path))


def test_a_variant_without_a_denoiser_is_refused(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(OWN[: OWN.index("[transformer]")] + OWN[OWN.index("[vae]") :])
    with pytest.raises(InputError, match=r"must have one denoiser"):
        variants.load(str(path))


@pytest.mark.parametrize("latents", ["[4, 7, 7]", "[0, 8, 8]", "[4, 6, 6]"])
def test_sizes_no_network_has_are_an_input_error(tmp_path: Path, latents):
    path = tmp_path / "mine.toml"
    path.write_text(OWN.replace("[4, 8, 8]", latents))
    with pytest.raises(InputError, match=r"of mine is no network"):
        variants.sizes(variants.load(str(path)))


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown variant 'nanoflux'; known: flux-12b, .*2\.4b"):
        variants.load("nanoflux")
    with pytest.raises(InputError, match=r"nowhere does not exist; .* or a variant: flux-12b, "):
        inspect(Path("nowhere"), lint=False)


def test_inspect_shows_a_variant_block_by_block():
    found = inspect(Path(SHIPPED), lint=False)
    assert (found.kind, found.path) == ("variant of nanoflux", SHIPPED)
    rows = {row[0]: row[1:] for row in size_rows(found.variant)}
    singles = rows["single_transformer_blocks.1..23"]
    assert singles == ("23x", "28.3 M", "56.6 MB", "41.3 G", "15.3 G")
    assert rows["[bold]transformer[/bold]"] == ("", "1.93 B", "3.87 GB", "1.78 T", "1.30 T")
    assert rows["projection"][-1] == "", "a text encoder has no low steps"


def test_a_file_is_looked_into_before_a_variant_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(SHIPPED).mkdir()
    with pytest.raises(InputError, match=f"{SHIPPED} is not a checkpoint"):
        inspect(Path(SHIPPED), lint=False)


def test_inspect_writes_json_for_machines(capsys):
    with pytest.raises(SystemExit) as end:
        main(["inspect", SHIPPED, "--json"])
    found = json.loads(capsys.readouterr().out)
    blocks = found["variant"]["components"]["transformer"]["blocks"]
    assert end.value.code == 0
    assert found["variant"]["components"]["transformer"]["parameters"] == 1_932_521_152
    assert sum(block["macs"]["low"] for block in blocks) == transformer(SHIPPED).macs["low"]


def test_the_overview_of_a_variant_counts_all_it_ships():
    found = overview(SHIPPED)
    sizes = variants.sizes(variants.load(SHIPPED))
    assert found.parameters == sizes["transformer"].parameters
    assert found.fp16_bytes == 2 * sum(part.parameters for part in sizes.values())
    row = overview_row(SHIPPED, found)
    assert row[:4] == (SHIPPED, "1.93 B", "1.78 T\n1.30 T low", "4.58 GB")


def test_the_tiny_teacher_is_still_told_part_by_part():
    folder = Path(variants.__file__).parent / "assets" / "tiny"
    told = dict(facts(inspect(folder, lint=False)))
    assert told["transformer"].startswith("10,013,712 parameters, 20,027,424 bytes")
