"""Layers of the SnapGen UNet that know no text and no positions.

Shapes: B batch, C channels, H W cells, S tokens, D token width, E time width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_mobile.models.snapgen_config import ConvForm, SnapGenConfig


def sinusoid(x_B: Tensor, channels: int) -> Tensor:
    """Cosines then sines at geometric frequencies from 1 to 1/10000, float32 (B, channels)."""
    half = channels // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=x_B.device) / half)
    angle = x_B.float()[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), 1)


class Embedding(nn.Module):
    """Two linears around SiLU, in float32 whatever the weights are stored in."""

    def __init__(self, cin: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(cin, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x_BC: Tensor) -> Tensor:
        """(B, cin) -> (B, E)."""
        first, second = self.linear_1, self.linear_2
        with torch.autocast(x_BC.device.type, enabled=False):
            h_BE = F.silu(F.linear(x_BC, first.weight.float(), first.bias.float()))
            return F.linear(h_BE, second.weight.float(), second.bias.float())


def time_states(
    embedding: Embedding, t_B: Tensor, sizes: tuple[Embedding, Tensor] | None = None
) -> Tensor:
    """What residual blocks read of the time, SiLU applied, float32 (B, E).

    Args:
        embedding: of the time.
        t_B: times in [0, 1], 1 is noise.
        sizes: an embedding of the picture's height and width in pixels, and those, (B, 2).
    """
    states_BE = embedding(sinusoid(1000.0 * t_B.float(), embedding.linear_1.in_features))
    if sizes is not None:
        add_embedding, sizes_B2 = sizes
        channels = add_embedding.linear_1.in_features // 2
        waves_BC = sinusoid(sizes_B2.flatten(), channels).reshape(len(sizes_B2), -1)
        states_BE = states_BE + add_embedding(waves_BC)
    return F.silu(states_BE)


class SeparableConv(nn.Module):
    """3x3 within each channel, then 1x1 across channels; no bias, a norm or sum follows."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(cin, cin, 3, stride, 1, groups=cin, bias=False)
        self.pointwise = nn.Conv2d(cin, cout, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, cin, H, W) -> (B, cout, H / stride, W / stride)."""
        return self.pointwise(self.depthwise(x_BCHW))


def convolution(form: ConvForm, cin: int, cout: int, stride: int = 1) -> nn.Module:
    """A 3x3 convolution in the form asked for."""
    if form == "dense":
        return nn.Conv2d(cin, cout, 3, stride, 1)
    return SeparableConv(cin, cout, stride)


class ResnetBlock(nn.Module):
    """Two convolutions with norm and SiLU before each, time added between, and a shortcut."""

    def __init__(self, cin: int, cout: int, cfg: SnapGenConfig) -> None:
        super().__init__()
        inner = 2 * cout if cfg.resnet_conv == "expanded" else cout
        self.norm1 = nn.GroupNorm(cfg.norm_num_groups, cin, eps=1e-5)
        self.conv1 = convolution(cfg.resnet_conv, cin, inner)
        self.time_emb_proj = nn.Linear(cfg.time_embed_dim, inner)
        self.norm2 = nn.GroupNorm(cfg.norm_num_groups, inner, eps=1e-5)
        self.conv2 = convolution(cfg.resnet_conv, inner, cout)
        self.conv_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else None

    def forward(self, x_BCHW: Tensor, states_BE: Tensor) -> Tensor:
        """(B, cin, H, W) -> (B, cout, H, W)."""
        y = self.conv1(F.silu(self.norm1(x_BCHW)))
        y = y + self.time_emb_proj(states_BE)[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x_BCHW if self.conv_shortcut is None else self.conv_shortcut(x_BCHW))


class Resample(nn.Module):
    """Half the side by a strided convolution, or twice the side by repetition and a convolution."""

    def __init__(self, width: int, form: ConvForm, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = convolution(form, width, width, 1 if up else 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2) or (B, C, 2H, 2W)."""
        if self.up:
            x_BCHW = F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest")
        return self.conv(x_BCHW)


class Gate(nn.Module):
    """GEGLU, under the name diffusers gives its linear."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.proj = nn.Linear(cin, 2 * cout)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Values times GELU (erf form) of their gates."""
        value, gate = self.proj(x_BSD).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """The gated inner width and back."""

    def __init__(self, width: int, mult: int) -> None:
        super().__init__()
        layers = [Gate(width, mult * width), nn.Identity(), nn.Linear(mult * width, width)]
        self.net = nn.ModuleList(layers)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Same shape in and out."""
        return self.net[2](self.net[0](x_BSD))
