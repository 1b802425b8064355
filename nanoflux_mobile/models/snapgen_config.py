"""Sizes of the SnapGen UNet, and those of its text-to-image student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ConvForm = Literal["dense", "separable", "expanded"]


@dataclass(frozen=True)
class SnapGenConfig:
    """Sizes of a UNet; tuples hold one entry per stage, the highest resolution first.

    in_channels: of the latents, in and out.
    block_out_channels: width of each stage; each halves the side of the one before.
    layers_per_block: residual blocks of each stage on the way down; on the way up one more.
    down_transformers, up_transformers: transformer layers after each residual block, 0 for none.
        The middle has as many as the last stage on the way down.
    self_attention: whether the transformer layers of a stage see their own cells, or text only.
    attention_head_dim: K; a stage has block_out_channels / K heads.
    multi_query: one key and value head for all query heads, or one for each.
    ff_mult: inner width of the gated feed-forwards, in widths of the stage.
    cross_attention_dim: J, of the text states that attention reads.
    encoder_hid_dim: width of the text states given, projected to J and normed; 0 if given at J.
    resnet_conv, down_conv, up_conv: dense 3x3, or 3x3 within each channel and 1x1 across them;
        expanded is separable with twice the width inside a residual block.
    norm_num_groups: of every group norm.
    time_embed_dim: E.
    size_embeds: whether time states also tell the picture's height and width.
    """

    in_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: tuple[int, ...]
    down_transformers: tuple[int, ...]
    up_transformers: tuple[int, ...]
    self_attention: tuple[bool, ...]
    attention_head_dim: int
    multi_query: bool
    ff_mult: int
    cross_attention_dim: int
    encoder_hid_dim: int
    resnet_conv: ConvForm
    down_conv: Literal["dense", "separable"]
    up_conv: Literal["dense", "separable"]
    norm_num_groups: int
    time_embed_dim: int
    size_embeds: bool

    def __post_init__(self) -> None:
        """Refuse stages that do not match up, and widths that do not split evenly."""
        widths = self.block_out_channels
        for name in ("layers_per_block", "down_transformers", "up_transformers", "self_attention"):
            entries = len(getattr(self, name))
            if entries != len(widths):
                raise ValueError(f"{name} has {entries} entries for {len(widths)} stages")
        for name in ("in_channels", "ff_mult", "cross_attention_dim", "time_embed_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it counts from 1")
        if min(self.layers_per_block, default=0) < 1:
            raise ValueError(f"layers_per_block is {self.layers_per_block}; each stage has one")
        for name, unit in (("attention_head_dim", 4), ("norm_num_groups", 1)):
            part = getattr(self, name)
            # Rotary positions split a head into rows and columns, and those into pairs.
            if part < 1 or part % unit or any(width % part for width in widths):
                raise ValueError(
                    f"{name} is {part}; it must be a multiple of {unit} that divides "
                    f"block_out_channels {widths}"
                )

    @property
    def factor(self) -> int:
        """Latent sides must be multiples of this many cells."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def text_width(self) -> int:
        """Width of the text states given."""
        return self.encoder_hid_dim or self.cross_attention_dim


STUDENT = SnapGenConfig(
    in_channels=16,
    block_out_channels=(256, 512, 896),
    layers_per_block=(1, 2, 2),
    down_transformers=(2, 2, 4),
    up_transformers=(0, 2, 4),
    self_attention=(False, False, True),
    attention_head_dim=64,
    multi_query=True,
    ff_mult=3,
    cross_attention_dim=2304,
    encoder_hid_dim=0,
    resnet_conv="expanded",
    down_conv="separable",
    up_conv="dense",
    norm_num_groups=32,
    time_embed_dim=1024,
    size_embeds=False,
)
"""SnapGen's text-to-image student at 379 M parameters.

Published: widths, separable convolutions of twice the width inside, self-attention at the lowest
stage alone, text attention from the first stage on in place of residual blocks, one key and value
head, feed-forwards of 3, both totals (379 M; 38 GMAC at 32x32 cells, 372 M at a text width of 768).
Chosen so that all three totals come out to the published digits: one residual block with two
transformer layers down and two residual blocks up in the first stage, separable convolutions where
the side is halved and dense ones where it is doubled.
"""
