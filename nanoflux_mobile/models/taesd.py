"""Decoders in the format of TAESD (Ollin Boer Bohan): convolutions, ReLU and repeated pixels only.

They decode the latents of a big autoencoder at a fraction of its size, for FLUX.1 (`taef1`, 16
channels) 1.23 M parameters. FLUX.2's (`taef2`, 32 channels) adds a normed branch to its lowest
blocks, the only norms of the format. Module names are those of diffusers' AutoencoderTiny, so the
decoder half of its checkpoints loads without a key map. Files of the decoder alone number the
layers from the clamp on, without a prefix; `published_keys` is the table between both spellings.

Shapes: B batch, C channels, Z latent channels, H W pixels, h w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TaesdConfig:
    """Sizes of a decoder, by the names of AutoencoderTiny's config.json.

    `use_midblock_gn`, by the name it has in taesd.py, gives the first stage's blocks their branch.
    """

    latent_channels: int
    out_channels: int = 3
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    use_midblock_gn: bool = False
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what the format has no layers for: a second width, lists of other lengths."""
        if len(set(self.decoder_block_out_channels)) != 1:
            raise ValueError(
                f"decoder_block_out_channels {self.decoder_block_out_channels} are not all equal"
            )
        if len(self.decoder_block_out_channels) != len(self.num_decoder_blocks):
            raise ValueError(
                f"decoder_block_out_channels has {len(self.decoder_block_out_channels)} entries "
                f"and num_decoder_blocks {len(self.num_decoder_blocks)}; they need as many"
            )

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along each side."""
        return 2 ** (len(self.num_decoder_blocks) - 1)


TAEF1 = TaesdConfig(latent_channels=16)
"""FLUX.1's: it takes the denoiser's latents as they are, so its factors are 1 and 0."""
TAEF2 = TaesdConfig(latent_channels=32, use_midblock_gn=True)
"""FLUX.2's, on latents unpatched and normed as that family does."""
POOL_GROUPS = 4


class Block(nn.Module):
    """Three 3x3 convolutions with ReLU between them and after the residual sum.

    `pooled` adds a branch before: four times the width, normed over the picture, and back.
    """

    def __init__(self, width: int, pooled: bool = False) -> None:
        super().__init__()
        self.pool = _pool(width) if pooled else None
        first, second, third = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Same shape in and out."""
        if self.pool is not None:
            x_BCHW = x_BCHW + self.pool(x_BCHW)
        return F.relu(self.conv(x_BCHW) + x_BCHW)


def _pool(width: int) -> nn.Sequential:
    wide = 4 * width
    return nn.Sequential(
        nn.Conv2d(width, wide, 1, bias=False),
        nn.GroupNorm(POOL_GROUPS, wide),
        nn.ReLU(),
        nn.Conv2d(wide, width, 1, bias=False),
    )


def _layers(cfg: TaesdConfig) -> list[nn.Module]:
    width, last = cfg.decoder_block_out_channels[0], len(cfg.num_decoder_blocks) - 1
    layers: list[nn.Module] = [nn.Conv2d(cfg.latent_channels, width, 3, padding=1), nn.ReLU()]
    for stage, depth in enumerate(cfg.num_decoder_blocks):
        pooled = cfg.use_midblock_gn and stage == 0
        layers += [Block(width, pooled) for _ in range(depth)]
        if stage < last:
            layers.append(nn.Upsample(scale_factor=2.0, mode="nearest"))
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
    return [*layers, nn.Conv2d(width, cfg.out_channels, 3, padding=1)]


class TaesdLayers(nn.Module):
    """The row of layers that diffusers calls `decoder.layers`."""

    def __init__(self, cfg: TaesdConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_layers(cfg))

    def forward(self, z_BZhw: Tensor) -> Tensor:
        """Unscaled latents (B, Z, h, w), softly clamped to [-3, 3] -> pixels, about [-1, 1]."""
        return self.layers(torch.tanh(z_BZhw / 3.0) * 3.0) * 2.0 - 1.0


class TaesdDecoder(nn.Module):
    """The decoder half of AutoencoderTiny; `decode` takes latents as the denoiser gives them."""

    def __init__(self, cfg: TaesdConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.decoder = TaesdLayers(cfg)

    def decode(self, latents_BZhw: Tensor) -> Tensor:
        """Scaled latents (B, Z, h, w) -> pixels (B, 3, H, W), about [-1, 1]."""
        return self.decoder(latents_BZhw / self.cfg.scaling_factor + self.cfg.shift_factor)


def published_keys(cfg: TaesdConfig) -> dict[str, str]:
    """Every parameter name here to its name in a file of the decoder alone.

    There the clamp is layer 0, so `decoder.layers.2.conv.0.weight` is `3.conv.0.weight`. No two
    names fall together, so the table can be read the other way round.
    """
    with torch.device("meta"):
        names = TaesdDecoder(cfg).state_dict()
    return {name: _published(name) for name in names}


def _published(name: str) -> str:
    number, _, rest = name.removeprefix("decoder.layers.").partition(".")
    return f"{int(number) + 1}.{rest}"
