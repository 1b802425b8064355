"""All cuts of size at once, chosen by weights or not at all: what a chain is compared with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from nanoflux_mobile.compress.features import cut_features, first_channels, narrower_axes
from nanoflux_mobile.compress.heads import check_heads, cut_heads, most_important
from nanoflux_mobile.compress.magnitude import magnitudes
from nanoflux_mobile.compress.merging import check_blocks, deleted, one_run
from nanoflux_mobile.distill.desk import Desk, with_network
from nanoflux_mobile.distill.plan import share_of
from nanoflux_mobile.distill.teaching import Phase, taught
from nanoflux_mobile.families.nanoflux import FluxParts
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.weights import network


@dataclass(frozen=True)
class Settings:
    """heads, channels, blocks: what stays of each, a count or a share. choose: what the weights say
    is largest, or "random", an untrained network of those sizes. train: phases, in order."""

    heads: str = "2/3"
    channels: str = "3/4"
    blocks: str = "24/38"
    choose: Literal["magnitude", "random"] = "magnitude"
    train: tuple[Phase, ...] = ()


def _sizes(cfg: FluxConfig, settings: Settings) -> FluxConfig:
    heads = share_of(settings.heads, cfg.num_attention_heads, "heads")
    channels = share_of(settings.channels, cfg.attention_head_dim, "channels")
    blocks = share_of(settings.blocks, cfg.num_single_layers, "blocks")
    check_heads(cfg, heads)
    check_blocks(cfg.num_single_layers, blocks)
    return dataclasses.replace(
        cfg,
        num_attention_heads=heads,
        attention_head_dim=channels,
        axes_dims_rope=narrower_axes(cfg.axes_dims_rope, channels),
        num_single_layers=blocks,
    )


def outline(parts: FluxParts, settings: Settings) -> FluxParts:
    """The parts with an untrained network on the meta device; it checks a plan."""
    with torch.device("meta"):
        return with_network(parts, network(NanoFlux(_sizes(parts.flux, settings))))


def cut(desk: Desk, settings: Settings) -> FluxParts:
    """The student before any training."""
    return (_pruned if settings.choose == "magnitude" else _untrained)(desk, settings)


def _pruned(desk: Desk, settings: Settings) -> FluxParts:
    """Largest heads, channels, units; of the single blocks, those with the largest last linear."""
    sizes, wide = _sizes(desk.before.flux, settings), desk.before.networks.denoiser
    kept = most_important(wide.skeleton.cfg, sizes.num_attention_heads, magnitudes(wide))
    fewer = cut_heads(wide, sizes.num_attention_heads, kept)
    channels = sizes.attention_head_dim
    bases = first_channels(fewer.skeleton.cfg, channels)
    thin = cut_features(fewer, channels, bases, magnitudes(fewer))
    while (present := thin.skeleton.cfg.num_single_layers) > sizes.num_single_layers:
        names = [f"single_transformer_blocks.{i}.proj_out.weight" for i in range(present)]
        norms = [thin.tensor(name).norm().item() for name in names]
        least = norms.index(min(norms[1:]))
        # A run keeps its first block, so the least block is dropped by the run that ends with it.
        thin = deleted(thin, one_run(present, least - 1, least + 1))
    return with_network(desk.before, thin)


def _untrained(desk: Desk, settings: Settings) -> FluxParts:
    """Blocks start as the identity (AdaLN-Zero)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(desk.seed)
        model = NanoFlux(_sizes(desk.before.flux, settings))
    for name, p in model.named_parameters():
        if ("norm" in name and "linear" in name) or name.startswith("proj_out"):
            nn.init.zeros_(p)
    return with_network(desk.before, network(model.eval().requires_grad_(False)))


def train(desk: Desk, parts: FluxParts, settings: Settings, out: Path) -> FluxParts:
    """The student after every phase."""
    return taught(desk, parts, settings.train, out)
