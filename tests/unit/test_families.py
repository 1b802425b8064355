"""A whole FLUX-shaped checkpoint against diffusers' FluxPipeline, its Static-LN student, saving.

Shapes: B batch, Z latent channels, S image tokens, C token channels, T text tokens, N modulation
rows, D width.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanoflux_mobile.checkpoint import Checkpoint, open_checkpoint
from nanoflux_mobile.compress.static_ln import step_rows, to_static
from nanoflux_mobile.drawing import Drawing, draw
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families import nanoflux as family
from nanoflux_mobile.noise import gaussian
from nanoflux_mobile.weights import dtype_name, network

if TYPE_CHECKING:
    from tests.unit.conftest import Flux

STATE = 1e-5
"""Share of the largest value: float32 rounding of a dozen layers, in another order of sums."""
PIXEL = 1e-4
"""The same after four steps and the decoder, in units where a picture spans 0 to 1."""
PROMPT = "two red circles and a blue square"
LOW = {"low_resolution_blocks": (0, 2)}
SCHEDULERS = {
    "schnell": {"shift": 1.0, "use_dynamic_shifting": False},
    "dev": {"shift": 3.0, "use_dynamic_shifting": True},
}


@pytest.fixture(scope="module")
def parts(flux: Flux) -> family.FluxParts:
    return family.load(open_checkpoint(flux.folder))


@pytest.fixture(scope="module")
def student(parts: family.FluxParts) -> family.FluxParts:
    return family.make_student(parts, 4, [PROMPT])


def our_drawing(parts: family.FluxParts, steps: int, seed: int) -> Drawing:
    return draw(
        family.graphs(parts),
        family.token_ids(parts, PROMPT),
        family.step_tables(parts, PROMPT, steps),
        family.noise_levels(parts, steps),
        parts.canvas,
        seed,
    )


def their_drawing(flux: Flux, parts: family.FluxParts, steps: int, seed: int, kind: str) -> Tensor:
    """What FluxPipeline makes of the same noise: packed latents or a picture, by `kind`."""
    pipeline, canvas = flux.pipeline, parts.canvas
    noise = torch.from_numpy(gaussian(seed, canvas.shape))
    return pipeline(
        PROMPT,
        height=parts.side,
        width=parts.side,
        num_inference_steps=steps,
        latents=pipeline._pack_latents(noise, 1, canvas.channels, canvas.height, canvas.width),
        output_type=kind,
        max_sequence_length=parts.text_tokens,
        return_dict=False,
    )[0]


def assert_close(ours: Tensor, theirs: Tensor, share: float = STATE) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= share * theirs.abs().max()


def with_scheduler(flux: Flux, parts: family.FluxParts, name: str) -> tuple[Flux, family.FluxParts]:
    """Pipeline and parts that share one of the released models' schedulers."""
    scheduler = type(flux.pipeline.scheduler)(**SCHEDULERS[name])
    pipeline = type(flux.pipeline)(**{**flux.pipeline.components, "scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    config = dict(scheduler.config)
    return dataclasses.replace(flux, pipeline=pipeline), dataclasses.replace(
        parts, scheduler=config
    )


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 4])
def test_a_whole_drawing_is_that_of_flux_pipeline(flux, parts, scheduler, steps):
    flux, parts = with_scheduler(flux, parts, scheduler)
    ours = torch.from_numpy(our_drawing(parts, steps, seed=7).final_latents)
    packed = their_drawing(flux, parts, steps, seed=7, kind="latent")
    theirs = flux.pipeline._unpack_latents(packed, parts.side, parts.side, parts.vae.cfg.factor)
    start = torch.from_numpy(gaussian(7, parts.canvas.shape))
    assert (theirs - start).abs().max() > 0.1, "the oracle must have moved the noise"
    assert_close(ours, theirs)


def test_the_picture_is_that_of_flux_pipeline(flux, parts):
    ours = our_drawing(parts, 4, seed=7)
    theirs = their_drawing(flux, parts, 4, seed=7, kind="np")[0]
    assert ours.image.shape == (1, 3, parts.side, parts.side)
    assert np.abs((ours.image[0].transpose(1, 2, 0) / 2 + 0.5).clip(0, 1) - theirs).max() <= PIXEL
    assert ours.pixels().dtype == np.uint8
    # One level of 255: a value on the edge between two levels may round either way.
    assert np.abs(ours.pixels().astype(int) - np.rint(theirs * 255).astype(int)).max() <= 1


