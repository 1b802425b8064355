"""LoRA files in every trainer's names, against diffusers' own converters and the definition."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.lora import Lora, fuse, read_lora
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.weights import Stored, Weights, held, in_memory

ROUNDING = 1e-5
"""Values are of the order of 1; the sides scale one factor or the other, and sum 48 terms."""

TINY = FluxConfig(
    in_channels=16,
    num_layers=1,
    num_single_layers=2,
    attention_head_dim=16,
    num_attention_heads=3,
    joint_attention_dim=20,
    pooled_projection_dim=12,
    guidance_embeds=True,
    axes_dims_rope=(4, 6, 6),
)
D, RANK = 48, 3
TO_Q = "transformer_blocks.0.attn.to_q"
MODEL = held(NanoFlux(TINY).requires_grad_(False))
Tensors = dict[str, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def lora_of(tmp_path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Lora:
    path = tmp_path / "style.safetensors"
    save_file({k: v.clone() for k, v in tensors.items()}, path, metadata or None)
    return read_lora(path)


def pair(module: str, rows: int, columns: int, down: str, up: str, rank: int = RANK) -> Tensors:
    seed = sum(map(ord, module))
    return {
        f"{module}.{down}.weight": draw(rank, columns, seed=seed),
        f"{module}.{up}.weight": draw(rows, rank, seed=seed + 1),
    }


def peft(module: str, rows: int = D, columns: int = D, rank: int = RANK) -> Tensors:
    return pair(module, rows, columns, "lora_A", "lora_B", rank)


def change(weights: Weights, lora: Lora, strength: float = 1.0) -> Tensors:
    """What a LoRA adds to every tensor that it touches."""
    fused = fuse(weights, [(lora, strength)])
    assert list(fused) == list(weights)
    touched = [name for name in weights if fused[name] is not weights[name]]
    return {name: fused[name].read() - weights[name].read() for name in touched}


# Names, against diffusers' converters


def blank(products: Mapping[str, Tensor]) -> Weights:
    """A model of zeros with the shapes of some changes."""
    return {name: in_memory(torch.zeros(change.shape)) for name, change in products.items()}


def products(converted: Mapping[str, Tensor]) -> Tensors:
    """The change of every linear in diffusers' names, as diffusers defines it: B times A."""
    ends = ".lora_A.weight", ".lora_B.weight"
    linears = [key.removesuffix(ends[0]) for key in converted if key.endswith(ends[0])]
    assert 2 * len(linears) == len(converted)
    return {
        f"{name.removeprefix('transformer.')}.weight": converted[name + ends[1]]
        @ converted[name + ends[0]]
        for name in linears
    }


def compare(lora: Lora, wanted: Tensors) -> None:
    found = change(blank(wanted), lora)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=ROUNDING, atol=ROUNDING)


BFL_DOUBLE = {
    "img_mod.lin": 6,
    "img_attn.qkv": 3,
    "img_attn.proj": 1,
    "img_mlp.0": 4,
    "img_mlp.2": 1,
}
"""Rows of the linears of a double block's image half, in widths."""
BFL_SINGLE = {"modulation.lin": 3 * D, "linear1": 3072 * 7, "linear2": D}
"""Rows; diffusers' converters cut linear1 for the released width alone."""
BFL_REST = (
    "img_in",
    "txt_in",
    *(
        f"{name}_in.{side}_layer"
        for name in ("time", "vector", "guidance")
        for side in ("in", "out")
    ),
    "final_layer.linear",
)
COLUMNS = 5
"""Nothing looks at the width of what a LoRA reads from."""


def bfl_modules(doubles: int, singles: int, rest: tuple[str, ...] = ()) -> dict[str, int]:
    """Modules of Black Forest Labs' names and their rows."""
    halves = {n.replace("img", half): r for n, r in BFL_DOUBLE.items() for half in ("img", "txt")}
    return {
        **{f"double_blocks.{i}.{n}": r * D for i in range(doubles) for n, r in halves.items()},
        **{f"single_blocks.{i}.{n}": r for i in range(singles) for n, r in BFL_SINGLE.items()},
        **dict.fromkeys(rest, D),
    }


def kohya(form: Callable[[str], str]) -> Tensors:
    """A file of kohya's tools with a double block, a single block and all the rest."""
    tensors: Tensors = {}
    for module, rows in bfl_modules(1, 1, BFL_REST).items():
        name = form(module)
        tensors |= pair(name, rows, COLUMNS, "lora_down", "lora_up", 2)
        if module != "final_layer.linear":  # where diffusers drops the alpha
            tensors[f"{name}.alpha"] = torch.tensor(0.5 * len(module))
    # Its alpha is left out, and so is the rank by default.
    return tensors | pair(form("final_layer.adaLN_modulation.1"), 2 * D, 5, "lora_down", "lora_up")


