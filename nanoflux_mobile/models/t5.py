"""The T5 encoder, v1.0 (ReLU) and v1.1 (gated GELU), any size, alone or with a projection after it.

Module names are those of transformers' T5EncoderModel, so its checkpoints load without a key map;
`projection` is ours. It lets a small encoder speak to a denoiser that was taught by a wide one:
NanoFLUX's student is T5-Large and two linears up to the 4096 channels of T5-XXL. Neither the width
between them nor their activation is published; here both widths are equal and the activation is the
tanh form of GELU, as in v1.1.

Shapes: B batch, S tokens, D model width, P width of the states given out, H heads, K head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 encoder, by the names of transformers' config.json.

    `projection_width` is ours: the channels that the linears after the encoder give, 0 for none.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float
    feed_forward_proj: str
    projection_width: int = 0

    @property
    def states_width(self) -> int:
        """Channels of the states that a denoiser reads."""
        return self.projection_width or self.d_model

    def __post_init__(self) -> None:
        """Refuse an activation this encoder does not have, and a width below zero."""
        if self.projection_width < 0:
            raise ValueError(f"projection_width {self.projection_width} is below 0, which is none")
        if self.feed_forward_proj not in ("relu", "gated-gelu"):
            raise ValueError(
                f"feed_forward_proj {self.feed_forward_proj!r} is not one of relu, gated-gelu"
            )


class RMSNorm(nn.Module):
    """Scale by the root mean square of the last axis; no mean, no bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Same shape in and out."""
        return x_BSD * torch.rsqrt(x_BSD.square().mean(-1, keepdim=True) + self.eps) * self.weight


def relative_buckets(length: int, buckets: int, max_distance: int) -> Tensor:
    """Bucket of key minus query for every pair, int64 (S, S): exact near, logarithmic far."""
    places = torch.arange(length)
    distance = places[None, :] - places[:, None]
    half = buckets // 2
    exact = half // 2
    near = distance.abs()
    ratio = torch.log(near.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return (distance > 0).long() * half + torch.where(near < exact, near, far)


def position_bias(cfg: T5Config, table_NH: Tensor, length: int) -> Tensor:
    """The attention bias every layer shares, (H, S, S), from the first layer's table of buckets."""
    buckets = relative_buckets(
        length, cfg.relative_attention_num_buckets, cfg.relative_attention_max_distance
    )
    return table_NH[buckets.to(table_NH.device)].permute(2, 0, 1)


class SelfAttention(nn.Module):
    """Unscaled dot-product attention with a learned bias per relative distance."""

    def __init__(self, cfg: T5Config, has_relative_attention_bias: bool) -> None:
        super().__init__()
        inner = cfg.num_heads * cfg.d_kv
        self.q = nn.Linear(cfg.d_model, inner, bias=False)
        self.k = nn.Linear(cfg.d_model, inner, bias=False)
        self.v = nn.Linear(cfg.d_model, inner, bias=False)
        self.o = nn.Linear(inner, cfg.d_model, bias=False)
        if has_relative_attention_bias:
            self.relative_attention_bias = nn.Embedding(
                cfg.relative_attention_num_buckets, cfg.num_heads
            )
        self.heads = cfg.num_heads

    def forward(self, x_BSD: Tensor, bias_HSS: Tensor) -> Tensor:
        """Same shape in and out."""
        q, k, v = (
            f(x_BSD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        weights = torch.softmax(q @ k.transpose(2, 3) + bias_HSS, -1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


class ReluFeedForward(nn.Module):
    """The v1.0 form: wi, ReLU, wo."""

    def __init__(self, cfg: T5Config) -> None:
        super().__init__()
        self.wi = nn.Linear(cfg.d_model, cfg.d_ff, bias=False)
        self.wo = nn.Linear(cfg.d_ff, cfg.d_model, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Same shape in and out."""
        return self.wo(F.relu(self.wi(x_BSD)))


class GatedFeedForward(nn.Module):
    """The v1.1 form: GELU(wi_0) gates wi_1."""

    def __init__(self, cfg: T5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(cfg.d_model, cfg.d_ff, bias=False)
        self.wi_1 = nn.Linear(cfg.d_model, cfg.d_ff, bias=False)
        self.wo = nn.Linear(cfg.d_ff, cfg.d_model, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Same shape in and out."""
        return self.wo(F.gelu(self.wi_0(x_BSD), approximate="tanh") * self.wi_1(x_BSD))


class AttentionLayer(nn.Module):
    """Norm, attention, residual."""

    def __init__(self, cfg: T5Config, first: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(cfg, first)
        self.layer_norm = RMSNorm(cfg.d_model, cfg.layer_norm_epsilon)

    def forward(self, x_BSD: Tensor, bias_HSS: Tensor) -> Tensor:
        """Same shape in and out."""
        return x_BSD + self.SelfAttention(self.layer_norm(x_BSD), bias_HSS)


class FeedForwardLayer(nn.Module):
    """Norm, feed-forward, residual."""

    def __init__(self, cfg: T5Config) -> None:
        super().__init__()
        gated = cfg.feed_forward_proj == "gated-gelu"
        self.DenseReluDense = GatedFeedForward(cfg) if gated else ReluFeedForward(cfg)
        self.layer_norm = RMSNorm(cfg.d_model, cfg.layer_norm_epsilon)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Same shape in and out."""
        return x_BSD + self.DenseReluDense(self.layer_norm(x_BSD))


class Block(nn.Module):
    """One encoder layer; transformers keeps its two halves in a list called `layer`."""

    def __init__(self, cfg: T5Config, first: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(cfg, first), FeedForwardLayer(cfg)])

    def forward(self, x_BSD: Tensor, bias_HSS: Tensor) -> Tensor:
        """Same shape in and out."""
        return self.layer[1](self.layer[0](x_BSD, bias_HSS))


class Stack(nn.Module):
    """All layers and the last norm."""

    def __init__(self, cfg: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(cfg, i == 0) for i in range(cfg.num_layers))
        self.final_layer_norm = RMSNorm(cfg.d_model, cfg.layer_norm_epsilon)


class Projection(nn.Module):
    """Two linears around a GELU, from the encoder's width to the denoiser's."""

    def __init__(self, cfg: T5Config) -> None:
        super().__init__()
        width = cfg.projection_width
        self.fc1 = nn.Linear(cfg.d_model, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, P)."""
        return self.fc2(F.gelu(self.fc1(x_BSD), approximate="tanh"))


class T5Encoder(nn.Module):
    """Token ids to text states; no attention mask, as FLUX runs it, so padding is attended to."""

    def __init__(self, cfg: T5Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.shared = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.encoder = Stack(cfg)
        self.projection = Projection(cfg) if cfg.projection_width else None

    def position_bias(self, length: int) -> Tensor:
        """The attention bias every layer shares, (H, S, S)."""
        first: Any = self.encoder.block[0]
        table: Tensor = first.layer[0].SelfAttention.relative_attention_bias.weight
        return position_bias(self.cfg, table, length)

    def forward(self, ids_BS: Tensor) -> Tensor:
        """(B, S) ids below vocab_size -> (B, S, P) states; P is D where nothing projects."""
        x_BSD = self.shared(ids_BS)
        bias_HSS = self.position_bias(ids_BS.shape[1])
        for block in self.encoder.block:
            x_BSD = block(x_BSD, bias_HSS)
        x_BSD = self.encoder.final_layer_norm(x_BSD)
        return x_BSD if self.projection is None else self.projection(x_BSD)