def test_a_drawing_keeps_every_step_in_the_layout_phones_take(parts):
    drawing = our_drawing(parts, 4, seed=3)
    tokens, channels = parts.canvas.tokens, parts.denoiser.cfg.in_channels
    assert [x.shape for x in drawing.latents] == [(1, channels, 1, tokens)] * 4
    assert drawing.text_states.shape == (1, 24, 1, parts.text_tokens)
    assert drawing.final_latents.shape == parts.canvas.shape


def test_a_guidance_distilled_teacher_draws_as_flux_pipeline_at_its_scale(
    flux, flux_copy, off_initial
):
    config = {**flux.pipeline.transformer.config, "guidance_embeds": True}
    torch.manual_seed(1)
    transformer = off_initial(type(flux.pipeline.transformer).from_config(config), 5)
    shutil.rmtree(flux_copy / "transformer")
    transformer.save_pretrained(flux_copy / "transformer")
    pipeline = type(flux.pipeline)(**{**flux.pipeline.components, "transformer": transformer})
    pipeline.set_progress_bar_config(disable=True)
    parts = family.load(open_checkpoint(flux_copy))
    theirs = their_drawing(dataclasses.replace(flux, pipeline=pipeline), parts, 2, 1, "latent")
    ours = our_drawing(parts, 2, seed=1).final_latents
    side, factor = parts.side, parts.vae.cfg.factor
    assert_close(torch.from_numpy(ours), pipeline._unpack_latents(theirs, side, side, factor))


def test_geometry_comes_from_the_configs(parts):
    canvas = parts.canvas
    assert (canvas.channels, canvas.height, canvas.width, canvas.patch) == (4, 8, 8, 2)
    assert (parts.text_tokens, parts.side, canvas.tokens) == (12, 16, 16)
    assert family.fixed_steps(parts) is None


def test_pooled_text_is_that_of_the_pipeline(flux, parts):
    prompts = [PROMPT, "a red circle", "red " * 40]
    with torch.no_grad():
        theirs = flux.pipeline._get_clip_prompt_embeds(prompts)
    assert_close(family.pooled_text(parts.clip, prompts), theirs)


def test_a_tower_saved_with_a_tokenizer_json_is_read_as_well(flux, flux_copy, parts):
    for name in ("vocab.json", "merges.txt"):
        (flux_copy / "tokenizer" / name).unlink()
    flux.pipeline.tokenizer.save_pretrained(flux_copy / "tokenizer")
    assert (flux_copy / "tokenizer" / "tokenizer.json").is_file()
    again = family.load(open_checkpoint(flux_copy))
    prompts = [PROMPT, "a red circle"]
    ours, theirs = (family.pooled_text(p.clip, prompts) for p in (again, parts))
    assert torch.equal(ours, theirs)


def test_tokenizers_saved_after_use_still_leave_padding_and_length_to_us(flux, flux_copy, parts):
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = getattr(flux.pipeline, name)
        tokenizer(PROMPT, padding="max_length", max_length=5, truncation=True)
        tokenizer.save_pretrained(flux_copy / name)
    again = family.load(open_checkpoint(flux_copy))
    np.testing.assert_array_equal(family.token_ids(again, PROMPT), family.token_ids(parts, PROMPT))
    assert torch.equal(
        family.pooled_text(again.clip, [PROMPT]), family.pooled_text(parts.clip, [PROMPT])
    )
    with pytest.raises(InputError, match=r"reads 12"):
        family.token_ids(again, "a red circle and " * 5)


def test_released_configs_that_leave_out_the_rope_axes_load(flux, flux_copy, off_initial):
    """FLUX.1's own transformer/config.json is older than the field and means (16, 56, 56)."""
    config = {**flux.pipeline.transformer.config, "axes_dims_rope": (16, 56, 56)}
    config |= {"attention_head_dim": 128, "num_attention_heads": 1, "num_layers": 1}
    transformer = off_initial(type(flux.pipeline.transformer).from_config(config), 6)
    transformer.save_pretrained(flux_copy / "transformer")
    path = flux_copy / "transformer" / "config.json"
    stored = json.loads(path.read_text())
    del stored["axes_dims_rope"]
    path.write_text(json.dumps(stored))
    loaded = family.load(open_checkpoint(flux_copy))
    assert loaded.denoiser.cfg.axes_dims_rope == (16, 56, 56)


