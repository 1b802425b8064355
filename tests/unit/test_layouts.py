"""Every layout of a checkpoint opens to the same weights, lazily, at any size.

Shapes: D width, R rows.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import shutil
import struct
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanoflux_mobile.bfl import TABLE, from_bfl, to_bfl
from nanoflux_mobile.checkpoint import Checkpoint, open_checkpoint, save_part
from nanoflux_mobile.compress.static_ln import to_static
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families import nanoflux as family
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.safetensors_file import FLOATS, read_safetensors, write_safetensors
from nanoflux_mobile.scaled_weights import unscaled
from nanoflux_mobile.weight_files import read_weights
from nanoflux_mobile.weights import Network, Stored, Weights, check_finite, held, in_memory

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SMALL = FluxConfig(16, 2, 2, 128, 1, 24, 20, False, (16, 56, 56))
"""One head of FLUX's own width, so that nothing of the config stays open."""

PUBLIC = {  # names, shapes and order of rows of flux1-dev.safetensors, as anybody can look them up
    "img_in.weight": (3072, 64),
    "img_in.bias": (3072,),
    "txt_in.weight": (3072, 4096),
    "txt_in.bias": (3072,),
    "time_in.in_layer.weight": (3072, 256),
    "time_in.out_layer.bias": (3072,),
    "vector_in.in_layer.weight": (3072, 768),
    "vector_in.out_layer.weight": (3072, 3072),
    "guidance_in.in_layer.weight": (3072, 256),
    "guidance_in.out_layer.weight": (3072, 3072),
    "double_blocks.0.img_mod.lin.weight": (18432, 3072),
    "double_blocks.0.img_mod.lin.bias": (18432,),
    "double_blocks.0.txt_mod.lin.weight": (18432, 3072),
    "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
    "double_blocks.0.img_attn.qkv.bias": (9216,),
    "double_blocks.7.txt_attn.qkv.weight": (9216, 3072),
    "double_blocks.7.img_attn.norm.query_norm.scale": (128,),
    "double_blocks.7.img_attn.norm.key_norm.scale": (128,),
    "double_blocks.7.txt_attn.norm.query_norm.scale": (128,),
    "double_blocks.7.txt_attn.norm.key_norm.scale": (128,),
    "double_blocks.18.img_attn.proj.weight": (3072, 3072),
    "double_blocks.18.txt_attn.proj.bias": (3072,),
    "double_blocks.18.img_mlp.0.weight": (12288, 3072),
    "double_blocks.18.img_mlp.2.weight": (3072, 12288),
    "double_blocks.18.txt_mlp.0.bias": (12288,),
    "double_blocks.18.txt_mlp.2.bias": (3072,),
    "single_blocks.0.modulation.lin.weight": (9216, 3072),
    "single_blocks.0.modulation.lin.bias": (9216,),
    "single_blocks.0.linear1.weight": (21504, 3072),
    "single_blocks.0.linear1.bias": (21504,),
    "single_blocks.37.linear2.weight": (3072, 15360),
    "single_blocks.37.linear2.bias": (3072,),
    "single_blocks.37.norm.query_norm.scale": (128,),
    "single_blocks.37.norm.key_norm.scale": (128,),
    "final_layer.linear.weight": (64, 3072),
    "final_layer.linear.bias": (64,),
    "final_layer.adaLN_modulation.1.weight": (6144, 3072),
    "final_layer.adaLN_modulation.1.bias": (6144,),
}
PUBLIC_TENSORS, PUBLIC_PARAMETERS = 780, 11_901_408_320
"""Of flux1-dev.safetensors; schnell lacks the four of guidance_in."""


def tensors(weights: Weights) -> dict[str, Tensor]:
    return {name: stored.read() for name, stored in weights.items()}


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.fixture(scope="module")
def state(off_initial) -> dict[str, Tensor]:
    """The weights of a small transformer under our names."""
    torch.manual_seed(0)
    return dict(off_initial(NanoFlux(SMALL), 3).state_dict())


