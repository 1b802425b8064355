"""The SnapGen UNet in mobile form.

Residual blocks see a picture, (1, C, H, W), and transformers its cells in a row, (1, C, 1, S).
Nothing of time is computed here: the step table is the model's `time_states` as a column.

Shapes: C channels, H W cells of a stage, S = H W, N heads, K head width, T text tokens, J text
width, E time width.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.rewrites.channel_norm import ChannelLayerNorm, ChannelRMSNorm
from nanoflux_export.rewrites.conv1x1 import conv1x1
from nanoflux_export.rewrites.group_norm import RankFourGroupNorm
from nanoflux_export.rewrites.half_split_rope import evens_first, evens_first_rows, rotate_halves
from nanoflux_export.rewrites.head_attention import HeadAttention, split_heads
from nanoflux_export.rewrites.scale_folding import LinearPath
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.snapgen import (
    Attention,
    ContextProjection,
    FeedForward,
    ResnetBlock,
    SnapGen,
    Stage,
    Transformer,
    TransformerBlock,
    grid_rope,
)

Tables = tuple[Tensor, Tensor]
"""Cosine and sine, each (1, 1, K/2, S)."""


def linear(weight_DC: Tensor, bias_D: Tensor | None) -> nn.Linear:
    """A linear layer with these weights."""
    with torch.device("meta"):
        layer = nn.Linear(weight_DC.shape[1], weight_DC.shape[0], bias=bias_D is not None)
    state = {"weight": weight_DC.detach()} | ({} if bias_D is None else {"bias": bias_D.detach()})
    layer.load_state_dict(state, assign=True)
    return layer


def after_norm(norm: nn.LayerNorm, layer: nn.Linear) -> nn.Linear:
    """The layer with the weights of the layer norm before it folded in."""
    shift_D = layer.weight @ norm.bias
    return linear(
        layer.weight * norm.weight, shift_D if layer.bias is None else layer.bias + shift_D
    )


class MobileAttention(nn.Module):
    """Attention of many query heads to one key and value head."""

    linear_paths = (LinearPath(("v",), ("out",)),)

    def __init__(self, source: Attention, norm: nn.LayerNorm, sees_itself: bool) -> None:
        super().__init__()
        if source.kv_heads != 1:
            raise InputError(
                f"the model has {source.kv_heads} key and value heads; phone graphs are made from "
                "multi-query students, which have one: set multi_query"
            )
        heads, width = source.heads, source.head_dim
        to_q, to_k, to_v = after_norm(norm, source.to_q), source.to_k, source.to_v
        if sees_itself:
            to_k, to_v = after_norm(norm, to_k), after_norm(norm, to_v)
        order = evens_first(width)
        self.heads, self.attend = heads, HeadAttention()
        self.q = conv1x1(to_q, evens_first_rows(heads, width))
        self.k, self.v = conv1x1(to_k, order), conv1x1(to_v)
        self.out = conv1x1(source.to_out[0])
        q_weight = source.norm_q.weight[order] * width**-0.5
        self.norm_q = ChannelRMSNorm(q_weight, source.norm_q.eps, axis=2)
        self.norm_k = ChannelRMSNorm(source.norm_k.weight[order], source.norm_k.eps, axis=2)

    def forward(self, x: Tensor, source: Tensor, tables: Tables | None) -> Tensor:
        """(1, C, 1, S) in and out; keys and values come from `source`, (1, J, 1, T)."""
        q_ONKS = self.norm_q(split_heads(self.q(x), self.heads))
        k_OOKT = self.norm_k(split_heads(self.k(source), 1))
        v_OOKT = split_heads(self.v(source), 1)
        if tables is not None:
            q_ONKS, k_OOKT = rotate_halves(q_ONKS, *tables), rotate_halves(k_OOKT, *tables)
        return self.out(self.attend(q_ONKS, k_OOKT, v_OOKT))


class MobileFeedForward(nn.Module):
    """The gated inner width and back."""

    linear_paths = (LinearPath(("value",), ("down",)),)

    def __init__(self, source: FeedForward, norm: nn.LayerNorm) -> None:
        super().__init__()
        both = after_norm(norm, source.net[0].proj)
        weights, biases = both.weight.chunk(2), both.bias.chunk(2)
        self.value, self.gate = (
            conv1x1(linear(w, b)) for w, b in zip(weights, biases, strict=True)
        )
        self.down = conv1x1(source.net[2])

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, 1, S) in and out."""
        return self.down(self.value(x) * F.gelu(self.gate(x)))


class MobileTransformerBlock(nn.Module):
    """Self-attention where the stage has it, text attention, feed-forward."""

    def __init__(self, source: TransformerBlock) -> None:
        super().__init__()
        self.norm = ChannelLayerNorm(source.norm2.eps)
        self.self_attention = (
            MobileAttention(source.attn1, source.norm1, True) if source.self_attention else None
        )
        self.text_attention = MobileAttention(source.attn2, source.norm2, False)
        self.feed = MobileFeedForward(source.ff, source.norm3)

    def forward(self, x: Tensor, text_OJOT: Tensor, tables: Tables | None) -> Tensor:
        """(1, C, 1, S) in and out."""
        if self.self_attention is not None:
            h = self.norm(x)
            x = x + self.self_attention(h, h, tables)
        x = x + self.text_attention(self.norm(x), text_OJOT, None)
        return x + self.feed(self.norm(x))


