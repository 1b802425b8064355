"""The flow-matching path, and a FLUX denoiser at any point of it.

x_t = (1 - t) x_0 + t noise, t = 1 is noise, and the velocity is noise - x_0. Students are trained
at the noise levels of their schedule, the only ones they will meet.

Shapes: B batch, S image tokens, T text tokens, C token channels, J text width, P pooled width,
N modulation rows, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nanoflux_mobile.compress.static_ln import GUIDANCE
from nanoflux_mobile.families.nanoflux.opening import FluxParts
from nanoflux_mobile.families.nanoflux.running import joint_rope, low_rope, noise_levels
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_layers import Rope
from nanoflux_mobile.models.token_resampling import Grid


@dataclass(frozen=True)
class Clean:
    """Packed latents of pictures and what their captions become: text states, pooled text."""

    x_BSC: Tensor
    text_BTJ: Tensor
    pooled_BP: Tensor

    def tensors(self) -> Mapping[str, Tensor]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Noised:
    """A batch on the path: `step_B` counts scheduled steps, ascending; rows of low steps are first.

    `target_BSC` is the velocity of the data.
    """

    x_BSC: Tensor
    step_B: Tensor
    t_B: Tensor
    text_BTJ: Tensor
    pooled_BP: Tensor
    target_BSC: Tensor


@dataclass(frozen=True)
class Path:
    """Where a network's tokens are and when its steps happen.

    sigmas: noise level of each step. low_steps: how many, from the first, run low.
    """

    sigmas: tuple[float, ...]
    low_steps: int
    rope: Rope
    low_rope: Rope | None
    grid: Grid


def path_of(parts: FluxParts, steps: int, device: str = "cpu") -> Path:
    """The path of a checkpoint's denoiser over a schedule of `steps`."""
    levels, low, canvas = noise_levels(parts, steps), low_rope(parts), parts.canvas
    grid = canvas.height // canvas.patch, canvas.width // canvas.patch
    moved = None if low is None else _to(low, device)
    return Path(levels.sigmas[:-1], levels.low_steps, _to(joint_rope(parts), device), moved, grid)


def _to(rope: Rope, device: str) -> Rope:
    return rope[0].to(device), rope[1].to(device)


def noised(clean: Clean, sigmas: tuple[float, ...], rng: torch.Generator) -> Noised:
    """A batch at all steps in equal shares, so that the loss of a batch varies little."""
    batch, device = len(clean.x_BSC), clean.x_BSC.device
    step_B = torch.arange(batch, device=device) * len(sigmas) // batch
    t_B = torch.tensor(sigmas, device=device)[step_B]
    noise = torch.randn(clean.x_BSC.shape, generator=rng).to(device)
    t = t_B[:, None, None]
    x_BSC = (1 - t) * clean.x_BSC + t * noise
    return Noised(x_BSC, step_B, t_B, clean.text_BTJ, clean.pooled_BP, noise - clean.x_BSC)


def velocity(model: NanoFlux, batch: Noised, path: Path) -> Tensor:
    """What a denoiser predicts for a batch, (B, S, C): AdaLN or Static-LN, low steps run low."""
    rows_BND = rows(model, batch)
    low = int((batch.step_B < path.low_steps).sum()) if path.low_rope is not None else 0
    x, text = batch.x_BSC, batch.text_BTJ
    parts = []
    if low:
        first = (x[:low], text[:low], rows_BND[:low])
        parts.append(model(*first, path.rope, path.low_rope, path.grid))
    if low < len(x):
        parts.append(model(x[low:], text[low:], rows_BND[low:], path.rope))
    return torch.cat(parts)


def rows(model: NanoFlux, batch: Noised) -> Tensor:
    """The modulation rows of a batch, (B, N, D): looked up by step, or AdaLN's."""
    if model.cfg.static_steps:
        return model.step_table[batch.step_B]
    return model.modulations(batch.t_B, batch.pooled_BP, guidance(model, len(batch.t_B)))


def guidance(model: NanoFlux, batch: int) -> Tensor | None:
    """The released scale for a guidance-distilled network, None for any other."""
    if not model.cfg.guidance_embeds:
        return None
    return torch.full((batch,), GUIDANCE, device=next(model.parameters()).device)
