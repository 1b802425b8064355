"""Layers of the FLUX transformer: rotary attention, feed-forwards, the two kinds of block.

Shapes: B batch, S image tokens, T text tokens, L = T + S, C channels in, D width, H heads, K head
width, A axes of a position, P pooled width, N modulation rows.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_mobile.models._blocks import Rows, layer_norm
from nanoflux_mobile.models.nanoflux_config import FluxConfig

Rope = tuple[Tensor, Tensor]
"""Cosine and sine of every position and frequency, each (L, K/2)."""


def rope_tables(ids_LA: Tensor, axes: tuple[int, ...], theta: float = 10_000.0) -> Rope:
    """Rotation tables for positions (L, axes): float32 cosine and sine, each (L, K/2)."""
    angles = []
    for axis, width in enumerate(axes):
        frequency = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles.append(ids_LA[:, axis, None].double() * frequency)
    angle = torch.cat(angles, 1)
    return angle.cos().float(), angle.sin().float()


def rotate(x_BHLK: Tensor, rope: Rope) -> Tensor:
    """Rotate interleaved pairs (0, 1), (2, 3), ... of every head by their position's angle."""
    cos, sin = rope
    even, odd = x_BHLK[..., 0::2], x_BHLK[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def sinusoid(t_B: Tensor, channels: int = 256) -> Tensor:
    """Cosines then sines of 1000 t at geometric frequencies, (B, channels)."""
    half = channels // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=t_B.device) / half)
    angle = 1000.0 * t_B.float()[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), 1)