class MobileTransformer(nn.Module):
    """Transformer layers over the cells of a feature map of fixed size."""

    def __init__(self, source: Transformer, rows: int, columns: int) -> None:
        super().__init__()
        self.self_attention = source.self_attention
        if source.self_attention:
            self.cos, self.sin = (
                nn.Parameter(table_SF.T[None, None].contiguous(), requires_grad=False)
                for table_SF in grid_rope(rows, columns, source.head_dim)
            )
        self.norm = RankFourGroupNorm(source.norm)
        self.proj_in, self.proj_out = conv1x1(source.proj_in), conv1x1(source.proj_out)
        self.blocks = nn.ModuleList(MobileTransformerBlock(b) for b in source.transformer_blocks)

    def forward(self, x: Tensor, text_OJOT: Tensor) -> Tensor:
        """(1, C, H, W) in and out."""
        tables = (self.cos, self.sin) if self.self_attention else None
        h = self.proj_in(self.norm(x).reshape(1, x.shape[1], 1, -1))
        for block in self.blocks:
            h = block(h, text_OJOT, tables)
        return x + self.proj_out(h).reshape(x.shape)


class MobileResnetBlock(nn.Module):
    """Two convolutions with norm and SiLU before each, time added between, and a shortcut."""

    def __init__(self, source: ResnetBlock) -> None:
        super().__init__()
        self.time = conv1x1(source.time_emb_proj)
        self.norm1, self.norm2 = RankFourGroupNorm(source.norm1), RankFourGroupNorm(source.norm2)
        self.conv1, self.conv2 = copy.deepcopy(source.conv1), copy.deepcopy(source.conv2)
        self.shortcut = copy.deepcopy(source.conv_shortcut)

    def forward(self, x: Tensor, states_OEOO: Tensor) -> Tensor:
        """(1, cin, H, W) -> (1, cout, H, W)."""
        y = self.conv1(F.silu(self.norm1(x))) + self.time(states_OEOO)
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class MobileStage(nn.Module):
    """Residual blocks and transformers at one fixed resolution, then a resampler."""

    def __init__(self, source: Stage, rows: int, columns: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(MobileResnetBlock(block) for block in source.resnets)
        self.attentions = nn.ModuleList(
            MobileTransformer(block, rows, columns) for block in source.attentions
        )
        self.downsamplers = copy.deepcopy(source.downsamplers)
        self.upsamplers = copy.deepcopy(source.upsamplers)

    def forward(
        self, x: Tensor, text_OJOT: Tensor, states_OEOO: Tensor, kept: list[Tensor] | None = None
    ) -> list[Tensor]:
        """What every layer makes, in order; each takes one from the end of `kept` where given."""
        made = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x if kept is None else torch.cat((x, kept.pop()), 1), states_OEOO)
            if i < len(self.attentions):
                x = self.attentions[i](x, text_OJOT)
            made.append(x)
        for sampler in (*self.downsamplers, *self.upsamplers):
            made.append(sampler(made[-1]))
        return made


class MobileContextProjection(nn.Module):
    """Text states of another width, projected and normed."""

    def __init__(self, source: ContextProjection) -> None:
        super().__init__()
        self.linear = conv1x1(source.linear)
        self.norm = ChannelRMSNorm(source.norm.weight, source.norm.eps)

    def forward(self, text_OCOT: Tensor) -> Tensor:
        """(1, cin, 1, T) -> (1, J, 1, T)."""
        return self.norm(self.linear(text_OCOT))


class MobileUNet(nn.Module):
    """Velocity of latents of `rows` x `columns` cells, for one step's time states.

    Raises:
        InputError: the sides do not halve evenly for every stage, or the student has a key and
            value head for every query head.
    """

    def __init__(self, source: SnapGen, rows: int, columns: int) -> None:
        super().__init__()
        factor = source.cfg.factor
        if rows % factor or columns % factor:
            raise InputError(
                f"latents of {rows}x{columns} cells do not fit this UNet; both sides must be "
                f"multiples of {factor}"
            )
        sizes = [(rows >> i, columns >> i) for i in range(len(source.down_blocks))]
        down = zip(source.down_blocks, sizes, strict=True)
        up = zip(source.up_blocks, reversed(sizes), strict=True)
        projects = bool(source.cfg.encoder_hid_dim)
        self.context = MobileContextProjection(source.encoder_hid_proj) if projects else None
        self.conv_in, self.conv_out = copy.deepcopy(source.conv_in), copy.deepcopy(source.conv_out)
        self.down_stages = nn.ModuleList(MobileStage(stage, *size) for stage, size in down)
        self.middle = MobileStage(source.mid_block, *sizes[-1])
        self.up_stages = nn.ModuleList(MobileStage(stage, *size) for stage, size in up)
        self.norm_out = RankFourGroupNorm(source.conv_norm_out)
        self.requires_grad_(False)

    def forward(self, latents: Tensor, text_states: Tensor, step_table: Tensor) -> Tensor:
        """(1, Z, h, w), (1, J, 1, T), (1, E, 1, 1) -> velocity (1, Z, h, w)."""
        text = text_states if self.context is None else self.context(text_states)
        kept = [self.conv_in(latents)]
        for stage in self.down_stages:
            kept += stage(kept[-1], text, step_table)
        x = self.middle(kept[-1], text, step_table)[-1]
        for stage in self.up_stages:
            x = stage(x, text, step_table, kept)[-1]
        return self.conv_out(F.silu(self.norm_out(x)))