@pytest.fixture(scope="module")
def theirs(state) -> dict[str, Tensor]:
    """The same in BFL's layout."""
    return tensors(to_bfl({name: in_memory(tensor) for name, tensor in state.items()}))


@pytest.fixture
def alone(tmp_path) -> Callable[..., Checkpoint]:
    """Writes tensors into a file of their own and opens it."""

    def write(state: Mapping[str, Tensor], name: str = "flux.safetensors") -> Checkpoint:
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / name)
        return open_checkpoint(tmp_path / name)

    return write


# The table of BFL's names


@pytest.mark.parametrize("guidance", [True, False], ids=["dev", "schnell"])
def test_the_names_and_shapes_of_the_released_files(guidance):
    released = FluxConfig(64, 19, 38, 128, 24, 4096, 768, guidance, (16, 56, 56))
    with torch.device("meta"):
        found = {name: s.shape for name, s in to_bfl(held(NanoFlux(released))).items()}
    assert len(found) == PUBLIC_TENSORS - 4 * (not guidance)
    assert {n for n in PUBLIC if n not in found} == {
        name for name in PUBLIC if name.startswith("guidance_in") and not guidance
    }
    assert all(found[name] == shape for name, shape in PUBLIC.items() if name in found)
    if guidance:
        assert sum(torch.Size(shape).numel() for shape in found.values()) == PUBLIC_PARAMETERS


def test_every_tensor_is_the_one_diffusers_own_converter_makes():
    from diffusers.loaders import single_file_utils

    released = FluxConfig(8, 2, 3, 128, 24, 16, 12, True, (16, 56, 56))
    with torch.device("meta"):
        names = held(NanoFlux(released))
    # Rows that are told apart by their number suffice; all of FLUX's width would fill gigabytes.
    theirs = {
        name: (torch.arange(s.shape[0]).double() + i / 1024).reshape(-1, *[1] * (len(s.shape) - 1))
        for i, (name, s) in enumerate(to_bfl(names).items())
    }
    ours = tensors(from_bfl({name: in_memory(tensor) for name, tensor in theirs.items()}))
    convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    assert same(ours, convert(dict(theirs)))
    assert ours.keys() == names.keys()


def test_no_name_stands_twice_in_the_table():
    assert len({rule.theirs for rule in TABLE}) == len(TABLE)
    ours = [name for rule in TABLE for name in rule.ours]
    assert len(set(ours)) == len(ours)


@settings(max_examples=30)
@given(
    doubles=st.integers(0, 3),
    singles=st.integers(0, 12),
    width=st.integers(1, 6),
    guidance=st.booleans(),
    steps=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_there_and_back_changes_nothing(doubles, singles, width, guidance, steps, seed):
    cfg = FluxConfig(3, doubles, singles, 2, width, 5, 7, guidance, (2,), steps)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in NanoFlux(cfg).state_dict().items()}
    draw = torch.Generator().manual_seed(seed)
    ours = {n: in_memory(torch.randn(shape, generator=draw)) for n, shape in shapes.items()}
    there = to_bfl(ours)
    assert sum(s.nbytes for s in there.values()) == sum(s.nbytes for s in ours.values())
    assert all(stored.shape == stored.read().shape for stored in there.values())
    back = from_bfl(there)
    assert same(tensors(back), tensors(ours))
    assert {n: (s.shape, s.nbytes) for n, s in back.items()} == {
        n: (s.shape, s.nbytes) for n, s in ours.items()
    }
    again = {name: in_memory(tensor) for name, tensor in tensors(there).items()}
    assert same(tensors(to_bfl(from_bfl(again))), tensors(again))


