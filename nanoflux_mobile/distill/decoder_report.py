"""How far a tiny decoder's pictures are from the full one's, in decibels and in colour.

Shapes: B batch, C channels, H W pixels, Z latent channels, h w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nanoflux_mobile.distill.desk import Desk
from nanoflux_mobile.distill.scoring import HELD_OUT, MOST_DB
from nanoflux_mobile.families.nanoflux import FluxParts

LEVELS = 127.5
"""Levels of 8 bits in one unit of pixels in [-1, 1]."""


@dataclass(frozen=True)
class Gap:
    """How far pictures are from others: their PSNR in dB over the range of pixels, at most
    MOST_DB, and the mean signed difference of red, green and blue in levels of 8 bits."""

    psnr_db: float
    shift: tuple[float, float, float]


@dataclass(frozen=True)
class DecoderReport:
    """The tiny decoder against the full one and the pixels, and the full one against the pixels."""

    parameters: int
    from_full: Gap
    from_pixels: Gap
    full_from_pixels: Gap


@torch.no_grad()
def judge(desk: Desk, parts: FluxParts, batches: int = 4, size: int = 40) -> DecoderReport:
    """The student's decoder on pictures that no step has seen, from their exact latents."""
    full, small = desk.source.vae.to(desk.device), parts.vae.to(desk.device)
    lessons = desk.material.lessons(desk.seed + HELD_OUT, size)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for i in range(batches):
        pixels_BCHW = desk.material.pixels(lessons[i]).to(desk.device)
        z_BZhw = full.encode(pixels_BCHW)
        found.append((small.decode(z_BZhw), full.decode(z_BZhw), pixels_BCHW))
    ours, theirs, pixels = (torch.cat(kind).float().cpu() for kind in zip(*found, strict=True))
    count = parts.networks.vae.count()
    return DecoderReport(count, gap(ours, theirs), gap(ours, pixels), gap(theirs, pixels))


def gap(ours_BCHW: Tensor, theirs_BCHW: Tensor) -> Gap:
    """How far pictures in [-1, 1] are from others, as they are shown: clamped."""
    ours, theirs = ours_BCHW.double().clamp(-1, 1), theirs_BCHW.double().clamp(-1, 1)
    error = ours - theirs
    red, green, blue = (LEVELS * error.mean((0, 2, 3))).tolist()
    decibels = min(MOST_DB, float(10 * torch.log10(4 / error.square().mean())))
    return Gap(round(decibels, 3), (round(red, 4), round(green, 4), round(blue, 4)))