@pytest.mark.parametrize(
    "form", [lambda m: "lora_unet_" + m.replace(".", "_"), "diffusion_model.{}".format]
)
def test_names_of_kohya_and_comfy_mean_what_diffusers_takes_them_for(
    tmp_path: Path, form: Callable[[str], str]
) -> None:
    from diffusers.loaders import lora_conversion_utils as oracle

    tensors = kohya(form)
    wanted = oracle._convert_kohya_flux_lora_to_diffusers(dict(tensors))
    compare(lora_of(tmp_path, tensors), products(wanted))


def test_names_of_black_forest_labs_mean_what_diffusers_takes_them_for(tmp_path: Path) -> None:
    from diffusers.loaders import lora_conversion_utils as oracle

    tensors: Tensors = {}
    for module, rows in bfl_modules(19, 38, ("final_layer.linear",)).items():
        tensors |= peft(f"base_model.model.{module}", rows, COLUMNS, 1)
    wanted = oracle._convert_fal_kontext_lora_to_diffusers(dict(tensors))
    compare(lora_of(tmp_path, tensors), products(wanted))


def test_names_of_xlabs_mean_what_diffusers_takes_them_for(tmp_path: Path) -> None:
    from diffusers.loaders import lora_conversion_utils as oracle

    rows = {
        "double_blocks.7.processor.qkv_lora1": 3 * D,
        "double_blocks.7.processor.qkv_lora2": 3 * D,
        "double_blocks.7.processor.proj_lora1": D,
        "double_blocks.7.processor.proj_lora2": D,
        "single_blocks.12.processor.qkv_lora": 3 * D,
        "single_blocks.12.processor.proj_lora": D,
    }
    tensors: Tensors = {}
    for module, count in rows.items():
        tensors |= pair(module, count, COLUMNS, "down", "up")
    wanted = oracle._convert_xlabs_flux_lora_to_diffusers(dict(tensors))
    compare(lora_of(tmp_path, tensors), products(wanted))


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "transformer.{}",
        "base_model.model.{}",
        "base_model.model.transformer.{}",
        "model.diffusion_model.{}",
    ],
)
@pytest.mark.parametrize(
    "ends", [("lora_A", "lora_B"), ("lora_A.default", "lora_B.default"), ("lora.down", "lora.up")]
)
def test_every_linear_of_the_model_can_be_named_as_diffusers_does(
    tmp_path: Path, form: str, ends: tuple[str, str]
) -> None:
    tensors: Tensors = {}
    linears = {n: s for n, s in MODEL.items() if n.endswith(".weight") and len(s.shape) == 2}
    for name, stored in linears.items():
        tensors |= pair(form.format(name.removesuffix(".weight")), *stored.shape, *ends)
    found = change(MODEL, lora_of(tmp_path, tensors))
    assert found.keys() == linears.keys()
    for name in linears:
        module = form.format(name.removesuffix(".weight"))
        down, up = (tensors[f"{module}.{end}.weight"] for end in ends)
        torch.testing.assert_close(found[name], up @ down, rtol=ROUNDING, atol=ROUNDING)


def test_kohya_tools_can_use_diffusers_names(tmp_path: Path) -> None:
    tensors = pair(f"lora_transformer_{TO_Q.replace('.', '_')}", D, D, "lora_down", "lora_up")
    assert change(MODEL, lora_of(tmp_path, tensors)).keys() == {f"{TO_Q}.weight"}


def test_a_convolution_is_changed_over_its_whole_window(tmp_path: Path) -> None:
    weight = draw(6, 4, 3, 3)
    down, up = draw(2, 4, 3, 3), draw(6, 2, 1, 1)
    lora = lora_of(tmp_path, {"conv.lora_down.weight": down, "conv.lora_up.weight": up})
    found = change({"conv.weight": in_memory(weight)}, lora)["conv.weight"]
    # Two convolutions one after the other are the change that the pair stands for.
    image = draw(1, 4, 8, 8)
    wanted = torch.conv2d(torch.conv2d(image, down), up)
    torch.testing.assert_close(torch.conv2d(image, found), wanted, rtol=1e-4, atol=1e-4)


# Scales


def scale_of(lora: Lora) -> float:
    (only,) = lora.pairs.values()
    return only.scale


