"""Running a SnapGen student in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nanoflux_mobile.drawing import Graphs
from nanoflux_mobile.families.snapgen.opening import SnapGenParts
from nanoflux_mobile.models.snapgen import join_context
from nanoflux_mobile.models.snapgen_layers import time_states
from nanoflux_mobile.sampler import Schedule, schedule
from nanoflux_mobile.tokenizer import CLIP_END, encode_prompt


def token_ids(parts: SnapGenParts, prompt: str) -> np.ndarray:
    """A prompt as both towers take it, int32 (1, T); InputError if it does not fit.

    It is filled up with the end token, CLIP-L's own rule. The paper does not say how its students
    were trained to see CLIP-G's (SDXL fills those up with token 0), so this is our choice.
    """
    return encode_prompt(parts.tokenizer, prompt, parts.text_tokens, CLIP_END)


def noise_levels(parts: SnapGenParts, steps: int) -> Schedule:
    """The schedule the checkpoint's scheduler config asks for."""
    return schedule(steps, parts.scheduler, image_tokens=parts.canvas.tokens)


def fixed_steps(parts: SnapGenParts) -> int | None:
    """None: the UNet reads the time of a step, so it takes any number of them."""
    return None


def make_student(parts: SnapGenParts, steps: int, prompts: Sequence[str]) -> SnapGenParts:
    """The parts as they are, a student already; InputError for steps or prompts they cannot do."""
    noise_levels(parts, steps)
    for prompt in prompts:
        token_ids(parts, prompt)
    return parts


@torch.no_grad()
def step_tables(parts: SnapGenParts, prompt: str, steps: int) -> np.ndarray:
    """Time states of every step as graphs take them, float32 (steps, 1, E, 1, 1).

    They are the same for every prompt. Of the UNet only the embeddings of the time are read.
    """
    network = parts.networks.denoiser
    sigmas_B = torch.tensor(noise_levels(parts, steps).sigmas[:-1])
    sizes = None
    if parts.unet.size_embeds:
        pixels_B2 = torch.full((steps, 2), float(parts.side))
        sizes = network.piece("add_embedding"), pixels_B2
    states_BE = time_states(network.piece("time_embedding"), sigmas_B, sizes)
    return states_BE[:, None, :, None, None].contiguous().numpy()


def _rows(x_BCOS: np.ndarray) -> Tensor:
    return torch.from_numpy(x_BCOS)[:, :, 0].transpose(1, 2)


def graphs(parts: SnapGenParts) -> Graphs:
    """The parts as runnable graphs, in plain PyTorch float32."""
    canvas, own = parts.canvas, parts.networks

    @torch.inference_mode()
    def text_encoder(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids_BT = torch.from_numpy(inputs["token_ids"]).long()
        left, right = (
            tower.module.states(ids_BT)[0] if tower else None for tower in (own.clip_l, own.clip_g)
        )
        states_BTJ = join_context(left, right, None, parts.joined_widths)
        return {"text_states": states_BTJ.transpose(1, 2)[:, :, None].contiguous().numpy()}

    @torch.inference_mode()
    def denoiser(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        x_BZhw = torch.from_numpy(inputs["latents"]).reshape(canvas.shape)
        states_BE = torch.from_numpy(inputs["step_table"]).flatten(1)
        velocity = own.denoiser.module(x_BZhw, _rows(inputs["text_states"]), states_BE)
        return {"velocity": velocity.flatten(2)[:, :, None].numpy()}

    @torch.inference_mode()
    def decoder(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"image": own.vae.module.decode(torch.from_numpy(inputs["latents"])).numpy()}

    return Graphs(text_encoder, denoiser, decoder)