def test_ours_are_views_of_theirs():
    fused = torch.randn(14, 2)
    ours = from_bfl({"single_blocks.3.linear1.weight": in_memory(fused)})
    assert [tuple(s.shape) for s in ours.values()] == [(2, 2), (2, 2), (2, 2), (8, 2)]
    whole = fused.untyped_storage().data_ptr()
    assert all(s.read().untyped_storage().data_ptr() == whole for s in ours.values())
    assert torch.equal(ours["single_transformer_blocks.3.proj_mlp.weight"].read(), fused[6:])


@pytest.mark.parametrize("shape", [(), (8, 2)], ids=["scalar", "8 rows"])
def test_rows_that_do_not_divide_are_refused(shape):
    key = "double_blocks.0.img_attn.qkv.weight"
    with pytest.raises(InputError, match=rf"{key} has [08] rows, which do not divide as 1 \+ 1"):
        from_bfl({key: in_memory(torch.zeros(shape))})


def test_a_tensor_under_both_names_is_refused():
    both = {name: in_memory(torch.zeros(2)) for name in ("img_in.bias", "x_embedder.bias")}
    with pytest.raises(InputError, match=r"x_embedder\.bias"):
        from_bfl(both)


def test_a_fused_tensor_needs_all_its_parts():
    with pytest.raises(InputError, match=r"attn\.to_k\.bias is missing beside .*to_q\.bias"):
        to_bfl({"transformer_blocks.0.attn.to_q.bias": in_memory(torch.zeros(2))})


@given(st.text(max_size=12), st.sampled_from(["", "double_blocks.", "img_in.weight", "{}"]))
def test_strange_names_pass_through(name, start):
    key = start + name
    if key not in {rule.theirs for rule in TABLE}:
        assert list(from_bfl({key: in_memory(torch.zeros(1))})) == [key]


# One file


def test_a_file_of_any_layout_is_the_same_network(alone, state, theirs):
    wrapped = {f"model.diffusion_model.{key}": tensor for key, tensor in theirs.items()}
    layouts = {"ours": state, "bfl": theirs, "wrapped": wrapped}
    for name, layout in layouts.items():
        opened = alone(layout, f"{name}.safetensors")
        assert opened.family == "nanoflux"
        found = family.open_denoiser(opened)
        assert found.skeleton.cfg == SMALL
        assert same(found.whole().state_dict(), state), name
        assert len(opened.digest()) == 64


def test_what_was_found_out_is_said(alone, theirs):
    beside = {"vae.decoder.conv_in.bias": torch.zeros(1), "text_encoders.a": torch.zeros(1)}
    wrapped = {f"model.diffusion_model.{key}": tensor for key, tensor in theirs.items()}
    notes = alone({**wrapped, **beside}).notes
    assert notes[0] == (
        "2 tensors beside the transformer were left aside: 1 of text_encoders, 1 of vae"
    )
    assert notes[1] == "flux.safetensors has Black Forest Labs' layout"
    assert notes[2] == (
        "sizes read off the tensors: 2 double and 2 single blocks, width 128 in heads of 128, "
        "RoPE axes 16 + 56 + 56 as heads of this width have them"
    )


def test_nothing_is_said_of_a_whole_folder(flux):
    assert open_checkpoint(flux.folder).notes == ()


def test_a_static_student_with_guidance_long_gone_is_recognised(alone, off_initial):
    cfg = FluxConfig(16, 1, 2, 96, 2, 24, 0, False, (12, 42, 42), static_steps=3)
    opened = alone(off_initial(NanoFlux(cfg), 1).state_dict())
    assert family.open_denoiser(opened).skeleton.cfg == cfg
    assert opened.notes[0].endswith(", a table of 3 steps")


def test_guidance_and_the_width_of_heads_are_read_off(alone, off_initial):
    cfg = FluxConfig(8, 0, 2, 128, 2, 24, 20, True, (16, 56, 56))
    opened = alone(tensors(to_bfl(held(off_initial(NanoFlux(cfg), 1)))))
    assert family.open_denoiser(opened).skeleton.cfg == cfg
    assert "a guidance embedder" in opened.notes[-1]


