"""The CLIP text tower in mobile form, whole and in pieces that convert alone.

A tower's states are MobileClipEmbedding, then one MaskedClipLayer per layer but the last; layers
differ in their weights only, so one converted layer serves as the stamp for all. JoinedStates lays
the states of several towers side by side.

Shapes: T tokens, D model width, P width of the pooled state, V vocabulary; every activation is
(1, D, 1, T).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.mobile.text_encoder import MobileEmbedding
from nanoflux_export.rewrites.channel_norm import ChannelLayerNorm
from nanoflux_export.rewrites.conv1x1 import conv1x1
from nanoflux_export.rewrites.head_attention import HeadAttention, split_heads
from nanoflux_export.rewrites.scale_folding import LinearPath
from nanoflux_mobile.models.clip import ClipConfig, ClipText, Embeddings, FeedForward, Layer

UNSEEN = -1e4
"""What the mask adds to a score: softmax gives 0 for it, and unlike infinity it fits any format."""


def _fixed(constant: Tensor) -> nn.Parameter:
    return nn.Parameter(constant.detach().contiguous(), requires_grad=False)


class MobileLayerNorm(nn.Module):
    """Layer norm over the channels of (1, C, 1, T), with weight and bias."""

    def __init__(self, source: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = ChannelLayerNorm(source.eps)
        self.weight = _fixed(source.weight[None, :, None, None])
        self.bias = _fixed(source.bias[None, :, None, None])

    def forward(self, x_ODOT: Tensor) -> Tensor:
        """Same shape in and out."""
        return self.norm(x_ODOT) * self.weight + self.bias


class MobileFeedForward(nn.Module):
    """Two 1x1 convolutions around the activation of the config."""

    def __init__(self, source: FeedForward) -> None:
        super().__init__()
        self.fc1, self.fc2 = conv1x1(source.fc1), conv1x1(source.fc2)
        self.quick = source.quick

    def forward(self, x_ODOT: Tensor) -> Tensor:
        """Same shape in and out."""
        h = self.fc1(x_ODOT)
        return self.fc2(h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


class MobileClipLayer(nn.Module):
    """Pre-norm causal attention and feed-forward."""

    linear_paths = (LinearPath(("v",), ("out",)),)

    def __init__(self, source: Layer) -> None:
        super().__init__()
        inner = source.self_attn
        self.heads = inner.heads
        scale = (inner.q_proj.out_features // inner.heads) ** -0.5
        self.q = conv1x1(inner.q_proj, scale=scale)
        self.k, self.v = conv1x1(inner.k_proj), conv1x1(inner.v_proj)
        self.out = conv1x1(inner.out_proj)
        self.attend = HeadAttention()
        self.attention_norm = MobileLayerNorm(source.layer_norm1)
        self.feed_norm = MobileLayerNorm(source.layer_norm2)
        self.feed = MobileFeedForward(source.mlp)

    def forward(self, x_ODOT: Tensor, mask_OHTT: Tensor) -> Tensor:
        """(1, D, 1, T) in and out."""
        h = self.attention_norm(x_ODOT)
        q, k, v = (split_heads(f(h), self.heads) for f in (self.q, self.k, self.v))
        x_ODOT = x_ODOT + self.out(self.attend(q, k, v, mask_OHTT))
        return x_ODOT + self.feed(self.feed_norm(x_ODOT))


def causal_mask(tokens: int, heads: int) -> nn.Parameter:
    """What scores get so that no token sees a later one, (1, H, T, T); one for each head, as GPUs
    misread one for all of them (`head_attention`)."""
    return _fixed(torch.full((tokens, tokens), UNSEEN).triu(1).repeat(1, heads, 1, 1))


class MaskedClipLayer(nn.Module):
    """One layer with the causal mask as a constant in it."""

    def __init__(self, source: Layer, tokens: int) -> None:
        super().__init__()
        self.layer = MobileClipLayer(source)
        self.mask = causal_mask(tokens, self.layer.heads)

    def forward(self, x_ODOT: Tensor) -> Tensor:
        """(1, D, 1, T) in and out."""
        return self.layer(x_ODOT, self.mask)


class MobileClipEmbedding(nn.Module):
    """Token ids to the sum of a token's and a position's row, as columns."""

    def __init__(self, source: Embeddings, tokens: int) -> None:
        super().__init__()
        self.tokens = MobileEmbedding(source.token_embedding)
        self.position = _fixed(source.position_embedding.weight[:tokens].T[None, :, None])

    def forward(self, token_ids: Tensor) -> Tensor:
        """int32 (1, T) -> (1, D, 1, T)."""
        return self.tokens(token_ids) + self.position


class JoinedStates(nn.Module):
    """States of towers side by side in the channels, zeros between and behind them.

    `margins` counts the channels of zeros before the first tower and after each.
    """

    def __init__(self, margins: tuple[int, ...], tokens: int) -> None:
        super().__init__()
        self.margins = margins
        self.zeros = nn.ParameterList(
            _fixed(torch.zeros(1, count, 1, tokens)) for count in margins if count
        )

    def forward(self, *states: Tensor) -> Tensor:
        """One (1, D, 1, T) per tower -> (1, all channels, 1, T)."""
        first, *others = self.margins
        zeros = iter(self.zeros)
        row = [next(zeros)] if first else []
        for x_ODOT, margin in zip(states, others, strict=True):
            row += [x_ODOT, next(zeros)] if margin else [x_ODOT]
        return torch.cat(row, 1)


class FirstEnd(nn.Module):
    """Token ids to 1 where the first end-of-text token stands and 0 elsewhere.

    A table of flags instead of a comparison: identities of 49,408 tokens do not survive half
    precision, and GPU delegates compare no integers.
    """

    def __init__(self, cfg: ClipConfig, tokens: int) -> None:
        super().__init__()
        # By ClipText's rule the legacy end is the highest id there is.
        end = cfg.vocab_size - 1 if cfg.eos_token_id == 2 else cfg.eos_token_id
        flags_VO = F.one_hot(torch.tensor(end), cfg.vocab_size).float()[:, None]
        self.flags = MobileEmbedding(nn.Embedding.from_pretrained(flags_VO))
        self.earlier = _fixed(torch.ones(tokens, tokens).triu(1)[None, None])

    def forward(self, token_ids: Tensor) -> Tensor:
        """int32 (1, T) -> (1, 1, 1, T)."""
        ends_OOOT = self.flags(token_ids)
        before_OOOT = (ends_OOOT.transpose(2, 3) * self.earlier).sum(2, keepdim=True)
        return ends_OOOT * F.relu(1.0 - before_OOOT)


class MobileClipPool(nn.Module):
    """The last layer's states to the pooled state: norm, the end token's column, projection."""

    def __init__(self, source: ClipText, tokens: int) -> None:
        super().__init__()
        self.norm = MobileLayerNorm(source.text_model.final_layer_norm)
        self.first_end = FirstEnd(source.cfg, tokens)
        projection = source.text_projection
        self.projection = None if projection is None else conv1x1(projection)

    def forward(self, x_ODOT: Tensor, token_ids: Tensor) -> Tensor:
        """(1, D, 1, T) and int32 (1, T) -> (1, P, 1, 1)."""
        pooled = (self.norm(x_ODOT) * self.first_end(token_ids)).sum(3, keepdim=True)
        return pooled if self.projection is None else self.projection(pooled)


class MobileClipStates(nn.Module):
    """Token ids (1, T) to token states (1, D, 1, T), those of the layer before the last."""

    def __init__(self, source: ClipText, tokens: int) -> None:
        super().__init__()
        self.embedding = MobileClipEmbedding(source.text_model.embeddings, tokens)
        self.blocks = nn.ModuleList(map(MobileClipLayer, source.text_model.encoder.layers[:-1]))
        self.mask = causal_mask(tokens, self.blocks[0].heads)

    def forward(self, token_ids: Tensor) -> Tensor:
        """int32 (1, T) -> (1, D, 1, T)."""
        x_ODOT = self.embedding(token_ids)
        for block in self.blocks:
            x_ODOT = block(x_ODOT, self.mask)
        return x_ODOT


class MobileClip(nn.Module):
    """Token ids (1, T) to token states (1, D, 1, T) and the pooled state (1, P, 1, 1).

    Each sentence must hold its end token, as a tokenizer writes it.
    """

    def __init__(self, source: ClipText, tokens: int) -> None:
        super().__init__()
        self.states = MobileClipStates(source, tokens)
        self.last = MobileClipLayer(source.text_model.encoder.layers[-1])
        self.pool = MobileClipPool(source, tokens)

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """int32 (1, T) -> (1, D, 1, T) and (1, P, 1, 1)."""
        x_ODOT = self.states(token_ids)
        return x_ODOT, self.pool(self.last(x_ODOT, self.states.mask), token_ids)
