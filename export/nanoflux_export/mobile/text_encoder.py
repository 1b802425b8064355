"""The T5 encoder in mobile form, in pieces that convert alone.

An encoder too large to convert at once is MobileEmbedding, then one BiasedBlock per layer, then
MobileEnding. Blocks differ in their weights only, so one converted block serves as the stamp for
all; the position bias in each of them is the same constant.

Shapes: T tokens, D model width, P width of the states given out, H heads, K head width; every
activation is (1, D, 1, T).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.rewrites.channel_norm import ChannelRMSNorm
from nanoflux_export.rewrites.conv1x1 import conv1x1
from nanoflux_export.rewrites.head_attention import HeadAttention, split_heads
from nanoflux_export.rewrites.scale_folding import LinearPath
from nanoflux_mobile.models.t5 import (
    Block,
    GatedFeedForward,
    Projection,
    ReluFeedForward,
    RMSNorm,
    T5Encoder,
)


def _norm(norm: RMSNorm) -> ChannelRMSNorm:
    return ChannelRMSNorm(norm.weight, norm.eps)


class MobileEmbedding(nn.Module):
    """Token ids to the rows of a table, as columns; the table is shared with its source."""

    def __init__(self, source: nn.Embedding) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(source.weight.detach())

    def forward(self, token_ids: Tensor) -> Tensor:
        """int32 (1, T) -> (1, D, 1, T)."""
        return self.table(token_ids).transpose(1, 2).unsqueeze(2)


class MobileReluFeedForward(nn.Module):
    """The v1.0 feed-forward."""

    linear_paths = (LinearPath(("wi",), ("wo",)),)

    def __init__(self, source: ReluFeedForward) -> None:
        super().__init__()
        self.wi, self.wo = conv1x1(source.wi), conv1x1(source.wo)

    def forward(self, x: Tensor) -> Tensor:
        """(1, D, 1, T) in and out."""
        return self.wo(F.relu(self.wi(x)))


class MobileGatedFeedForward(nn.Module):
    """The v1.1 feed-forward."""

    linear_paths = (LinearPath(("wi_1",), ("wo",)),)

    def __init__(self, source: GatedFeedForward) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = conv1x1(source.wi_0), conv1x1(source.wi_1)
        self.wo = conv1x1(source.wo)

    def forward(self, x: Tensor) -> Tensor:
        """(1, D, 1, T) in and out."""
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class MobileBlock(nn.Module):
    """One encoder layer."""

    linear_paths = (LinearPath(("v",), ("o",)),)

    def __init__(self, source: Block) -> None:
        super().__init__()
        attention, feed = source.layer
        inner = attention.SelfAttention
        self.heads, self.attend = inner.heads, HeadAttention()
        self.q, self.k, self.v, self.o = (conv1x1(m) for m in (inner.q, inner.k, inner.v, inner.o))
        self.attention_norm, self.feed_norm = _norm(attention.layer_norm), _norm(feed.layer_norm)
        dense = feed.DenseReluDense
        gated = isinstance(dense, GatedFeedForward)
        self.feed = MobileGatedFeedForward(dense) if gated else MobileReluFeedForward(dense)

    def forward(self, x_ODOT: Tensor, bias_OHTT: Tensor) -> Tensor:
        """(1, D, 1, T) in and out."""
        h = self.attention_norm(x_ODOT)
        q, k, v = (split_heads(f(h), self.heads) for f in (self.q, self.k, self.v))
        x_ODOT = x_ODOT + self.o(self.attend(q, k, v, bias_OHTT))
        return x_ODOT + self.feed(self.feed_norm(x_ODOT))


class BiasedBlock(nn.Module):
    """One encoder layer with the position bias (1, H, T, T) as a constant in it."""

    def __init__(self, source: Block, bias_OHTT: Tensor) -> None:
        super().__init__()
        self.block = MobileBlock(source)
        self.bias = nn.Parameter(bias_OHTT.detach(), requires_grad=False)

    def forward(self, x_ODOT: Tensor) -> Tensor:
        """(1, D, 1, T) in and out."""
        return self.block(x_ODOT, self.bias)


class MobileProjection(nn.Module):
    """Two 1x1 convolutions around a GELU."""

    def __init__(self, source: Projection) -> None:
        super().__init__()
        self.fc1, self.fc2 = conv1x1(source.fc1), conv1x1(source.fc2)

    def forward(self, x_ODOT: Tensor) -> Tensor:
        """(1, D, 1, T) -> (1, P, 1, T)."""
        return self.fc2(F.gelu(self.fc1(x_ODOT), approximate="tanh"))


class MobileEnding(nn.Module):
    """The last norm, and the projection of an encoder that has one."""

    def __init__(self, norm: RMSNorm, projection: Projection | None) -> None:
        super().__init__()
        self.norm = _norm(norm)
        self.projection = None if projection is None else MobileProjection(projection)

    def forward(self, x_ODOT: Tensor) -> Tensor:
        """(1, D, 1, T) -> (1, P, 1, T)."""
        h = self.norm(x_ODOT)
        return h if self.projection is None else self.projection(h)


class MobileTextEncoder(nn.Module):
    """Token ids (1, T) to text states (1, P, 1, T); the position bias is a constant."""

    def __init__(self, source: T5Encoder, tokens: int) -> None:
        super().__init__()
        self.embedding = MobileEmbedding(source.shared)
        bias = source.position_bias(tokens)[None].detach().clone()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.blocks = nn.ModuleList(MobileBlock(block) for block in source.encoder.block)
        self.ending = MobileEnding(source.encoder.final_layer_norm, source.projection)

    def forward(self, token_ids: Tensor) -> Tensor:
        """int32 (1, T) -> (1, P, 1, T)."""
        x_ODOT = self.embedding(token_ids)
        for block in self.blocks:
            x_ODOT = block(x_ODOT, self.bias)
        return self.ending(x_ODOT)