@pytest.mark.parametrize("alpha", [torch.tensor(6.0), torch.tensor([6]), torch.tensor(6.0).half()])
def test_a_scale_is_alpha_over_rank(tmp_path: Path, alpha: Tensor) -> None:
    assert scale_of(lora_of(tmp_path, {**peft(TO_Q), f"{TO_Q}.alpha": alpha})) == 2.0


def test_a_scale_is_one_without_alpha(tmp_path: Path) -> None:
    assert scale_of(lora_of(tmp_path, peft(TO_Q))) == 1.0


CONFIG = {"r": 3, "lora_alpha": 6, "peft_type": "LORA", "use_rslora": False, "alpha_pattern": {}}
CONFIGS = {
    "plain": ({}, 2.0),
    "rank-stabilised": ({"use_rslora": True}, 6 / 3**0.5),
    "own alpha": ({"alpha_pattern": {"attn.to_q": 12}}, 4.0),
    "another's alpha": ({"alpha_pattern": {"o_q": 12, "attn.to_k": 12}}, 2.0),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_the_config_of_peft_says_the_scale(tmp_path: Path, case: str) -> None:
    fields, scale = CONFIGS[case]
    tensors = peft(f"transformer.{TO_Q}")
    config = {f"transformer.{k}": v for k, v in (CONFIG | fields).items()}
    inside = lora_of(tmp_path, tensors, lora_adapter_metadata=json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | fields))
    beside = read_lora(tmp_path / "adapter_model.safetensors")
    assert [scale_of(inside), scale_of(beside)] == [pytest.approx(scale)] * 2


# Fusing


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    reads: list[str] = []

    def watched(name: str, stored: Stored) -> Stored:
        return replace(stored, read=lambda: reads.append(name) or stored.read())  # type: ignore[func-returns-value]

    model = {name: watched(name, stored) for name, stored in MODEL.items()}
    lora = lora_of(tmp_path, {**peft(TO_Q), **peft("proj_out", 16, D)})
    pairs = {
        name: replace(p, down=watched(f"{name} down", p.down), up=watched(f"{name} up", p.up))
        for name, p in lora.pairs.items()
    }
    fused = fuse(model, [(replace(lora, pairs=pairs), 1.0)])
    assert not reads
    fused[f"{TO_Q}.weight"].read()
    assert sorted(reads) == [TO_Q + end for end in (" down", " up", ".weight")]


def test_the_base_keeps_its_numbers_and_gives_its_dtype_and_size(tmp_path: Path) -> None:
    weight = draw(D, D).bfloat16()
    before = weight.clone()
    fused = fuse({f"{TO_Q}.weight": in_memory(weight)}, [(lora_of(tmp_path, peft(TO_Q)), 0.5)])
    stored = fused[f"{TO_Q}.weight"]
    assert stored.read().dtype == torch.float32
    assert (stored.shape, stored.dtype, stored.nbytes) == ((D, D), "bfloat16", 2 * D * D)
    assert torch.equal(weight, before)


SINGLE = "single_transformer_blocks.0.proj_out"
STRENGTHS = st.floats(-4, 4, width=32)


@pytest.fixture(scope="module")
def pair_of_loras(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lora, Lora]:
    first = lora_of(tmp_path_factory.mktemp("a"), {**peft(TO_Q), **peft("proj_out", 16, D)})
    second = {**peft(f"transformer.{TO_Q}", rank=5), **peft(SINGLE, D, 5 * D)}
    return first, lora_of(tmp_path_factory.mktemp("b"), second)


@settings(max_examples=25, deadline=None)
@given(a=STRENGTHS, b=STRENGTHS)
def test_fusing_two_is_fusing_one_and_then_the_other(
    pair_of_loras: tuple[Lora, Lora], a: float, b: float
) -> None:
    one, other = pair_of_loras
    both = fuse(MODEL, [(one, a), (other, b)])
    turns = fuse(fuse(MODEL, [(other, b)]), [(one, a)])
    for name in (f"{TO_Q}.weight", "proj_out.weight", f"{SINGLE}.weight"):
        # Sums of three terms of up to 4 times 50, in two orders.
        torch.testing.assert_close(both[name].read(), turns[name].read(), rtol=1e-6, atol=1e-4)


def test_strength_zero_changes_nothing(pair_of_loras: tuple[Lora, Lora]) -> None:
    fused = fuse(MODEL, [(lora, 0.0) for lora in pair_of_loras])
    assert all(torch.equal(fused[name].read(), MODEL[name].read()) for name in MODEL)


