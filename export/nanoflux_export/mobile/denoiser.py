"""The Static-LN diffusion transformer in mobile form.

Nothing of time, pooled text or modulation is computed here: this step's rows are an input.

Shapes: S image tokens, T text tokens, L = T + S, C token channels, D width, H heads, K head width,
J text width, N modulation rows; every activation is (1, channels, 1, length).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.rewrites.channel_norm import ChannelLayerNorm, ChannelRMSNorm
from nanoflux_export.rewrites.conv1x1 import conv1x1
from nanoflux_export.rewrites.half_split_rope import evens_first, evens_first_rows, rotate_halves
from nanoflux_export.rewrites.head_attention import HeadAttention, split_heads
from nanoflux_export.rewrites.scale_folding import LinearPath
from nanoflux_mobile.models.nanoflux_layers import (
    Attention,
    DoubleBlock,
    FeedForward,
    Rope,
    SingleBlock,
)

Tables = tuple[Tensor, Tensor]
"""Cosine and sine, each (1, 1, K/2, L)."""
QKV = tuple[Tensor, Tensor, Tensor]


def modulate(norm: ChannelLayerNorm, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise over channels, scale by 1 + scale, shift; rows are (1, D, 1, 1)."""
    return norm(x) * (1.0 + scale) + shift


class MobileQKV(nn.Module):
    """Queries, keys and values of one stream, per head, normed, ready for half-split RoPE."""

    def __init__(
        self, q: nn.Linear, k: nn.Linear, v: nn.Linear, norms: tuple[nn.RMSNorm, ...], heads: int
    ) -> None:
        super().__init__()
        width = q.out_features // heads
        rows, order = evens_first_rows(heads, width), evens_first(width)
        self.heads = heads
        self.q, self.k, self.v = conv1x1(q, rows), conv1x1(k, rows), conv1x1(v)
        self.norm_q = ChannelRMSNorm(norms[0].weight[order] * width**-0.5, norms[0].eps, axis=2)
        self.norm_k = ChannelRMSNorm(norms[1].weight[order], norms[1].eps, axis=2)

    def forward(self, x: Tensor) -> QKV:
        """(1, D, 1, L) -> three of (1, H, K, L); queries carry the factor 1/sqrt(K)."""
        q, k, v = (split_heads(f(x), self.heads) for f in (self.q, self.k, self.v))
        return self.norm_q(q), self.norm_k(k), v


def _main(source: Attention) -> MobileQKV:
    norms = (source.norm_q, source.norm_k)
    return MobileQKV(source.to_q, source.to_k, source.to_v, norms, source.heads)


def _added(source: Attention) -> MobileQKV:
    norms = (source.norm_added_q, source.norm_added_k)
    projections = (source.add_q_proj, source.add_k_proj, source.add_v_proj)
    return MobileQKV(*projections, norms, source.heads)


class RotaryAttention(nn.Module):
    """Attention with rotated queries and keys, (1, D, 1, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = HeadAttention()

    def forward(self, qkv: QKV, tables: Tables) -> Tensor:
        """Three of (1, H, K, L) -> (1, D, 1, L)."""
        q, k, v = qkv
        return self.attend(rotate_halves(q, *tables), rotate_halves(k, *tables), v)


class MobileFeedForward(nn.Module):
    """Four times the width and back."""

    def __init__(self, source: FeedForward) -> None:
        super().__init__()
        self.up, self.down = conv1x1(source.net[0].proj), conv1x1(source.net[2])

    def forward(self, x: Tensor) -> Tensor:
        """(1, D, 1, L) in and out."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class MobileDoubleBlock(nn.Module):
    """Image and text with their own weights, one attention."""

    linear_paths = (LinearPath(("image.v", "text.v"), ("image_out", "text_out")),)

    def __init__(self, source: DoubleBlock) -> None:
        super().__init__()
        self.image, self.text = _main(source.attn), _added(source.attn)
        self.attention = RotaryAttention()
        self.image_norm, self.text_norm = ChannelLayerNorm(), ChannelLayerNorm()
        self.image_out = conv1x1(source.attn.to_out[0])
        self.text_out = conv1x1(source.attn.to_add_out)
        self.image_feed = MobileFeedForward(source.ff)
        self.text_feed = MobileFeedForward(source.ff_context)

    def forward(
        self, x: Tensor, y: Tensor, m: tuple[Tensor, ...], tables: Tables
    ) -> tuple[Tensor, Tensor]:
        """Image (1, D, 1, S) and text (1, D, 1, T), each in and out; `m` holds twelve rows."""
        image = self.image(modulate(self.image_norm, x, m[0], m[1]))
        text = self.text(modulate(self.text_norm, y, m[6], m[7]))
        q, k, v = (torch.cat(pair, 3) for pair in zip(text, image, strict=True))
        joint = self.attention((q, k, v), tables)
        length = y.shape[3]
        x = x + m[2] * self.image_out(joint[:, :, :, length:])
        y = y + m[8] * self.text_out(joint[:, :, :, :length])
        x = x + m[5] * self.image_feed(modulate(self.image_norm, x, m[3], m[4]))
        y = y + m[11] * self.text_feed(modulate(self.text_norm, y, m[9], m[10]))
        return x, y


