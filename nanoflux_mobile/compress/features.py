"""Cut C2 of NanoFLUX: fewer channels in every head, by SVD inside the head.

FLUX.1's heads go from 128 channels to 96, the residual stream with them. Values may be turned at
will, as the output projection turns them back, so each head keeps the leading directions of what
it gives out. Queries and keys are turned by RoPE already: of those, whole rotary pairs stay, the
ones whose frequency is nearest to what the narrower head will rotate with. The paper says SVD and
no more; both rules are our reading of it.

Shapes: H heads, K head width, R what is kept of it, D width, F hidden units.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nanoflux_mobile.compress.heads import top
from nanoflux_mobile.compress.importance import Importance
from nanoflux_mobile.compress.narrowing import Along, BlockCut, Cut, keep, narrowed
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.weights import Network

Bases = Sequence[Tensor]
"""For each block, doubles first, the directions every head keeps: orthonormal (H, K, R)."""


def narrower_axes(axes: tuple[int, ...], channels: int) -> tuple[int, ...]:
    """A RoPE split of `channels` in about the old proportions, even on every axis.

    (16, 56, 56) becomes (12, 42, 42) at 96, as the FLUX student has it here.

    Raises:
        InputError: so few or so many channels, or an odd number.
    """
    least = 2 * len(axes)
    if channels % 2 or not least <= channels <= sum(axes):
        raise InputError(
            f"heads of {sum(axes)} channels are to become {channels} wide; give an even number "
            f"from {least}"
        )
    exact = [width * channels / sum(axes) for width in axes]
    split = [max(2, 2 * math.floor(width / 2)) for width in exact]
    while sum(split) < channels:
        # The axis that lost most gets the next pair; the last of equals, so height and width go on.
        lost = [want - have for want, have in zip(exact, split, strict=True)]
        split[max(range(len(axes)), key=lambda i: (lost[i], i))] += 2
    while sum(split) > channels:
        widest = max(range(len(axes)), key=lambda i: split[i] - exact[i] if split[i] > 2 else -9e9)
        split[widest] -= 2
    return tuple(split)


def kept_pairs(old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """For each channel of the narrower head the old channel it takes, (R,), axis by axis.

    Pair j of n rotates at theta^(-j/n): each new pair takes the unused old one of nearest j/n.
    """
    chosen, start = [], 0
    for wide, narrow in zip(old, new, strict=True):
        free = list(range(wide // 2))
        for j in range(narrow // 2):
            nearest = min(free, key=lambda i: abs(i / (wide // 2) - j / (narrow // 2)))
            free.remove(nearest)
            chosen.append(start + nearest)
        start += wide // 2
    pairs = torch.tensor(chosen)
    return torch.stack((2 * pairs, 2 * pairs + 1), 1).flatten()


def cut_features(
    network: Network[NanoFlux], channels: int, bases: Bases, measured: Importance | None = None
) -> Network[NanoFlux]:
    """The network with heads of `channels` channels.

    Args:
        network: the wider one.
        channels: R, even and below the present head width.
        bases: what each head's values keep; see `value_bases`.
        measured: chooses residual channels and hidden units; without it, the first ones stay.
    """
    old = network.skeleton.cfg
    axes = narrower_axes(old.axes_dims_rope, channels)
    cfg = dataclasses.replace(old, attention_head_dim=channels, axes_dims_rope=axes)
    width = cfg.width
    pairs = kept_pairs(old.axes_dims_rope, axes)
    # Normed queries and keys have as many terms in their product as channels, and attention divides
    # by the root of that: what is lost is made up for, half in either.
    gain = (old.attention_head_dim / channels) ** 0.25

    def units(scores: Sequence[Tensor] | None, i: int) -> Along:
        return keep(top(scores[i], 4 * width) if scores else torch.arange(4 * width))

    def text_units(i: int) -> Along:
        return units(measured.text_units if measured else None, i)

    blocks = [
        BlockCut(
            queries=_inside_heads(pairs, old),
            values=_turned(bases[i]),
            head=lambda x, axis: gain * x.index_select(axis, pairs),
            units=units(measured.units if measured else None, i),
            text_units=text_units(i) if i < old.num_layers else None,
        )
        for i in range(old.num_layers + old.num_single_layers)
    ]
    stream = top(measured.residual, width) if measured else torch.arange(width)
    condition = top(measured.condition, width) if measured else torch.arange(width)
    cut = Cut(keep(stream), keep(condition), keep(torch.arange(width)), blocks)
    return narrowed(network, cfg, cut)


def _inside_heads(index: Tensor, cfg: FluxConfig) -> Along:
    starts = torch.arange(cfg.num_attention_heads)[:, None] * cfg.attention_head_dim
    return keep((starts + index).flatten())


def _turned(basis_HKR: Tensor) -> Along:
    """Values in the kept directions, along the axis that holds H K of them."""

    def turn(x: Tensor, axis: int) -> Tensor:
        heads = x.movedim(axis, -1).unflatten(-1, basis_HKR.shape[:2])
        return torch.einsum("...hk,hkr->...hr", heads, basis_HKR).flatten(-2).movedim(-1, axis)

    return turn


def value_bases(grams: Sequence[Tensor], channels: int) -> Bases:
    """The leading directions of what every head gives out, from (H, K, K) second moments."""
    return [torch.linalg.eigh(gram.double())[1][..., -channels:].flip(-1).float() for gram in grams]


def first_channels(cfg: FluxConfig, channels: int) -> Bases:
    """No turning at all: the first channels of every head."""
    eye = torch.eye(cfg.attention_head_dim)[:, :channels]
    blocks = cfg.num_layers + cfg.num_single_layers
    return [eye.expand(cfg.num_attention_heads, -1, -1)] * blocks
