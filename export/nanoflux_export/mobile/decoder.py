"""The image decoder in mobile form: convolutions, rank-4 norms, attention without a transpose."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from nanoflux_export.rewrites.conv1x1 import conv1x1
from nanoflux_export.rewrites.group_norm import RankFourGroupNorm, replace_group_norms
from nanoflux_export.rewrites.head_attention import HeadAttention, split_heads
from nanoflux_export.rewrites.scale_folding import LinearPath
from nanoflux_mobile.models.vae import Autoencoder, PixelAttention


class MobilePixelAttention(nn.Module):
    """Single-head attention over all cells, as 1x1 convolutions and two matmuls."""

    linear_paths = (LinearPath(("v",), ("out",)),)

    def __init__(self, source: PixelAttention) -> None:
        super().__init__()
        self.norm = RankFourGroupNorm(source.group_norm)
        self.q = conv1x1(source.to_q, scale=source.to_q.out_features**-0.5)
        self.k, self.v = conv1x1(source.to_k), conv1x1(source.to_v)
        self.out = conv1x1(source.to_out[0])
        self.attend = HeadAttention()

    def forward(self, x_OCHW: Tensor) -> Tensor:
        """(1, C, H, W) in and out."""
        _, channels, height, width = x_OCHW.shape
        h = self.norm(x_OCHW)
        # Convolutions see the picture and only attention a row of cells: LiteRT's converter makes
        # a batched matmul of the wrong rank from a convolution over a single row.
        rows = (f(h).reshape(1, channels, 1, height * width) for f in (self.q, self.k, self.v))
        q, k, v = (split_heads(row, 1) for row in rows)
        joined = self.attend(q, k, v).reshape(1, channels, height, width)
        return x_OCHW + self.out(joined)


class MobileDecoder(nn.Module):
    """Scaled latents (1, Z, h, w) to pixels (1, 3, H, W), about [-1, 1]."""

    def __init__(self, source: Autoencoder) -> None:
        super().__init__()
        cfg = source.cfg
        self.scale, self.shift = 1.0 / cfg.scaling_factor, cfg.shift_factor
        self.post_quant_conv = copy.deepcopy(source.post_quant_conv)
        self.decoder = copy.deepcopy(source.decoder)
        attentions = self.decoder.mid_block.attentions
        for i, attention in enumerate(attentions):
            attentions[i] = MobilePixelAttention(attention)
        replace_group_norms(self.decoder)

    def forward(self, latents: Tensor) -> Tensor:
        """(1, Z, h, w) -> (1, 3, H, W)."""
        z = latents * self.scale + self.shift
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
