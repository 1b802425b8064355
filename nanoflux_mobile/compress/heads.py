"""Cut C1 of NanoFLUX: fewer attention heads, and a residual stream that is narrower with them.

FLUX.1 goes from 24 heads to 16, so its width from 3072 to 2048 (12 B to 5 B parameters). The paper
takes the first heads and does not say which residual channels and hidden units stay; here it is the
first ones too, or, better, those whose loss would change the velocity most (see `importance`).

Shapes: H heads, K head width, D = H K width, F hidden units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanoflux_mobile.compress.importance import Importance
from nanoflux_mobile.compress.narrowing import BlockCut, Cut, keep, narrowed
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.weights import Network


@dataclass(frozen=True)
class Kept:
    """Indices into the wider network, ascending; those of blocks are doubles first."""

    residual: Tensor
    condition: Tensor
    heads: Sequence[Tensor]
    units: Sequence[Tensor]
    text_units: Sequence[Tensor]


def cut_heads(
    network: Network[NanoFlux], heads: int, kept: Kept | None = None
) -> Network[NanoFlux]:
    """The network with `heads` heads in every block; without `kept`, the first of everything.

    InputError for a number of heads that is not below the present one.
    """
    old = network.skeleton.cfg
    check_heads(old, heads)
    kept = kept or first(old, heads)
    cfg = dataclasses.replace(old, num_attention_heads=heads)
    whole = torch.arange(old.attention_head_dim)
    channels = [(h[:, None] * old.attention_head_dim + whole).flatten() for h in kept.heads]
    blocks = [
        BlockCut(
            queries=keep(channels[i]),
            values=keep(channels[i]),
            head=keep(whole),
            units=keep(kept.units[i]),
            text_units=keep(kept.text_units[i]) if i < old.num_layers else None,
        )
        for i in range(old.num_layers + old.num_single_layers)
    ]
    cut = Cut(keep(kept.residual), keep(kept.condition), keep(torch.arange(cfg.width)), blocks)
    return narrowed(network, cfg, cut)


def check_heads(cfg: FluxConfig, heads: int) -> None:
    """InputError unless `heads` is a smaller number of heads."""
    if not 0 < heads < cfg.num_attention_heads:
        raise InputError(
            f"heads are to become {heads}, but the network has {cfg.num_attention_heads}; "
            f"give 1 to {cfg.num_attention_heads - 1}"
        )


def first(cfg: FluxConfig, heads: int) -> Kept:
    """The paper's choice: the first heads, and the first of all else."""
    width, blocks = heads * cfg.attention_head_dim, cfg.num_layers + cfg.num_single_layers
    stream, units = torch.arange(width), torch.arange(4 * width)
    return Kept(
        stream, stream, [torch.arange(heads)] * blocks, [units] * blocks, [units] * cfg.num_layers
    )


def most_important(cfg: FluxConfig, heads: int, measured: Importance) -> Kept:
    """What the velocity depends on most, chosen in each block for itself."""
    width = heads * cfg.attention_head_dim
    return Kept(
        top(measured.residual, width),
        top(measured.condition, width),
        [top(scores, heads) for scores in measured.heads],
        [top(scores, 4 * width) for scores in measured.units],
        [top(scores, 4 * width) for scores in measured.text_units],
    )


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the highest scores, ascending."""
    return scores.topk(count).indices.sort().values
