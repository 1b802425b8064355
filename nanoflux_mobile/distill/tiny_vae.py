"""Train the tiny family's f8 16-channel autoencoder on procedural scenes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nanoflux_mobile.distill.learning import TrainConfig
from nanoflux_mobile.distill.lessons import STRIDE, CrowdedScenes, unit
from nanoflux_mobile.distill.trainer import Lesson, train
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


def vae_loss(
    model: Autoencoder, pixels_BCHW: Tensor, rng: torch.Generator, rate: float
) -> tuple[Tensor, dict[str, float]]:
    """Sigma-VAE loss (Rybkin et al., 2021): the error sets its own weight, down to the floor.

    With the floor, the posterior keeps as much noise as the picture can bear, so the decoder
    learns to snap inexact latents back to crisp silhouettes: what a small denoiser needs.
    """
    mean, logvar = model.posterior(pixels_BCHW)
    noise = torch.randn(mean.shape, generator=rng).to(mean.device)
    errors = (model.decode(mean + torch.exp(0.5 * logvar) * noise).float() - pixels_BCHW).square()
    mse = errors.mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum((1, 2, 3)).mean()
    scale = 2.0 * mse.detach().clamp(min=MSE_FLOOR)
    nats = errors.sum((1, 2, 3)).mean() / scale + rate * kl
    psnr = 10 * float(torch.log10(4.0 / mse.detach()))
    return nats / pixels_BCHW[0].numel(), {"psnr_db": psnr, "kl_nats": kl.item()}


def train_vae(out: Path, batch: int, seed: int, config: TrainConfig) -> None:
    """Train the autoencoder; resumes from `out`. The rate's weight grows over the first half."""
    torch.manual_seed(seed)
    model = Autoencoder(TINY_VAE)

    def loss_of(lesson: Lesson, step: int) -> tuple[Tensor, dict[str, float]]:
        rng = torch.Generator().manual_seed(seed * STRIDE + step)
        rate = min(1.0, 2.0 * step / config.steps) ** 2
        return vae_loss(model, unit(lesson[0]), rng, rate)

    lessons, who = CrowdedScenes(seed, batch), {"seed": seed, "batch": batch}
    train(model, lessons, loss_of, config, out, identity=who)