def test_strength_multiplies(pair_of_loras: tuple[Lora, Lora]) -> None:
    whole, half = (change(MODEL, pair_of_loras[0], strength) for strength in (1.0, -0.5))
    for name, tensor in whole.items():
        torch.testing.assert_close(half[name], -0.5 * tensor, rtol=ROUNDING, atol=ROUNDING)


# Text encoders


TEXT = {
    **pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", 4, 4, "lora_down", "lora_up"),
    **peft("text_encoder.text_model.encoder.layers.0.self_attn.k_proj", 4, 4),
}


def test_text_encoders_are_left_out_and_said_to_be(tmp_path: Path) -> None:
    lora = lora_of(tmp_path, {**peft(TO_Q), **TEXT})
    assert change(MODEL, lora).keys() == {f"{TO_Q}.weight"}
    (note,) = lora.ignored
    assert "4 tensors of text encoders" in note
    assert "lora_te1_" in note
    assert lora_of(tmp_path, peft(TO_Q)).ignored == ()


# What is wrong


STATIC = held(NanoFlux(replace(TINY, static_steps=4)))
LONE = {f"{TO_Q}.lora_A.weight": draw(2, D)}
NAN = {**peft(TO_Q), f"{TO_Q}.lora_B.weight": draw(D, RANK).fill_(torch.nan)}
UNFIT: dict[str, tuple[Tensors, Weights, str]] = {
    "another family": (
        {**peft("unet.down.0"), **peft("unet.down.1"), **peft("unet.down.2")},
        MODEL,
        r"another family.*unet\.down\.0, unet\.down\.1, unet\.down\.2;.*x_embedder\.weight, ",
    ),
    "a block too many": (
        {**peft(TO_Q), **peft(TO_Q.replace("0", "9"))},
        MODEL,
        r"only in part, 1 of its 2 modules.*transformer_blocks\.9\.attn\.to_q",
    ),
    "another width": (
        peft(TO_Q, 64, 64),
        MODEL,
        r"another size.*attn\.to_q changes.*\(64, 64\).*to_q\.weight \(48, 48\)",
    ),
    "another width of what it reads": (peft(TO_Q, D, 64), MODEL, r"\(48, 64\).*\(48, 48\)"),
    "a fused linear of another width": (
        peft("double_blocks.0.img_attn.qkv", 3 * 64, D),
        MODEL,
        r"img_attn\.qkv changes.*\(192, 48\).*to_q\.weight \(48, 48\), .*to_k\.weight",
    ),
    "modulation of a static student": (
        {**peft(TO_Q), **peft("lora_unet_single_blocks_1_modulation_lin", 3 * D, D)},
        STATIC,
        r"modulation_lin.*Static-LN student.*teacher before the cut",
    ),
    "modulation of a static student in diffusers' names": (
        peft("transformer.transformer_blocks.0.norm1_context.linear", 6 * D, D),
        STATIC,
        "Static-LN student",
    ),
    "the last modulation of a static student": (peft("norm_out.linear"), STATIC, "Static-LN"),
    "time of a static student": (peft("time_in.in_layer"), STATIC, "Static-LN student"),
    "one tensor twice": (
        {**peft(TO_Q), **peft("lora_unet_double_blocks_0_img_attn_qkv", 3 * D, D)},
        MODEL,
        r"changes transformer_blocks\.0\.attn\.to_q\.weight twice",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_said_before_anything_is_read(tmp_path: Path, case: str) -> None:
    tensors, model, message = UNFIT[case]
    lora = lora_of(tmp_path, tensors)
    with pytest.raises(InputError, match=message) as raised:
        fuse(model, [(lora, 1.0)])
    assert str(lora.path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nan_is_named_where_it_is_read(tmp_path: Path) -> None:
    fused = fuse(MODEL, [(lora_of(tmp_path, NAN), 1.0)])
    with pytest.raises(InputError, match=rf"{TO_Q} in .*style.*NaN"):
        fused[f"{TO_Q}.weight"].read()


def test_a_strength_is_a_finite_number(pair_of_loras: tuple[Lora, Lora]) -> None:
    with pytest.raises(InputError, match="strength nan"):
        fuse(MODEL, [(pair_of_loras[0], float("nan"))])


def beside(ending: str, *shape: int) -> Tensors:
    return {**peft(TO_Q), TO_Q + ending: draw(*shape)}


UNREADABLE: dict[str, tuple[Tensors, str]] = {
    "DoRA": (beside(".dora_scale", D, 1), r"is a DoRA \(.*dora_scale\)"),
    "DoRA of PEFT": (beside(".lora_magnitude_vector", D), "is a DoRA"),
    "LoHa": ({f"lora_unet_img_in.{n}": draw(3, 3) for n in ("hada_w1_a", "hada_w1_b")}, "a LoHa"),
    "LoKr": ({"lora_unet_img_in.lokr_w1": draw(3, 3)}, "is a LoKr"),
    "Tucker": (beside(".lora_mid.weight", 3, 3), "Tucker"),
    "biases": (beside(".lora_B.bias", D), "LoRA with biases"),
    "whole weights": (beside(".diff", D, D), "whole-weight differences"),
    "anything else": (beside(".wonder", 2), r"more than a LoRA \(.*wonder\)"),
    "half a pair": (LONE, "has no up matrix for transformer_blocks.0.attn.to_q"),
    "alpha alone": ({f"{TO_Q}.alpha": torch.tensor(1.0)}, "no down and no up matrix"),
    "two forms of one": (
        {**peft(TO_Q), **pair(TO_Q, D, D, "lora_down", "lora_up")},
        "two down matrices",
    ),
    "ranks": ({**LONE, f"{TO_Q}.lora_B.weight": draw(D, 3)}, r"\(48, 3\) and \(2, 48\)"),
    "rank zero": (peft(TO_Q, rank=0), "no common rank"),
    "vectors": ({f"{TO_Q}.lora_{x}.weight": draw(4) for x in "AB"}, "no common rank"),
    "many alphas": (beside(".alpha", 2), r"alpha of .* has shape \(2,\)"),
    "no alpha": ({**peft(TO_Q), f"{TO_Q}.alpha": torch.tensor(torch.inf)}, "NaN or infinite"),
    "truth": ({k: v > 0 for k, v in peft(TO_Q).items()}, "as BOOL"),
    "nothing": ({}, "no LoRA of a transformer, only nothing"),
    "a name of two lines": ({f"a\n{k}": v for k, v in LONE.items()}, r"tensor 'a\\ntrans"),
    "a name without end": ({"a" * 999: draw(2)}, "names a tensor 'aaa"),
    "text alone": (TEXT, "no LoRA of a transformer, only lora_te1_"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_is_no_plain_lora_is_named(tmp_path: Path, case: str) -> None:
    tensors, message = UNREADABLE[case]
    with pytest.raises(InputError, match=message) as raised:
        lora_of(tmp_path, tensors)
    assert "style.safetensors" in str(raised.value)


WRONG_CONFIGS: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "cannot be read"),
    "no object": ("[]", "not an object"),
    "another method": ('{"peft_type": "LOKR"}', "another method"),
    "DoRA": ('{"use_dora": true}', "another method"),
    "alpha in words": ('{"lora_alpha": "16"}', "alpha '16'"),
    "endless alpha": ('{"lora_alpha": 1e999}', "alpha 'inf'"),
    "huge alpha": (f'{{"lora_alpha": 1{"0" * 400}}}', "alpha '1000"),
    "patterns": ('{"alpha_pattern": {"(a+)+$": 1}}', "alpha_pattern"),
    "no patterns": ('{"alpha_pattern": [1]}', "alpha_pattern"),
}


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_what_is_wrong_with_a_config_is_named(tmp_path: Path, case: str) -> None:
    text, message = WRONG_CONFIGS[case]
    with pytest.raises(InputError, match=message):
        lora_of(tmp_path, peft(TO_Q), lora_adapter_metadata=text)


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"\xff" * 64, None])
def test_what_is_no_file_of_safetensors_is_said(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "style.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"style\.pt.*safetensors"):
        read_lora(path)


DAMAGE = st.tuples(st.booleans(), st.integers(0, 2**16), st.integers(1, 255))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(damage=st.lists(DAMAGE, min_size=1, max_size=3))
def test_any_damage_is_an_input_error_or_still_a_lora(
    tmp_path: Path, damage: list[tuple[bool, int, int]]
) -> None:
    path = tmp_path / "damaged.safetensors"
    tensors = peft("proj_out", 16, D, rank=1) | {"proj_out.alpha": torch.tensor(2.0)}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(CONFIG)})
    data = bytearray(path.read_bytes())
    for cuts, at, mask in damage:
        if cuts:
            del data[at % (len(data) + 1) :]
        elif data:
            data[at % len(data)] ^= mask
    path.write_bytes(data)
    try:
        found = change(MODEL, read_lora(path))
    except InputError:
        return
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(InputError, match="is no file; name a LoRA's"):
            read_lora(path)
