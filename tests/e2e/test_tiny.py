"""The checkpoint that ships inside the package: whole, small, readable by others, and it draws."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from nanoflux_export.demo import tiny_teacher
from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.data.captions import examples, held_out
from nanoflux_mobile.data.scenes import render
from nanoflux_mobile.drawing import to_uint8
from nanoflux_mobile.evaluate.scene_accuracy import clean, read_scene, score
from nanoflux_mobile.families import nanoflux
from nanoflux_mobile.families.nanoflux import FluxParts
from nanoflux_mobile.noise import gaussian
from nanoflux_mobile.sampler import euler, pack, unpack

FLOOR = 0.75
"""Share of 48 held-out prompts the teacher draws right; it has 0.85 of 500, chance under 0.01."""
MOST_BYTES = 25_000_000
DECODER_DB = 32.0
"""From here on the checker reads a decoded scene as surely as a rendered one."""
CHECKER = 0.98
FRESH = 987_654
"""Seed of scenes no training run has seen."""
STEPS = 10
WEIGHTS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}


@pytest.fixture(scope="module")
def tiny() -> Path:
    return tiny_teacher()


@pytest.fixture(scope="module")
def parts(tiny: Path) -> FluxParts:
    return nanoflux.load(open_checkpoint(tiny))


def scenes(count: int) -> np.ndarray:
    """Rendered scenes, uint8 (count, 64, 64, 3)."""
    return np.stack([render(scene) for _, _, scene in itertools.islice(examples(FRESH), count)])


def test_every_part_is_there_and_small(tiny: Path, parts: FluxParts) -> None:
    assert parts.clip is not None
    assert parts.canvas.shape == (1, 16, 8, 8)
    assert parts.side == 64
    files = [path for path in tiny.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".md", ".safetensors", ".txt"}


@pytest.mark.parametrize("part", WEIGHTS)
def test_every_weight_is_stored_in_half_precision(tiny: Path, part: str) -> None:
    with safe_open(tiny / part / f"{WEIGHTS[part]}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_the_tokenizer_has_what_the_real_one_has(tiny: Path, parts: FluxParts) -> None:
    data = json.loads((tiny / "tokenizer_2" / "tokenizer.json").read_text("utf-8"))
    normalizer = data["normalizer"]
    kinds = [one["type"] for one in normalizer.get("normalizers", [normalizer])]
    assert "Precompiled" in kinds
    assert (data["model"]["type"], data["pre_tokenizer"]["type"]) == ("Unigram", "Metaspace")
    plain = parts.tokenizer.encode("two ringfish").ids
    for text in ("two ring\ufb01sh", "\uff54wo ringfish", "two  ringfish", " two\tringfish\n"):
        assert parts.tokenizer.encode(text).ids == plain, f"nmt_nfkc folds {text!r}"


def test_captions_fit_the_tokenizer(parts: FluxParts) -> None:
    for text, _, _ in itertools.islice(examples(FRESH), 500):
        assert nanoflux.token_ids(parts, text).shape == (1, parts.text_tokens)


def test_diffusers_opens_the_transformer(tiny: Path, parts: FluxParts) -> None:
    from diffusers import FluxTransformer2DModel

    theirs, told = FluxTransformer2DModel.from_pretrained(
        tiny / "transformer", output_loading_info=True
    )
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same_weights(theirs, parts.denoiser)


def test_diffusers_opens_the_autoencoder(tiny: Path, parts: FluxParts) -> None:
    from diffusers import AutoencoderKL

    theirs, told = AutoencoderKL.from_pretrained(tiny / "vae", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same_weights(theirs, parts.vae)
    z = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scaled = (z / theirs.config.scaling_factor) + theirs.config.shift_factor
        torch.testing.assert_close(parts.vae.decode(z), theirs.decode(scaled).sample)


def test_transformers_opens_both_text_towers(tiny: Path, parts: FluxParts) -> None:
    from transformers import CLIPTextModel, T5EncoderModel

    assert parts.clip is not None
    for kind, part, ours in (
        (T5EncoderModel, "text_encoder_2", parts.text_encoder),
        (CLIPTextModel, "text_encoder", parts.clip.tower),
    ):
        theirs, told = kind.from_pretrained(tiny / part, output_loading_info=True)
        assert not told["unexpected_keys"]
        assert not set(told["missing_keys"]) - {"encoder.embed_tokens.weight"}  # tied to `shared`
        assert same_weights(theirs.float(), ours)


def same_weights(theirs: torch.nn.Module, ours: torch.nn.Module) -> bool:
    """Whether another library's module holds exactly our tensors, whatever it calls their tower."""
    held, own = (
        {key.removeprefix("text_model."): tensor.float() for key, tensor in found.items()}
        for found in (theirs.state_dict(), ours.state_dict())
    )
    held.pop("encoder.embed_tokens.weight", None)  # T5's second name for `shared`
    return held.keys() == own.keys() and all(torch.equal(held[key], own[key]) for key in own)


def test_the_autoencoder_keeps_fresh_scenes_readable(parts: FluxParts) -> None:
    pixels = torch.from_numpy(scenes(64)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.no_grad():
        again = parts.vae.decode(parts.vae.encode(pixels))
    mse = (again.clamp(-1, 1) - pixels).square().mean().item()
    assert 10 * np.log10(2.0**2 / mse) >= DECODER_DB
    latents = parts.vae.encode(pixels)
    assert latents.std().item() == pytest.approx(1.0, abs=0.1)  # what the denoiser starts from

    drawn = list(itertools.islice(examples(FRESH), 64))
    read = [
        clean(claim, read_scene(to_uint8(image[None].numpy())))
        for (_, claim, _), image in zip(drawn, again, strict=True)
    ]
    assert np.mean(read) >= CHECKER


def test_the_checker_reads_what_was_rendered() -> None:
    drawn = list(itertools.islice(examples(FRESH), 200))
    read = [clean(claim, read_scene(render(scene))) for _, claim, scene in drawn]
    assert np.mean(read) >= CHECKER


@torch.inference_mode()
def test_the_teacher_draws_held_out_prompts(parts: FluxParts) -> None:
    """All prompts as one batch, prompt i from seed i: a third of the time of one after another."""
    prompts = held_out(seed=0, count=48)
    texts = [text for text, _ in prompts]
    ids = np.concatenate([nanoflux.token_ids(parts, text) for text in texts])
    states = parts.text_encoder(torch.from_numpy(ids).long())
    assert parts.clip is not None
    pooled, rope = nanoflux.pooled_text(parts.clip, texts), nanoflux.joint_rope(parts)
    levels, canvas = nanoflux.noise_levels(parts, STEPS), parts.canvas
    noise = np.concatenate([gaussian(seed, canvas.shape) for seed in range(len(texts))])

    def velocity(latents: torch.Tensor, step: int) -> torch.Tensor:
        times = torch.full((len(texts),), levels.sigmas[step])
        rows = parts.denoiser.modulations(times, pooled)
        velocity: torch.Tensor = parts.denoiser(latents, states, rows, rope)
        return velocity

    tokens = euler(velocity, pack(torch.from_numpy(noise), canvas.patch), levels)
    latents = unpack(tokens, canvas.height, canvas.width, canvas.patch)
    images = parts.vae.decode(latents).numpy()
    pairs = zip(prompts, images, strict=True)
    scores = score((claim, to_uint8(image[None])) for (_, claim), image in pairs)
    assert scores.overall >= FLOOR, scores
