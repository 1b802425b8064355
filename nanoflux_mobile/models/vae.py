"""The FLUX / SD3 image autoencoder: 8x smaller latents, 16 channels in the released models.

Module names are those of diffusers' AutoencoderKL, so its checkpoints load without a key map.

Shapes: B batch, C channels, Z latent channels, H W pixels, h w latent cells (H/8, W/8).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of an autoencoder, by the names of diffusers' vae/config.json."""

    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int
    scaling_factor: float
    shift_factor: float
    mid_block_add_attention: bool
    use_quant_conv: bool
    use_post_quant_conv: bool

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with norm and SiLU before each, and a shortcut."""

    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, cin, eps=1e-6)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, cout, eps=1e-6)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, cin, H, W) -> (B, cout, H, W)."""
        y = self.conv1(F.silu(self.norm1(x_BCHW)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x_BCHW if self.conv_shortcut is None else self.conv_shortcut(x_BCHW))


class PixelAttention(nn.Module):
    """Single-head self-attention over all cells of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Same shape in and out."""
        x_BSC = self.group_norm(x_BCHW).flatten(2).transpose(1, 2)
        q, k, v = self.to_q(x_BSC), self.to_k(x_BSC), self.to_v(x_BSC)
        weights = torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, -1)
        y_BSC = self.to_out[0](weights @ v)
        return x_BCHW + y_BSC.transpose(1, 2).reshape(x_BCHW.shape)


class MidBlock(nn.Module):
    """The lowest resolution: resnet, attention where the config has it, resnet."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([PixelAttention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Same shape in and out."""
        x_BCHW = self.resnets[0](x_BCHW)
        for attention in self.attentions:
            x_BCHW = attention(x_BCHW)
        return self.resnets[1](x_BCHW)


class Downsample(nn.Module):
    """Half the size by a strided convolution, padded on the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size by repeating pixels, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """Resnets at one resolution; a resampler closes every stage but the last."""

    def __init__(self, cin: int, cout: int, depth: int, groups: int, resample: str) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(cin if i == 0 else cout, cout, groups) for i in range(depth)
        )
        if resample == "down":
            self.downsamplers = nn.ModuleList([Downsample(cout)])
        elif resample == "up":
            self.upsamplers = nn.ModuleList([Upsample(cout)])
        self.resample = resample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, cin, H, W) -> (B, cout, H', W') with H' half, equal or double."""
        for block in self.resnets:
            x_BCHW = block(x_BCHW)
        if self.resample == "down":
            return self.downsamplers[0](x_BCHW)
        return self.upsamplers[0](x_BCHW) if self.resample == "up" else x_BCHW


class Encoder(nn.Module):
    """Pixels to the mean and log-variance of the latent posterior."""

    def __init__(self, cfg: VaeConfig) -> None:
        super().__init__()
        widths, groups = cfg.block_out_channels, cfg.norm_num_groups
        self.conv_in = nn.Conv2d(cfg.in_channels, widths[0], 3, padding=1)
        last = len(widths) - 1
        self.down_blocks = nn.ModuleList(
            Stage(
                widths[max(i - 1, 0)], w, cfg.layers_per_block, groups, "down" if i < last else ""
            )
            for i, w in enumerate(widths)
        )
        self.mid_block = MidBlock(widths[-1], groups, cfg.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * cfg.latent_channels, 3, padding=1)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 2Z, h, w)."""
        x = self.conv_in(pixels_BCHW)
        for stage in self.down_blocks:
            x = stage(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents, unscaled, back to pixels."""

    def __init__(self, cfg: VaeConfig) -> None:
        super().__init__()
        widths, groups = cfg.block_out_channels[::-1], cfg.norm_num_groups
        self.conv_in = nn.Conv2d(cfg.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups, cfg.mid_block_add_attention)
        depth, last = cfg.layers_per_block + 1, len(widths) - 1
        self.up_blocks = nn.ModuleList(
            Stage(widths[max(i - 1, 0)], w, depth, groups, "up" if i < last else "")
            for i, w in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], cfg.out_channels, 3, padding=1)

    def forward(self, z_BZhw: Tensor) -> Tensor:
        """(B, Z, h, w) -> (B, 3, H, W), about [-1, 1]."""
        x = self.mid_block(self.conv_in(z_BZhw))
        for stage in self.up_blocks:
            x = stage(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Autoencoder(nn.Module):
    """AutoencoderKL of diffusers; `encode` and `decode` work on scaled latents.

    Scaled latents are what the denoiser sees: (z - shift_factor) * scaling_factor.
    """

    def __init__(self, cfg: VaeConfig) -> None:
        super().__init__()
        z = cfg.latent_channels
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1) if cfg.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(z, z, 1) if cfg.use_post_quant_conv else None

    def posterior(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the unscaled latents, each (B, Z, h, w)."""
        moments = self.encoder(pixels_BCHW)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = moments.chunk(2, 1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> scaled mean latents (B, Z, h, w)."""
        return (self.posterior(pixels_BCHW)[0] - self.cfg.shift_factor) * self.cfg.scaling_factor

    def decode(self, latents_BZhw: Tensor) -> Tensor:
        """Scaled latents (B, Z, h, w) -> pixels (B, 3, H, W), about [-1, 1]."""
        z = latents_BZhw / self.cfg.scaling_factor + self.cfg.shift_factor
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