def test_the_vae_config_may_leave_out_what_diffusers_adds(flux_copy):
    path = flux_copy / "vae" / "config.json"
    stored = json.loads(path.read_text())
    assert stored.pop("mid_block_add_attention") is True
    path.write_text(json.dumps(stored))
    assert family.load(open_checkpoint(flux_copy)).vae.cfg.mid_block_add_attention


# The Static-LN cut


def inputs(parts: family.FluxParts, seed: int) -> tuple[Tensor, Tensor]:
    draw_ = torch.Generator().manual_seed(seed)
    cfg = parts.denoiser.cfg
    x_BSC = torch.randn(1, parts.canvas.tokens, cfg.in_channels, generator=draw_)
    text_BTJ = torch.randn(1, parts.text_tokens, cfg.joint_attention_dim, generator=draw_)
    return x_BSC, text_BTJ


def test_a_student_of_one_prompt_is_adaln_at_every_scheduled_step(parts, student):
    pooled, rope = family.pooled_text(parts.clip, [PROMPT]), family.joint_rope(parts)
    sigmas = family.noise_levels(parts, 4).sigmas[:-1]
    for step, sigma in enumerate(sigmas):
        x_BSC, text_BTJ = inputs(parts, step)
        rows = parts.denoiser.modulations(torch.tensor([sigma]), pooled)
        teacher = parts.denoiser(x_BSC, text_BTJ, rows, rope)
        row = student.denoiser.step_table[step][None]
        assert torch.equal(student.denoiser(x_BSC, text_BTJ, row, rope), teacher)
        other = student.denoiser.step_table[step - 1][None]
        assert not torch.allclose(student.denoiser(x_BSC, text_BTJ, other, rope), teacher)


def test_a_student_draws_what_its_teacher_draws_for_the_prompt_it_was_made_from(parts, student):
    ours, theirs = (our_drawing(p, 4, seed=2) for p in (student, parts))
    np.testing.assert_array_equal(ours.final_latents, theirs.final_latents)
    np.testing.assert_array_equal(ours.image, theirs.image)


@pytest.mark.parametrize(
    "changes", [{}, {"guidance_embeds": True}, LOW], ids=["schnell", "dev", "low"]
)
def test_the_cut_read_block_by_block_is_that_of_the_whole_module(parts, off_initial, changes):
    cfg = dataclasses.replace(parts.flux, **changes)
    teacher = off_initial(type(parts.denoiser)(cfg), 8)
    pooled = family.pooled_text(parts.clip, [PROMPT, "a red circle", "left of two"])
    sigmas = [1.0, 0.75, 0.25]
    guidance = torch.full((3,), 3.5) if cfg.guidance_embeds else None
    whole = [teacher.modulations(torch.full((3,), s), pooled, guidance).mean(0) for s in sigmas]
    table = step_rows(network(teacher), sigmas, pooled)
    assert torch.equal(table, torch.stack(whole))
    student = to_static(network(teacher), table)
    kept = student.module.state_dict()
    assert kept.keys() == student.weights.keys()
    assert torch.equal(kept.pop("step_table"), table)
    for key, tensor in kept.items():
        assert torch.equal(teacher.state_dict()[key], tensor), key


def test_several_prompts_are_averaged(parts):
    prompts = [PROMPT, "a red circle", "left of two"]
    tables = [family.make_student(parts, 2, [p]).denoiser.step_table for p in prompts]
    assert (tables[0] - tables[1]).abs().max() > 1e-3, "prompts must matter to the teacher"
    table = family.make_student(parts, 2, prompts).denoiser.step_table
    assert_close(table, torch.stack(tables).mean(0))


def test_the_table_has_a_row_for_every_shift_scale_and_gate(parts, student):
    cfg = student.denoiser.cfg
    assert cfg.modulation_rows == 12 * 2 + 3 * 2 + 2
    assert student.denoiser.step_table.shape == (4, cfg.modulation_rows, cfg.width)
    table = family.step_tables(student, "any prompt", 4)
    assert table.shape == (4, 1, cfg.width, 1, cfg.modulation_rows)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table[1, 0, :, 0, 5], student.denoiser.step_table[1, 5])
    np.testing.assert_array_equal(family.step_tables(parts, PROMPT, 4), table)


