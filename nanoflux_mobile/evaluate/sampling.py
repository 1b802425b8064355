"""Many pictures at once: what scores of hundreds of prompts are made of.

Shapes: B batch, S image tokens, C token channels, h w latent cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from nanoflux_mobile.data.captions import held_out
from nanoflux_mobile.drawing import to_uint8
from nanoflux_mobile.evaluate.scene_accuracy import Scores, score
from nanoflux_mobile.families.nanoflux import FluxParts, noise_levels, pooled_text, token_ids
from nanoflux_mobile.families.nanoflux.flow import Noised, path_of, velocity
from nanoflux_mobile.noise import gaussian
from nanoflux_mobile.sampler import euler, pack, unpack


@torch.no_grad()
def draw_many(
    parts: FluxParts, prompts: Sequence[str], seeds: Sequence[int], steps: int, device: str = "cpu"
) -> Iterator[np.ndarray]:
    """Pictures of prompts, uint8 (H, W, 3) each, as a checkpoint draws them one by one.

    A teacher's modulation follows each prompt; equal seeds give equal noise everywhere.
    """
    model, canvas = parts.denoiser.to(device), parts.canvas
    path = path_of(parts, steps, device)
    text_BTJ = parts.text_encoder.to(device)(_ids(parts, prompts).to(device))
    width = parts.flux.pooled_projection_dim
    pooled_BP = pooled_text(parts.clip, prompts) if parts.clip else torch.zeros(len(prompts), width)
    pooled_BP = pooled_BP.to(device)
    noise = np.concatenate([gaussian(seed, canvas.shape) for seed in seeds])
    start_BSC = torch.from_numpy(pack(noise, canvas.patch)).to(device)

    def at(x_BSC: Tensor, step: int) -> Tensor:
        step_B = torch.full((len(x_BSC),), step, device=device)
        t_B = torch.full((len(x_BSC),), path.sigmas[step], device=device)
        return velocity(model, Noised(x_BSC, step_B, t_B, text_BTJ, pooled_BP, x_BSC), path)

    tokens_BSC = euler(at, start_BSC, noise_levels(parts, steps))
    latents = unpack(tokens_BSC, canvas.height, canvas.width, canvas.patch)
    images = parts.vae.to(device).decode(latents).cpu().numpy()
    yield from (to_uint8(image[None]) for image in images)


def _ids(parts: FluxParts, prompts: Sequence[str]) -> Tensor:
    return torch.from_numpy(np.concatenate([token_ids(parts, p) for p in prompts])).long()


def scene_scores(
    parts: FluxParts,
    steps: int,
    count: int,
    device: str = "cpu",
    batch: int = 50,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """GenEval's columns of a scene-drawing checkpoint on held-out prompts; prompt i has seed i."""
    prompts = held_out(seed=0, count=count)
    judged = []
    for start in range(0, count, batch):
        some = prompts[start : start + batch]
        seeds = range(start, start + len(some))
        pictures = draw_many(parts, [text for text, _ in some], seeds, steps, device)
        judged += [(claim, p) for (_, claim), p in zip(some, pictures, strict=True)]
        on_batch(start + len(some), count)
    return score(judged)
