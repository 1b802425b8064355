"""The small image decoders in mobile form: scaled latents (1, Z, h, w) to pixels (1, 3, H, W)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from nanoflux_export.rewrites.group_norm import replace_group_norms
from nanoflux_mobile.models.taesd import TaesdDecoder
from nanoflux_mobile.models.tiny_decoder import TinyDecoder


class MobileTinyDecoder(nn.Module):
    """SnapGen's decoder with rank-4 group norms."""

    def __init__(self, source: TinyDecoder) -> None:
        super().__init__()
        self.scale, self.shift = 1.0 / source.cfg.scaling_factor, source.cfg.shift_factor
        self.decoder = replace_group_norms(copy.deepcopy(source))

    def forward(self, latents: Tensor) -> Tensor:
        """(1, Z, h, w) -> (1, 3, H, W)."""
        return self.decoder(latents * self.scale + self.shift)


def _affine_output(conv: nn.Conv2d, scale: float, shift: float) -> nn.Conv2d:
    """A convolution that also scales and shifts what it gives."""
    folded = copy.deepcopy(conv)
    with torch.no_grad():
        folded.weight.mul_(scale)
        folded.bias.mul_(scale).add_(shift)
    return folded


class MobileTaesd(nn.Module):
    """A decoder in TAESD's format, its output range folded into the last convolution."""

    def __init__(self, source: TaesdDecoder) -> None:
        super().__init__()
        cfg, (*layers, last) = source.cfg, source.decoder.layers
        # The clamp is 3 tanh(z / 3), and z is the latents scaled and shifted.
        self.scale, self.shift = 1.0 / (3.0 * cfg.scaling_factor), cfg.shift_factor / 3.0
        layers = [replace_group_norms(copy.deepcopy(layer)) for layer in layers]
        self.layers = nn.Sequential(*layers, _affine_output(last, 2.0, -1.0))

    def forward(self, latents: Tensor) -> Tensor:
        """(1, Z, h, w) -> (1, 3, H, W)."""
        return self.layers(3.0 * torch.tanh(latents * self.scale + self.shift))