def test_a_file_alone_says_how_to_make_it_a_checkpoint(alone, theirs):
    with pytest.raises(
        InputError, match=r"is a transformer alone; put it into the transformer fol"
    ):
        family.load(alone(theirs))


def test_sizes_that_no_shape_tells_are_asked_for(alone, off_initial):
    cfg = FluxConfig(8, 1, 1, 16, 1, 8, 8, True, (4, 6, 6))
    opened = alone(NanoFlux(cfg).state_dict())
    assert "unknown: axes_dims_rope (heads of 16" in opened.notes[-1]
    with pytest.raises(InputError, match=r"do not tell axes_dims_rope \(heads of 16"):
        family.open_denoiser(opened)


STRANGERS = {
    "model.diffusion_model.input_blocks.0.0.weight": "Stable Diffusion 1, 2 or XL",
    "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": "Stable Diffusion 3",
    "transformer_blocks.0.attn.to_q.weight pos_embed.proj.weight": "Stable Diffusion 3",
    "encoder.block.0.layer.0.SelfAttention.q.weight shared.weight": "a T5 text encoder",
    "text_model.embeddings.token_embedding.weight": "a CLIP text tower",
    "down_blocks.0.resnets.0.conv1.weight": "a UNet or an autoencoder",
    "decoder.conv_in.weight encoder.down.0.block.0.conv1.weight": "an autoencoder",
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": "a LoRA",
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": "a LoRA",
    "double_blocks.0.img_attn.qkv.weight distilled_guidance_layer.in_proj.weight": "Chroma",
    "double_stream_modulation_img.lin.weight double_blocks.0.img_attn.qkv.weight": r"FLUX\.2",
    "model.layers.0.self_attn.q_proj.weight": r"its tensors are model\.layers\.0",
    "": "its tensors are none at all",
}


@pytest.mark.parametrize("names", STRANGERS)
def test_a_file_of_another_model_is_called_by_its_name(alone, names):
    with pytest.raises(InputError, match=rf"no FLUX transformer; .*{STRANGERS[names]}"):
        alone({name: torch.zeros(2, 2) for name in names.split()})


def test_a_transformer_of_another_model_in_a_folder_is_called_by_its_name(flux_copy):
    save_file({"input_blocks.0.0.weight": torch.zeros(2)}, flux_copy / WEIGHTS)
    with pytest.raises(InputError, match=r"Stable Diffusion 1, 2 or XL"):
        family.load(open_checkpoint(flux_copy))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("img_in.weight", r"no whole FLUX transformer: x_embedder\.weight is missing"),
        ("single_blocks.1.linear1.bias", r"Black Forest Labs' layout, do not fit .*; 4 missing: "),
    ],
)
def test_a_file_that_lacks_a_tensor_names_it(alone, theirs, key, words):
    kept = {name: tensor for name, tensor in theirs.items() if name != key}
    with pytest.raises(InputError, match=words):
        family.open_denoiser(alone(kept))


def test_a_tensor_with_and_without_the_prefix_is_refused(alone, theirs):
    twice = {"model.diffusion_model.img_in.bias": torch.zeros(2), **theirs}
    with pytest.raises(InputError, match=r"a second img_in\.bias; keep one"):
        alone(twice)


@pytest.mark.parametrize("name", ["flux.ckpt", "flux.pt", "flux"])
def test_other_kinds_of_files_are_not_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04N.")
    with pytest.raises(InputError, match=r"not a checkpoint: a folder .* or a file in \.safetens"):
        open_checkpoint(tmp_path / name)


# A folder whose transformer is one file


