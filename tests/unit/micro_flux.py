"""FLUX transformers of a few thousand weights, and the velocity each of them gives.

Shapes: B batch, S image tokens, T text tokens, L = T + S, C token channels, J text width, P pooled
width, N modulation rows, D width.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.nanoflux_layers import rope_tables
from nanoflux_mobile.models.token_resampling import low_ids
from nanoflux_mobile.weights import Network, Stored, network

MICRO = FluxConfig(
    in_channels=4,
    num_layers=1,
    num_single_layers=3,
    attention_head_dim=8,
    num_attention_heads=3,
    joint_attention_dim=5,
    pooled_projection_dim=4,
    guidance_embeds=False,
    axes_dims_rope=(4, 2, 2),
)
FORMS = {
    "AdaLN": MICRO,
    "guidance": replace(MICRO, guidance_embeds=True),
    "Static-LN": replace(MICRO, static_steps=2),
    "AdaLN resampled": replace(MICRO, low_resolution_blocks=(1, 3)),
    "Static-LN resampled": replace(MICRO, static_steps=2, low_resolution_blocks=(1, 3)),
    "separably resampled": replace(
        MICRO, static_steps=2, low_resolution_blocks=(1, 3), separable_resamplers=True
    ),
    "resampled with a skip": replace(MICRO, low_resolution_blocks=(1, 3), low_resolution_skip=True),
}
SIDE, TEXT = 4, 3
"""A square of image tokens behind a few words."""
FLOAT32 = 2e-5
"""Velocities are of the order of 1; sums of a hundred terms come in another order."""


@cache
def make(cfg: FluxConfig, seed: int = 0) -> Network[NanoFlux]:
    """A network with random weights: no bias is zero, no norm one, no modulation small.

    All tests share it, so none may change it.
    """
    torch.manual_seed(seed)
    model = NanoFlux(cfg).eval().requires_grad_(False)
    for p in model.parameters():
        p.add_(0.2 * torch.randn_like(p))
    return network(model)


def unread(cfg: FluxConfig) -> Network[NanoFlux]:
    """A network of any size, of which no weight may be read."""

    def read() -> Tensor:
        raise AssertionError("a weight was read")

    with torch.device("meta"):
        skeleton = NanoFlux(cfg)
    shapes = {name: tuple(p.shape) for name, p in skeleton.state_dict().items()}
    return Network(skeleton, {n: Stored(shape, "bfloat16", 0, read) for n, shape in shapes.items()})


def rows_of(model: NanoFlux, batch: int = 2) -> Tensor:
    """The modulation `velocity` runs with: times and prompts that differ, or steps, (B, N, D)."""
    cfg, rng = model.cfg, torch.Generator().manual_seed(8)
    steps = torch.arange(batch) % 2
    if cfg.static_steps:
        return model.step_table[steps]
    pooled_BP = torch.randn(2, cfg.pooled_projection_dim, generator=rng).repeat(batch // 2, 1)
    guidance = torch.full((batch,), 3.5) if cfg.guidance_embeds else None
    return model.modulations(1 - 0.4 * steps, pooled_BP, guidance)


def velocity(model: NanoFlux, low: bool = False, batch: int = 2) -> Tensor:
    """What the model says to two samples that only depend on its sizes, (B, S, C).

    `low` asks for a low step; a larger even `batch` has the two samples over and over.
    """
    cfg, rng = model.cfg, torch.Generator().manual_seed(7)
    x_BSC = torch.randn(2, SIDE**2, cfg.in_channels, generator=rng)
    text_BTJ = torch.randn(2, TEXT, cfg.joint_attention_dim, generator=rng)
    x_BSC, text_BTJ = (x.repeat(batch // 2, 1, 1) for x in (x_BSC, text_BTJ))
    cells = torch.cartesian_prod(torch.zeros(1), *[torch.arange(float(SIDE))] * 2)
    ids = torch.cat((torch.zeros(TEXT, 3), cells))
    places = [ids, low_ids(ids, (SIDE, SIDE))] if low else [ids]
    ropes = [rope_tables(found, cfg.axes_dims_rope) for found in places]
    return model(x_BSC, text_BTJ, rows_of(model, batch), *ropes)


def runs(cfg: FluxConfig) -> tuple[bool, ...]:
    """The kinds of steps a network has, as `velocity` asks for them."""
    return (False, True) if cfg.downsamples else (False,)