def modulate(x_BLD: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    """Normalise, scale by 1 + scale, shift."""
    return layer_norm(x_BLD) * (1 + scale_BD[:, None]) + shift_BD[:, None]


class Embedder(nn.Module):
    """Two linears around SiLU."""

    def __init__(self, cin: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(cin, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x_BC: Tensor) -> Tensor:
        """(B, cin) -> (B, D)."""
        return self.linear_2(F.silu(self.linear_1(x_BC)))


class Conditioning(nn.Module):
    """The vector AdaLN reads: time, pooled text and, in guidance-distilled models, guidance."""

    def __init__(self, cfg: FluxConfig) -> None:
        super().__init__()
        self.timestep_embedder = Embedder(256, cfg.width)
        self.text_embedder = Embedder(cfg.pooled_projection_dim, cfg.width)
        if cfg.guidance_embeds:
            self.guidance_embedder = Embedder(256, cfg.width)

    def forward(self, t_B: Tensor, pooled_BP: Tensor, guidance_B: Tensor | None) -> Tensor:
        """(B,) times in [0, 1] and (B, P) -> (B, D)."""
        c_BD = self.timestep_embedder(sinusoid(t_B)) + self.text_embedder(pooled_BP)
        return c_BD if guidance_B is None else c_BD + self.guidance_embedder(sinusoid(guidance_B))


class Attention(nn.Module):
    """Projections and per-head RMS norms of one block; text projections in double blocks only."""

    def __init__(self, cfg: FluxConfig, double: bool) -> None:
        super().__init__()
        width, head = cfg.width, cfg.attention_head_dim
        self.heads = cfg.num_attention_heads
        self.norm_q = nn.RMSNorm(head, eps=1e-6)
        self.norm_k = nn.RMSNorm(head, eps=1e-6)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        if double:
            self.norm_added_q = nn.RMSNorm(head, eps=1e-6)
            self.norm_added_k = nn.RMSNorm(head, eps=1e-6)
            self.add_q_proj = nn.Linear(width, width)
            self.add_k_proj = nn.Linear(width, width)
            self.add_v_proj = nn.Linear(width, width)
            self.to_out = nn.ModuleList([nn.Linear(width, width)])
            self.to_add_out = nn.Linear(width, width)

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def qkv(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the main stream, each (B, H, L, K), q and k normed."""
        q, k, v = (self._heads(f(x_BLD)) for f in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v

    def text_qkv(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same of the text stream."""
        projections = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        q, k, v = (self._heads(f(x_BTD)) for f in projections)
        return self.norm_added_q(q), self.norm_added_k(k), v


def attend(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, rope: Rope) -> Tensor:
    """Rotary attention over all tokens, heads joined again: (B, L, D)."""
    y = F.scaled_dot_product_attention(rotate(q_BHLK, rope), rotate(k_BHLK, rope), v_BHLK)
    return y.transpose(1, 2).flatten(2)


class Projection(nn.Module):
    """The first linear of a feed-forward, under the name diffusers gives it."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.proj = nn.Linear(cin, cout)

    def forward(self, x: Tensor) -> Tensor:
        """Linear, then GELU (tanh form)."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Four times the width and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [Projection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)]
        self.net = nn.ModuleList(layers)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Same shape in and out."""
        return self.net[2](self.net[0](x_BLD))


class DoubleBlock(nn.Module):
    """Image and text keep their own weights and meet in one attention."""

    def __init__(self, cfg: FluxConfig) -> None:
        super().__init__()
        if not cfg.static_steps:
            self.norm1 = Rows(cfg.width, 6)
            self.norm1_context = Rows(cfg.width, 6)
        self.attn = Attention(cfg, double=True)
        self.ff = FeedForward(cfg.width)
        self.ff_context = FeedForward(cfg.width)

    def rows(self, c_BD: Tensor) -> Tensor:
        """(B, 12, D): image shift, scale, gate of attention, then of the MLP; text likewise."""
        return torch.cat((self.norm1(c_BD), self.norm1_context(c_BD)), 1)

    def forward(
        self, x_BSD: Tensor, y_BTD: Tensor, rows_BND: Tensor, rope: Rope
    ) -> tuple[Tensor, Tensor]:
        """Image and text tokens, each in and out."""
        m = rows_BND.unbind(1)
        image = self.attn.qkv(modulate(x_BSD, m[0], m[1]))
        text = self.attn.text_qkv(modulate(y_BTD, m[6], m[7]))
        q, k, v = (torch.cat(pair, 2) for pair in zip(text, image, strict=True))
        joint = attend(q, k, v, rope)
        length = y_BTD.shape[1]
        x_BSD = x_BSD + m[2][:, None] * self.attn.to_out[0](joint[:, length:])
        y_BTD = y_BTD + m[8][:, None] * self.attn.to_add_out(joint[:, :length])
        x_BSD = x_BSD + m[5][:, None] * self.ff(modulate(x_BSD, m[3], m[4]))
        y_BTD = y_BTD + m[11][:, None] * self.ff_context(modulate(y_BTD, m[9], m[10]))
        return x_BSD, y_BTD


class SingleBlock(nn.Module):
    """Text and image as one sequence; attention and MLP side by side."""

    def __init__(self, cfg: FluxConfig) -> None:
        super().__init__()
        if not cfg.static_steps:
            self.norm = Rows(cfg.width, 3)
        self.attn = Attention(cfg, double=False)
        self.proj_mlp = nn.Linear(cfg.width, 4 * cfg.width)
        self.proj_out = nn.Linear(5 * cfg.width, cfg.width)

    def rows(self, c_BD: Tensor) -> Tensor:
        """(B, 3, D): shift, scale, gate."""
        return self.norm(c_BD)

    def forward(self, x_BLD: Tensor, rows_BND: Tensor, rope: Rope) -> Tensor:
        """Same shape in and out."""
        shift, scale, gate = rows_BND.unbind(1)
        h_BLD = modulate(x_BLD, shift, scale)
        mlp = F.gelu(self.proj_mlp(h_BLD), approximate="tanh")
        joint = torch.cat((attend(*self.attn.qkv(h_BLD), rope), mlp), 2)
        return x_BLD + gate[:, None] * self.proj_out(joint)