@pytest.mark.parametrize("name", ["flux1-schnell.safetensors", "flux1-schnell.gguf"])
def test_a_folder_with_a_file_in_bfls_layout_is_the_same_checkpoint(flux, flux_copy, name):
    before = family.load(open_checkpoint(flux.folder))
    (flux_copy / WEIGHTS).unlink()
    write = write_safetensors if name.endswith("safetensors") else write_gguf
    write(flux_copy / "transformer" / name, to_bfl(before.networks.denoiser.weights), torch.float32)
    opened = open_checkpoint(flux_copy)
    after = family.load(opened)
    assert after.flux == before.flux, "config.json counts where there is one"
    assert same(after.denoiser.state_dict(), before.denoiser.state_dict())
    assert opened.notes == ("transformer has Black Forest Labs' layout",)


def write_gguf(path: Path, weights: Weights, dtype: torch.dtype) -> None:
    """The plainest GGUF there is: no metadata, float32 alone."""
    text = struct.pack("<4sIQQ", b"GGUF", 3, len(weights), 0)
    data = b""
    for name, stored in weights.items():
        data += bytes(-len(data) % 32)
        shape = stored.shape[::-1]
        text += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        text += struct.pack(f"<{len(shape)}QIQ", *shape, 0, len(data))
        data += stored.read().to(dtype).contiguous().numpy().tobytes()
    path.write_bytes(text + bytes(-len(text) % 32) + data)


def test_pruned_widths_need_no_config_beside_them(flux_copy, off_initial):
    cfg = FluxConfig(16, 1, 3, 96, 3, 24, 20, False, (12, 42, 42))
    for path in (flux_copy / "transformer").iterdir():
        path.unlink()
    pruned = off_initial(NanoFlux(cfg), 2)
    write_safetensors(
        flux_copy / "transformer" / "pruned.safetensors", to_bfl(held(pruned)), torch.float16
    )
    opened = open_checkpoint(flux_copy)
    assert family.load(opened).flux == cfg
    assert len(opened.notes) == 2


def test_a_config_of_other_sizes_than_the_weights_is_refused(flux_copy, theirs):
    (flux_copy / WEIGHTS).unlink()
    save_file(theirs, flux_copy / "transformer" / "flux.safetensors")
    with pytest.raises(InputError, match=r"do not fit its config\.json; .*\d+ mis-shaped"):
        family.load(open_checkpoint(flux_copy))


def test_weights_may_pass_through_a_change(flux):
    parts = family.load(open_checkpoint(flux.folder))

    def doubled(weights: Weights) -> Weights:
        stored = weights["x_embedder.bias"]
        return {**weights, "x_embedder.bias": in_memory(2 * stored.read())}

    changed = family.with_denoiser(parts, doubled)
    assert torch.equal(changed.denoiser.x_embedder.bias, 2 * parts.denoiser.x_embedder.bias)
    assert torch.equal(changed.denoiser.x_embedder.weight, parts.denoiser.x_embedder.weight)
    assert changed.vae is parts.vae


# Dtypes and scales


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
def test_every_float_reads_as_safetensors_reads_it(tmp_path, dtype):
    state = {"a": torch.randn(3, 5).to(dtype), "b": torch.randn(()).to(dtype), "": torch.ones(0, 2)}
    save_file(state, tmp_path / "model.safetensors")
    for folder in (tmp_path, tmp_path / "again"):
        found = read_weights(folder)
        read, oracle = tensors(found), load_file(folder / "model.safetensors")
        assert read.keys() == oracle.keys() == state.keys()
        for name, stored in found.items():
            assert stored.shape == oracle[name].shape
            assert stored.nbytes == oracle[name].nbytes
            assert read[name].dtype == oracle[name].dtype
            assert torch.equal(read[name].float(), state[name].float())
        write_safetensors(tmp_path / "again" / "model.safetensors", found, dtype)
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["model.safetensors"]


