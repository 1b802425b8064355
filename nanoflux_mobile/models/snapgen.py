"""The SnapGen UNet (arXiv 2412.09619) and the SDXL-shaped UNets on the way to it.

Module names are those of diffusers' UNet2DConditionModel wherever it has the part, so a public
checkpoint in that naming needs few renames. The stage layout of the released model is not
published: see `snapgen_config.STUDENT` for the one chosen here.

Shapes: B batch, Z latent channels, h w latent cells, C channels, H W cells of a stage, S = H W
tokens of it, T text tokens, J text width, D token width, E time width, N heads, V key and value
heads, K head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_mobile.models.snapgen_config import STUDENT, SnapGenConfig
from nanoflux_mobile.models.snapgen_layers import (
    Embedding,
    FeedForward,
    Resample,
    ResnetBlock,
    sinusoid,
    time_states,
)
from nanoflux_mobile.models.snapgen_text import TEXT_WIDTHS, ContextProjection, join_context

__all__ = [
    "STUDENT",
    "TEXT_WIDTHS",
    "Attention",
    "Conditions",
    "ContextProjection",
    "Embedding",
    "FeedForward",
    "Resample",
    "ResnetBlock",
    "Rope",
    "SnapGen",
    "SnapGenConfig",
    "Stage",
    "Transformer",
    "TransformerBlock",
    "grid_rope",
    "join_context",
    "rotate",
    "sinusoid",
]

Rope = tuple[Tensor, Tensor]
"""Cosine and sine of every cell and frequency, each (S, K/2)."""


class Conditions(NamedTuple):
    """What every stage reads: time states (B, E), text (B, T, J), a mask (B, 1, 1, T) or None."""

    states_BE: Tensor
    text_BTJ: Tensor
    mask_BOOT: Tensor | None


def grid_rope(rows: int, columns: int, head_dim: int, device: torch.device | None = None) -> Rope:
    """Rotation tables of a grid, row by row: the first half of a head turns with the row number."""
    axis = head_dim // 2
    frequency = 10_000.0 ** (-torch.arange(0, axis, 2, device=device) / axis)
    row, column = (torch.arange(n, device=device)[:, None] * frequency for n in (rows, columns))
    grids = (row[:, None].expand(-1, columns, -1), column.expand(rows, -1, -1))
    angle_SF = torch.cat(grids, 2).flatten(0, 1)
    return angle_SF.cos(), angle_SF.sin()


def rotate(x_BSNK: Tensor, rope: Rope) -> Tensor:
    """Turn interleaved pairs (0, 1), (2, 3), ... of every head by their cell's angle."""
    cos, sin = (table[:, None].to(x_BSNK.dtype) for table in rope)
    even, odd = x_BSNK[..., 0::2], x_BSNK[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Attention(nn.Module):
    """Attention with RMS norm on queries and keys; keys and values from `source` channels."""

    def __init__(self, width: int, source: int, cfg: SnapGenConfig) -> None:
        super().__init__()
        self.head_dim = cfg.attention_head_dim
        self.heads = width // self.head_dim
        self.kv_heads = 1 if cfg.multi_query else self.heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source, self.kv_heads * self.head_dim, bias=False)
        self.to_v = nn.Linear(source, self.kv_heads * self.head_dim, bias=False)
        self.norm_q = nn.RMSNorm(self.head_dim, eps=1e-6)
        self.norm_k = nn.RMSNorm(self.head_dim, eps=1e-6)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(
        self, x_BSD: Tensor, source_BTJ: Tensor, rope: Rope | None, mask_BOOT: Tensor | None
    ) -> Tensor:
        """Same shape in and out; queries and keys turn by `rope`, `mask` is true to see."""
        q = self.norm_q(self.to_q(x_BSD).unflatten(-1, (self.heads, -1)))
        k = self.norm_k(self.to_k(source_BTJ).unflatten(-1, (self.kv_heads, -1)))
        v = self.to_v(source_BTJ).unflatten(-1, (self.kv_heads, -1))
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        q_BNSK, k_BVTK, v_BVTK = (y.transpose(1, 2) for y in (q, k, v))
        # Query heads that share keys become more queries of one head: nothing is repeated.
        shared = q_BNSK.unflatten(1, (self.kv_heads, -1)).flatten(2, 3)
        y = F.scaled_dot_product_attention(shared, k_BVTK, v_BVTK, attn_mask=mask_BOOT)
        return self.to_out[0](y.reshape(q_BNSK.shape).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Self-attention where the stage has it, text attention, feed-forward."""

    def __init__(self, width: int, self_attention: bool, cfg: SnapGenConfig) -> None:
        super().__init__()
        self.self_attention = self_attention
        if self_attention:
            self.norm1 = nn.LayerNorm(width)
            self.attn1 = Attention(width, width, cfg)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, cfg.cross_attention_dim, cfg)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, cfg.ff_mult)

    def forward(self, x_BSD: Tensor, given: Conditions, rope: Rope | None) -> Tensor:
        """Same shape in and out."""
        if self.self_attention:
            h_BSD = self.norm1(x_BSD)
            x_BSD = x_BSD + self.attn1(h_BSD, h_BSD, rope, None)
        x_BSD = x_BSD + self.attn2(self.norm2(x_BSD), given.text_BTJ, None, given.mask_BOOT)
        return x_BSD + self.ff(self.norm3(x_BSD))


class Transformer(nn.Module):
    """Transformer layers over the cells of a feature map, added to it."""

    def __init__(self, width: int, depth: int, self_attention: bool, cfg: SnapGenConfig) -> None:
        super().__init__()
        self.head_dim, self.self_attention = cfg.attention_head_dim, self_attention
        self.norm = nn.GroupNorm(cfg.norm_num_groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, self_attention, cfg) for _ in range(depth)
        )
        self.proj_out = nn.Linear(width, width)

    def forward(self, x_BCHW: Tensor, given: Conditions) -> Tensor:
        """Same shape in and out."""
        rows, columns = x_BCHW.shape[2:]
        rope = None
        if self.self_attention:
            rope = grid_rope(rows, columns, self.head_dim, x_BCHW.device)
        h_BSD = self.proj_in(self.norm(x_BCHW).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            h_BSD = block(h_BSD, given, rope)
        return x_BCHW + self.proj_out(h_BSD).transpose(1, 2).reshape(x_BCHW.shape)


class Stage(nn.Module):
    """Residual blocks at one resolution, a transformer after each of the first ones, a resampler.

    `fan_ins` are the channels that each residual block takes, `depths` the layers of each
    transformer.
    """

    def __init__(self, i: int, fan_ins: list[int], depths: list[int], cfg: SnapGenConfig) -> None:
        super().__init__()
        width, sees_itself = cfg.block_out_channels[i], cfg.self_attention[i]
        self.resnets = nn.ModuleList(ResnetBlock(cin, width, cfg) for cin in fan_ins)
        self.attentions = nn.ModuleList(
            Transformer(width, depth, sees_itself, cfg) for depth in depths if depth
        )
        self.downsamplers = nn.ModuleList()
        self.upsamplers = nn.ModuleList()

    def forward(
        self, x_BCHW: Tensor, given: Conditions, kept: list[Tensor] | None = None
    ) -> list[Tensor]:
        """What every layer makes, in order; each takes one from the end of `kept` where given."""
        made = []
        for i, resnet in enumerate(self.resnets):
            x_BCHW = x_BCHW if kept is None else torch.cat((x_BCHW, kept.pop()), 1)
            x_BCHW = resnet(x_BCHW, given.states_BE)
            if i < len(self.attentions):
                x_BCHW = self.attentions[i](x_BCHW, given)
            made.append(x_BCHW)
        for sampler in (*self.downsamplers, *self.upsamplers):
            made.append(sampler(made[-1]))
        return made


class SnapGen(nn.Module):
    """Predicts the flow-matching velocity, noise minus image, of latents."""

    def __init__(self, cfg: SnapGenConfig) -> None:
        super().__init__()
        self.cfg = cfg
        widths = cfg.block_out_channels
        self.time_embedding = Embedding(widths[0], cfg.time_embed_dim)
        if cfg.size_embeds:
            self.add_embedding = Embedding(2 * widths[0], cfg.time_embed_dim)
        if cfg.encoder_hid_dim:
            self.encoder_hid_proj = ContextProjection(cfg.encoder_hid_dim, cfg.cross_attention_dim)
        self.conv_in = nn.Conv2d(cfg.in_channels, widths[0], 3, padding=1)
        self.down_blocks, kept = _down(cfg)
        depths = [cfg.down_transformers[-1]]
        self.mid_block = Stage(len(widths) - 1, [widths[-1]] * 2, depths, cfg)
        self.up_blocks = _up(cfg, kept)
        self.conv_norm_out = nn.GroupNorm(cfg.norm_num_groups, widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(widths[0], cfg.in_channels, 3, padding=1)

    def time_states(self, t_B: Tensor, sizes_B2: Tensor | None = None) -> Tensor:
        """What residual blocks read of the time, float32 (B, E); see `snapgen_layers.time_states`.

        Args:
            t_B: times in [0, 1], 1 is noise.
            sizes_B2: height and width of the picture in pixels, for models with `size_embeds`
                and no others; else ValueError.
        """
        if (sizes_B2 is not None) != self.cfg.size_embeds:
            raise ValueError(f"sizes_B2 goes with size_embeds, which is {self.cfg.size_embeds}")
        sizes = None if sizes_B2 is None else (self.add_embedding, sizes_B2)
        return time_states(self.time_embedding, t_B, sizes)

    def forward(
        self,
        x_BZhw: Tensor,
        text_BTJ: Tensor,
        states_BE: Tensor,
        mask_BT: Tensor | None = None,
    ) -> Tensor:
        """Latents, text states and time states -> velocity (B, Z, h, w).

        Tokens where `mask_BT` is false are as good as absent; h and w are multiples of
        `cfg.factor`.
        """
        if self.cfg.encoder_hid_dim:
            text_BTJ = self.encoder_hid_proj(text_BTJ)
        mask_BOOT = None if mask_BT is None else mask_BT[:, None, None]
        given = Conditions(states_BE.to(x_BZhw.dtype), text_BTJ, mask_BOOT)
        kept = [self.conv_in(x_BZhw)]
        for stage in self.down_blocks:
            kept += stage(kept[-1], given)
        x = self.mid_block(kept[-1], given)[-1]
        for stage in self.up_blocks:
            x = stage(x, given, kept)[-1]
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def _down(cfg: SnapGenConfig) -> tuple[nn.ModuleList, list[int]]:
    """The stages on the way down, and the channels of all they keep for the way up."""
    stages, kept = nn.ModuleList(), [cfg.block_out_channels[0]]
    for i, width in enumerate(cfg.block_out_channels):
        layers = cfg.layers_per_block[i]
        fan_ins = [kept[-1]] + [width] * (layers - 1)
        stage = Stage(i, fan_ins, [cfg.down_transformers[i]] * layers, cfg)
        kept += [width] * layers
        if i < len(cfg.block_out_channels) - 1:
            stage.downsamplers.append(Resample(width, cfg.down_conv, up=False))
            kept.append(width)
        stages.append(stage)
    return stages, kept


def _up(cfg: SnapGenConfig, kept: list[int]) -> nn.ModuleList:
    """The stages on the way up, the lowest resolution first; takes from the end of `kept`."""
    stages, width = nn.ModuleList(), cfg.block_out_channels[-1]
    for i in reversed(range(len(cfg.block_out_channels))):
        fan_ins = []
        for _ in range(cfg.layers_per_block[i] + 1):
            fan_ins.append(width + kept.pop())
            width = cfg.block_out_channels[i]
        stage = Stage(i, fan_ins, [cfg.up_transformers[i]] * len(fan_ins), cfg)
        if i:
            stage.upsamplers.append(Resample(width, cfg.up_conv, up=True))
        stages.append(stage)
    return stages
