"""Running a FLUX checkpoint in PyTorch, and the Static-LN cut that makes it a student."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nanoflux_mobile.compress.static_ln import step_rows, to_static
from nanoflux_mobile.drawing import Graphs, Runner
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families.nanoflux.opening import FluxParts, PooledText
from nanoflux_mobile.models.nanoflux_layers import Rope, rope_tables
from nanoflux_mobile.models.token_resampling import Grid, low_ids
from nanoflux_mobile.sampler import Schedule, image_ids, schedule, text_ids
from nanoflux_mobile.tokenizer import CLIP_END, encode, encode_prompt

T5_PAD = "<pad>"


def token_ids(parts: FluxParts, prompt: str) -> np.ndarray:
    """A prompt as the text encoder takes it, int32 (1, T); InputError if it does not fit."""
    return encode_prompt(parts.tokenizer, prompt, parts.text_tokens, T5_PAD)


def noise_levels(parts: FluxParts, steps: int) -> Schedule:
    """The schedule the checkpoint's scheduler config asks for."""
    levels = schedule(steps, parts.scheduler, image_tokens=parts.canvas.tokens)
    return dataclasses.replace(levels, low_steps=parts.flux.low_steps(steps))


def fixed_steps(parts: FluxParts) -> int | None:
    """The step count of a Static-LN student's table; None for a teacher, which takes any."""
    return parts.flux.static_steps or None


@torch.no_grad()
def pooled_text(clip: PooledText, prompts: Sequence[str]) -> Tensor:
    """Pooled states of prompts, (B, P)."""
    length = clip.tower.cfg.max_position_embeddings
    ids = [encode(clip.tokenizer, prompt, length, CLIP_END) for prompt in prompts]
    return clip.tower(torch.from_numpy(np.concatenate(ids)).long())


def make_student(parts: FluxParts, steps: int, prompts: Sequence[str]) -> FluxParts:
    """The Static-LN student for a schedule of `steps`, its table averaged over `prompts`."""
    if parts.clip is None:
        stored = parts.flux.static_steps
        if stored != steps:
            raise InputError(
                f"this student's table has {stored} steps, not {steps}; use its teacher"
            )
        return parts
    sigmas = noise_levels(parts, steps).sigmas[:-1]
    teacher = parts.networks.denoiser
    table = step_rows(teacher, sigmas, pooled_text(parts.clip, prompts))
    cut = dataclasses.replace(parts.networks, denoiser=to_static(teacher, table))
    return dataclasses.replace(parts, networks=cut, clip=None)


def step_tables(parts: FluxParts, prompt: str, steps: int) -> np.ndarray:
    """Modulation of every step as graphs take it, float32 (steps, 1, D, 1, N).

    A Static-LN student has one table for all prompts; an AdaLN teacher computes this prompt's.
    """
    student = make_student(parts, steps, [prompt])
    columns = student.networks.denoiser.tensor("step_table").transpose(1, 2)
    return columns[:, None, :, None].contiguous().numpy()


def _ids_and_grid(parts: FluxParts) -> tuple[Tensor, Grid]:
    """Positions of text tokens, at the origin, followed by image tokens; and the tokens' grid."""
    canvas = parts.canvas
    grid = canvas.height // canvas.patch, canvas.width // canvas.patch
    return torch.from_numpy(np.concatenate((text_ids(parts.text_tokens), image_ids(*grid)))), grid


def joint_rope(parts: FluxParts) -> Rope:
    """RoPE tables of a full step's sequence, text first."""
    return rope_tables(_ids_and_grid(parts)[0], parts.flux.axes_dims_rope)


def low_rope(parts: FluxParts) -> Rope | None:
    """RoPE tables of a low step's sequence; None for a denoiser without such steps."""
    if not parts.flux.downsamples:
        return None
    return rope_tables(low_ids(*_ids_and_grid(parts)), parts.flux.axes_dims_rope)


def _rows(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x)[:, :, 0].transpose(1, 2)


def _columns(x_BSC: Tensor) -> np.ndarray:
    return x_BSC.transpose(1, 2)[:, :, None].contiguous().numpy()


def graphs(parts: FluxParts) -> Graphs:
    """The parts as runnable graphs, in plain PyTorch float32."""
    full, low, grid = joint_rope(parts), low_rope(parts), _ids_and_grid(parts)[1]

    @torch.inference_mode()
    def text_encoder(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids_BT = torch.from_numpy(inputs["token_ids"]).long()
        return {"text_states": _columns(parts.text_encoder(ids_BT))}

    def denoiser(low: Rope | None) -> Runner:
        @torch.inference_mode()
        def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            named = (_rows(inputs[name]) for name in ("latents", "text_states", "step_table"))
            return {"velocity": _columns(parts.denoiser(*named, full, low, grid))}

        return run

    @torch.inference_mode()
    def decoder(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"image": parts.vae.decode(torch.from_numpy(inputs["latents"])).numpy()}

    return Graphs(text_encoder, denoiser(None), decoder, denoiser(low) if low else None)
