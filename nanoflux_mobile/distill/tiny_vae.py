"""Train the tiny family's f8 16-channel autoencoder on procedural scenes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanoflux_mobile.data.captions import crowd
from nanoflux_mobile.data.scenes import render
from nanoflux_mobile.distill.trainer import TrainConfig, train
from nanoflux_mobile.models.vae import Autoencoder, VaeConfig

TINY_VAE = VaeConfig(
    in_channels=3,
    out_channels=3,
    block_out_channels=(16, 16, 32, 64),
    layers_per_block=1,
    latent_channels=16,
    norm_num_groups=8,
    scaling_factor=1.0,
    shift_factor=0.0,
    mid_block_add_attention=False,
    use_quant_conv=False,
    use_post_quant_conv=False,
)
MSE_FLOOR = 6e-4
"""Mean squared error, pixels in [-1, 1], below which rate is worth more than fidelity (38 dB)."""


def pictures(seed: int, count: int) -> Tensor:
    """`count` crowded scenes as pixels (count, 3, 64, 64) in [-1, 1]."""
    rng = random.Random(seed)
    drawn = [render(crowd(rng)) for _ in range(count)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def vae_loss(model: Autoencoder, pixels_BCHW: Tensor, noise: torch.Generator, rate: float):
    """Sigma-VAE loss (Rybkin et al., 2021): the error sets its own weight, down to the floor.

    With the floor, the posterior keeps as much noise as the picture can bear, so the decoder
    learns to snap inexact latents back to crisp silhouettes: what a small denoiser needs.
    """
    mean, logvar = model.posterior(pixels_BCHW)
    z = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=noise)
    errors = (model.decode(z) - pixels_BCHW).square()
    mse = errors.mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum((1, 2, 3)).mean()
    scale = 2.0 * mse.detach().clamp(min=MSE_FLOOR)
    nats = errors.sum((1, 2, 3)).mean() / scale + rate * kl
    psnr = 10 * float(torch.log10(4.0 / mse.detach()))
    return nats / pixels_BCHW[0].numel(), {"psnr_db": psnr, "kl_nats": kl.item()}


def train_vae(out: Path, steps: int, batch: int, seed: int) -> Autoencoder:
    """The trained autoencoder, latents centred and scaled to unit variance by its config."""
    torch.manual_seed(seed)
    model = Autoencoder(TINY_VAE)

    def loss_of(step: int):
        noise = torch.Generator().manual_seed(seed * 1_000_003 + step)
        return vae_loss(model, pictures(seed * 1_000_003 + step, batch), noise, min(1.0, step / (0.5 * steps)) ** 2)

    return train(model, loss_of, TrainConfig(steps=steps, lr=2e-3, ema=0.995), out)