class MobileSingleBlock(nn.Module):
    """One sequence, attention and MLP side by side."""

    linear_paths = (LinearPath(("qkv.v",), ("out",), leading=True),)

    def __init__(self, source: SingleBlock) -> None:
        super().__init__()
        self.qkv, self.attention = _main(source.attn), RotaryAttention()
        self.norm = ChannelLayerNorm()
        self.mlp, self.out = conv1x1(source.proj_mlp), conv1x1(source.proj_out)

    def forward(self, x: Tensor, m: tuple[Tensor, ...], tables: Tables) -> Tensor:
        """(1, D, 1, L) in and out; `m` holds three rows."""
        h = modulate(self.norm, x, m[0], m[1])
        mlp = F.gelu(self.mlp(h), approximate="tanh")
        return x + m[2] * self.out(torch.cat((self.attention(self.qkv(h), tables), mlp), 1))


class Rotary(nn.Module):
    """Keeps the RoPE tables of one grid; equal tables of all blocks are stored once.

    `grid` names them: a block that runs at two resolutions has tables under two names.
    """

    def __init__(self, rope: Rope, grid: str) -> None:
        super().__init__()
        self.names = (f"cos_{grid}", f"sin_{grid}")
        for name, table in zip(self.names, rope, strict=True):
            columns = table.T[None, None].contiguous()
            self.register_parameter(name, nn.Parameter(columns, requires_grad=False))

    @property
    def tables(self) -> Tables:
        """Cosine and sine, each (1, 1, K/2, L)."""
        cos, sin = (self.get_parameter(name) for name in self.names)
        return cos, sin


class RowsStage(nn.Module):
    """The step table cut into the rows of each block, in the order the network uses them."""

    def __init__(self, counts: tuple[int, ...]) -> None:
        super().__init__()
        self.counts = counts

    def forward(self, step_table: Tensor) -> tuple[Tensor, ...]:
        """(1, D, 1, N) -> one (1, D, 1, n) per block."""
        return step_table.split(self.counts, 3)


class EmbedStage(nn.Module):
    """Latents and text states to tokens of the width."""

    def __init__(self, x_embedder: nn.Linear, context_embedder: nn.Linear) -> None:
        super().__init__()
        self.x_embedder, self.context_embedder = conv1x1(x_embedder), conv1x1(context_embedder)

    def forward(self, latents: Tensor, text_states: Tensor) -> tuple[Tensor, Tensor]:
        """(1, C, 1, S) and (1, J, 1, T) -> (1, D, 1, S) and (1, D, 1, T)."""
        return self.x_embedder(latents), self.context_embedder(text_states)


class DoubleStage(Rotary):
    """A double block with its tables."""

    def __init__(self, block: DoubleBlock, rope: Rope, grid: str) -> None:
        super().__init__(rope, grid)
        self.block = MobileDoubleBlock(block)

    def forward(self, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Image (1, D, 1, S) and text (1, D, 1, T) in and out; rows are (1, D, 1, 12)."""
        return self.block(x, y, rows.split(1, 3), self.tables)


class JoinStage(nn.Module):
    """Text and image as one sequence."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(1, D, 1, S) and (1, D, 1, T) -> (1, D, 1, L), text first."""
        return torch.cat((y, x), 3)


class SingleStage(Rotary):
    """A single block with its tables."""

    def __init__(self, block: SingleBlock, rope: Rope, grid: str) -> None:
        super().__init__(rope, grid)
        self.block = MobileSingleBlock(block)

    def forward(self, h: Tensor, rows: Tensor) -> Tensor:
        """(1, D, 1, L) in and out; rows are (1, D, 1, 3)."""
        return self.block(h, rows.split(1, 3), self.tables)


class VelocityStage(nn.Module):
    """The last norm and projection, of the image tokens alone."""

    def __init__(self, proj_out: nn.Linear, text_tokens: int) -> None:
        super().__init__()
        self.proj_out, self.text_tokens = conv1x1(proj_out), text_tokens
        self.norm = ChannelLayerNorm()

    def forward(self, h: Tensor, rows: Tensor) -> Tensor:
        """(1, D, 1, L) and (1, D, 1, 2) -> velocity (1, C, 1, S)."""
        shift, scale = rows.split(1, 3)
        return self.proj_out(modulate(self.norm, h[:, :, :, self.text_tokens :], shift, scale))