def test_writing_to_what_was_read_leaves_the_file_alone(tmp_path):
    save_file({"a": torch.ones(4)}, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    read_weights(tmp_path)["a"].read().mul_(2)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_file_that_is_cut_short_after_opening_is_an_input_error(tmp_path):
    save_file({"a": torch.ones(4096)}, tmp_path / "model.safetensors")
    found = read_weights(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 1000)
    with pytest.raises(InputError, match=r"model\.safetensors was replaced or taken away"):
        found["a"].read()


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize(
    "scale", [torch.tensor(0.25), torch.tensor([0.25]), torch.tensor([2.0, 3])]
)
def test_8_bit_weights_are_multiplied_by_their_scales(suffix, scale):
    fp8 = torch.tensor([[1.0, -2.0], [0.5, 448.0]]).to(torch.float8_e4m3fn)
    state = {"a.weight": fp8, f"a.{suffix}": scale, "a.bias": torch.ones(2)}
    aside = {"a.scale_input": torch.ones(1), "scaled_fp8": torch.ones(0).to(fp8.dtype)}
    stored = {name: in_memory(tensor) for name, tensor in (state | aside).items()}
    found = unscaled(stored)
    assert found.keys() == {"a.weight", "a.bias"}
    assert found["a.weight"].dtype == "float8_e4m3fn"
    expected = fp8.float() * scale.reshape(-1, 1)
    assert torch.equal(found["a.weight"].read(), expected)


def test_scales_of_blocks_are_refused():
    state = {"a.weight": torch.zeros(4, 8), "a.weight_scale": torch.ones(4, 2)}
    with pytest.raises(InputError, match=r"scale of a\.weight is float32 \(4, 2\)"):
        unscaled({name: in_memory(tensor) for name, tensor in state.items()})


def test_a_scale_without_its_weight_is_left_for_the_key_check():
    assert unscaled({"a.scale_weight": in_memory(torch.ones(1))}).keys() == {"a.scale_weight"}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_scaled_8_bit_file_in_bfls_layout_is_the_network_it_was_made_from(alone, theirs, dtype):
    file: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if tensor.dim() == 2:
            scale = tensor.abs().max() / torch.finfo(dtype).max
            file[name] = (tensor / scale).to(dtype)
            file[f"{name.removesuffix('.weight')}.scale_weight"] = scale
        else:
            file[name] = tensor
    file["scaled_fp8"] = torch.zeros(0).to(dtype)
    found = family.open_denoiser(alone(file)).whole().state_dict()
    expected = {
        n: t.float() * file.get(f"{n.removesuffix('.weight')}.scale_weight", 1.0)
        for n, t in file.items()
        if n in theirs
    }
    assert same(found, tensors(from_bfl({n: in_memory(t) for n, t in expected.items()})))


# Bad numbers and bad files


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_named_when_the_piece_is_read(flux_copy, bad):
    state = load_file(flux_copy / WEIGHTS)
    key = "single_transformer_blocks.1.proj_out.bias"
    state[key][1] = bad
    save_file(state, flux_copy / WEIGHTS)
    denoiser = family.load(open_checkpoint(flux_copy)).networks.denoiser
    denoiser.piece("single_transformer_blocks.0")
    for read in (denoiser.whole, lambda: denoiser.piece("single_transformer_blocks.1.proj_out")):
        with pytest.raises(InputError, match=rf"{key} holds 1 values that are NaN or infinite"):
            read()


def test_large_numbers_whose_sum_overflows_are_finite():
    large = torch.full((4,), 3e38)
    assert check_finite("a", large) is large


def header(entries: object, data: int = 8) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def entry(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


BAD_FILES = {
    "a list": header([1]),
    "a word": header("a"),
    "an entry that is none": header({"a": 3}),
    "an unknown field": header(entry(more=1)),
    "offsets of one": header(entry(data_offsets=[8])),
    "offsets of text": header(entry(data_offsets=["0", "8"])),
    "offsets of truth": header(entry(data_offsets=[False, 8])),
    "offsets that run back": header(entry(data_offsets=[8, 0])),
    "below zero": header(entry(shape=[-2], data_offsets=[0, 8])),
    "a shape of text": header(entry(shape="2")),
    "a shape beyond memory": header(entry(shape=[2**60, 2**60])),
    "very many axes": header(entry(shape=[1] * 1000)),
    "a dtype that is a list": header(entry(dtype=["F32"])),
    "a hole": header(entry(data_offsets=[4, 12]), 12),
    "an overlap": header({**entry(), "b": entry()["a"]}),
    "bytes behind the last": header(entry(), 9),
    "bytes that lack": header(entry(), 7),
    "half a character": header({"\ud800": entry()["a"]}),
    "a name twice": header(entry()).replace(b"}}", b'}, "a": {}}').replace(b"\x3d", b"\x46", 1),
    "not text": struct.pack("<Q", 2) + b"\xff\xff",
    "nested without end": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "half a length": b"\x08\x00",
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_a_header_that_lies_is_an_input_error(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.safetensors is damaged or not safetensors") as caught:
        read_safetensors(tmp_path / "a.safetensors")
    assert len(str(caught.value)) < 400


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*gone\.safetensors"):
        read_safetensors(tmp_path / "gone.safetensors")


# Memory


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """A bf16 file of zeros that takes no disk; returns its bytes."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)
    return 8 + len(text) + end


def resident() -> int:
    """Bytes that are this process's own; pages of mapped files are the kernel's to take back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return 1024 * int(fields["RssAnon"].split()[0])


def test_opening_24_gigabytes_and_reading_a_piece_costs_next_to_nothing(flux_copy):
    released = FluxConfig(16, 19, 38, 128, 24, 24, 20, True, (16, 56, 56))
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in NanoFlux(released).state_dict().items()}
    shutil.rmtree(flux_copy / "transformer")
    (flux_copy / "transformer").mkdir()
    path = flux_copy / "transformer" / "flux1-dev.safetensors"
    assert write_sparse(path, shapes) > 23e9
    assert path.stat().st_blocks * 512 < 1e6, "this file system has no sparse files"
    gc.collect()
    before = resident()
    parts = family.load(open_checkpoint(flux_copy))
    assert resident() - before < 50e6
    student = to_static(parts.networks.denoiser, torch.zeros(4, 344, 3072))
    piece = student.piece("single_transformer_blocks.20.attn")
    assert piece.to_q.weight.shape == (3072, 3072)
    assert resident() - before < 200e6
    del piece
    parts.networks.denoiser.piece("transformer_blocks.7.attn.to_q")
    assert resident() - before < 100e6, "what is no longer used must be given back"


def test_a_file_larger_than_this_machine_opens(tmp_path):
    size = 4 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    shapes = {"large.weight": (size // 8192, 4096), "small.weight": (3, 4)}
    assert write_sparse(tmp_path / "model.safetensors", shapes) > size
    found = read_weights(tmp_path)
    assert torch.equal(found["small.weight"].read(), torch.zeros(3, 4, dtype=torch.bfloat16))


def test_saving_a_network_holds_one_tensor_at_a_time(tmp_path):
    layers = torch.nn.Sequential(*[torch.nn.Linear(4, 4, bias=False) for _ in range(5)])
    seen: list[weakref.ref[Tensor]] = []

    def drawn(number: int) -> Tensor:
        assert all(earlier() is None for earlier in seen)
        tensor = torch.full((4, 4), float(number))
        seen.append(weakref.ref(tensor))
        return tensor

    weights = {
        f"{i}.weight": Stored((4, 4), "float32", 64, functools.partial(drawn, i)) for i in range(5)
    }
    save_part(Network(layers, weights), tmp_path, {}, torch.float32)
    assert len(seen) == 5
    saved = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert same(saved, {f"{i}.weight": torch.full((4, 4), float(i)) for i in range(5)})