def test_nothing_of_time_pooled_text_or_modulation_is_left(parts, student):
    teacher, left = parts.denoiser.state_dict(), student.denoiser.state_dict()
    gone = {key for key in teacher if key not in left}
    assert {key.split(".")[0] for key in gone} == {
        "time_text_embed",
        "norm_out",
        "transformer_blocks",
        "single_transformer_blocks",
    }
    named = ("time_", "norm1", "norm_out", ".norm.")
    assert not [key for key in left if any(word in key for word in named)]
    assert left.keys() - teacher.keys() == {"step_table"}
    shared = [p.networks.denoiser.weights for p in (student, parts)]
    assert all(shared[0][key] is shared[1][key] for key in left.keys() & teacher)
    assert student.clip is None
    assert family.fixed_steps(student) == 4


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_student_refuses_any_other_step_count(student, steps):
    for use in (family.make_student, lambda *args: family.step_tables(args[0], PROMPT, args[1])):
        with pytest.raises(InputError, match=rf"4 steps, not {steps}"):
            use(student, steps, [PROMPT])
    assert family.make_student(student, 4, [PROMPT]) is student


def test_a_guidance_distilled_teacher_runs_at_its_released_scale(parts, off_initial):
    cfg = dataclasses.replace(parts.denoiser.cfg, guidance_embeds=True)
    teacher = off_initial(type(parts.denoiser)(cfg), 8)
    pooled = family.pooled_text(parts.clip, [PROMPT])
    table = step_rows(network(teacher), [1.0, 0.5], pooled)
    expected = teacher.modulations(torch.tensor([0.5]), pooled, torch.tensor([3.5]))
    assert torch.equal(table[1], expected[0])
    student = to_static(network(teacher), table).module
    assert not student.cfg.guidance_embeds
    assert not torch.equal(
        table[1], teacher.modulations(torch.tensor([0.5]), pooled, torch.tensor([1.0]))[0]
    )


# Saving


def modules(parts: family.FluxParts) -> dict[str, nn.Module]:
    found = {
        "transformer": parts.denoiser,
        "text_encoder_2": parts.text_encoder,
        "vae": parts.vae,
    }
    return found if parts.clip is None else {**found, "text_encoder": parts.clip.tower}


def saved(parts: family.FluxParts, folder: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    family.save(parts, folder, dtype)
    return open_checkpoint(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_saving_and_loading_gives_every_weight_back(parts, tmp_path, dtype):
    checkpoint = saved(parts, tmp_path / "out", dtype)
    again = family.load(checkpoint)
    for name, module in modules(parts).items():
        stored = {stored.dtype for stored in checkpoint.weights(name).values()}
        assert stored == {dtype_name(dtype)}
        before, after = module.state_dict(), modules(again)[name].state_dict()
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            assert torch.equal(after[key], tensor.to(dtype).float()), f"{name}: {key}"
            assert after[key].dtype == torch.float32
    for field in ("scheduler", "text_tokens", "side", "canvas"):
        assert getattr(again, field) == getattr(parts, field)
    for name, module in modules(parts).items():
        assert module.cfg == modules(again)[name].cfg, name
    assert family.token_ids(again, PROMPT).tolist() == family.token_ids(parts, PROMPT).tolist()


def test_a_saved_student_draws_the_same_and_has_no_clip_tower(student, tmp_path):
    checkpoint = saved(student, tmp_path / "out")
    assert not checkpoint.has("text_encoder")
    assert not checkpoint.has("tokenizer")
    again = family.load(checkpoint)
    assert again.clip is None
    ours, theirs = (our_drawing(p, 4, seed=5).final_latents for p in (again, student))
    np.testing.assert_array_equal(ours, theirs)


def _opened(name: str, folder: Path) -> tuple[nn.Module, dict]:
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5EncoderModel

    classes = {
        "transformer": FluxTransformer2DModel,
        "text_encoder_2": T5EncoderModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
    }
    return classes[name].from_pretrained(folder / name, output_loading_info=True)


@pytest.mark.parametrize("name", ["transformer", "text_encoder", "text_encoder_2", "vae"])
def test_diffusers_and_transformers_open_what_we_save(flux, parts, tmp_path, name):
    module, info = _opened(name, saved(parts, tmp_path / "out").path)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info.get(kind), f"{kind}: {info[kind]}"
    before, after = getattr(flux.pipeline, name).state_dict(), module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_saved_teacher_opens_as_a_whole_pipeline(flux, parts, tmp_path):
    folder = saved(parts, tmp_path / "out").path
    pipeline = type(flux.pipeline).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = their_drawing(dataclasses.replace(flux, pipeline=pipeline), parts, 2, 1, "latent")
    side, factor = parts.side, parts.vae.cfg.factor
    ours = torch.from_numpy(our_drawing(parts, 2, seed=1).final_latents)
    assert_close(ours, pipeline._unpack_latents(theirs, side, side, factor))
