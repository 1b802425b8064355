"""The autoencoder against diffusers' AutoencoderKL on the same saved weights.

Shapes: B batch, Z latent channels, H W pixels, h w latent cells.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanoflux_mobile.checkpoint import load_weights, read_json, sizes
from nanoflux_mobile.models.vae import Autoencoder, VaeConfig

FLOAT32 = 1e-5
"""Share of the largest value: a dozen convolutions' float32 sums in another order."""

SIZES: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}
FLUX = {"use_quant_conv": False, "use_post_quant_conv": False}
VAES: dict[str, dict[str, Any]] = {
    "FLUX": FLUX,
    "no attention": {**FLUX, "mid_block_add_attention": False},
    "both quant convolutions": {},
    "post quant convolution only": {"use_quant_conv": False},
    "one stage": {**FLUX, "block_out_channels": (8,)},
    "four stages": {**FLUX, "block_out_channels": (4, 4, 8, 8), "layers_per_block": 2},
    "many latents": {**FLUX, "latent_channels": 16},
}


@pytest.fixture
def pair(
    off_initial: Callable[[nn.Module, int], nn.Module], tmp_path: Path
) -> Callable[..., tuple[Autoencoder, nn.Module]]:
    """Our autoencoder and diffusers', of one saved folder."""
    from diffusers import AutoencoderKL

    def make(**settings: Any) -> tuple[Autoencoder, nn.Module]:
        options = {**SIZES, **settings}
        stages = len(options["block_out_channels"])
        torch.manual_seed(0)
        reference = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * stages,
            up_block_types=("UpDecoderBlock2D",) * stages,
            **options,
        )
        off_initial(reference, 1).save_pretrained(tmp_path)
        config = read_json(tmp_path / "config.json")
        cfg = sizes(VaeConfig, config, "config.json", {"act_fn": "silu"})
        return load_weights(lambda: Autoencoder(cfg), tmp_path), reference

    return make


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= FLOAT32 * theirs.abs().max()


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("settings", VAES.values(), ids=VAES)
def test_the_posterior_is_that_of_diffusers(pair, settings):
    ours, theirs = pair(**settings)
    pixels = normal(2, 2, 3, 16, 24).clamp(-1, 1)
    with torch.no_grad():
        expected = theirs.encode(pixels).latent_dist
    mean, logvar = ours.posterior(pixels)
    assert mean.shape == (2, ours.cfg.latent_channels, 16 // ours.cfg.factor, 24 // ours.cfg.factor)
    assert_close(mean, expected.mean)
    assert_close(logvar, expected.logvar)


@pytest.mark.parametrize("settings", VAES.values(), ids=VAES)
def test_pixels_are_those_of_diffusers_with_flux_scaling(pair, settings):
    ours, theirs = pair(**settings)
    latents = normal(3, 2, ours.cfg.latent_channels, 4, 6)
    with torch.no_grad():  # the two lines FluxPipeline runs after its last step
        unscaled = latents / theirs.config.scaling_factor + theirs.config.shift_factor
        expected = theirs.decode(unscaled, return_dict=False)[0]
    assert expected.std() > 0.05
    pixels = ours.decode(latents)
    assert pixels.shape == (2, 3, 4 * ours.cfg.factor, 6 * ours.cfg.factor)
    assert_close(pixels, expected)


def test_latents_are_scaled_as_flux_pipelines_scale_them(pair):
    from diffusers import FluxImg2ImgPipeline

    ours, theirs = pair(**FLUX)
    pixels = normal(4, 1, 3, 16, 16).clamp(-1, 1)
    # It reads nothing of the pipeline but its autoencoder.
    holder = type("Holder", (), {"vae": theirs})()
    torch.manual_seed(0)
    with torch.no_grad():
        theirs.encoder.conv_out.bias[4:] = -1e3  # no posterior noise: what is drawn is the mean
        expected = FluxImg2ImgPipeline._encode_vae_image(holder, pixels, torch.Generator())
    assert_close(ours.encode(pixels), expected)


def test_decoding_undoes_the_scaling_of_encoding(pair):
    ours, _ = pair(**FLUX)
    pixels = normal(5, 1, 3, 8, 8).clamp(-1, 1)
    mean = ours.posterior(pixels)[0]
    expected = ours.decoder(mean)
    assert_close(ours.decode(ours.encode(pixels)), expected)


@pytest.mark.parametrize(("stages", "factor"), [((8,), 1), ((8, 16), 2), ((4, 4, 8, 8), 8)])
def test_the_factor_counts_the_stages(stages, factor):
    cfg = VaeConfig(3, 3, stages, 1, 4, 4, 1.0, 0.0, False, False, False)
    assert cfg.factor == factor
    latents = Autoencoder(cfg).eval().decode(torch.zeros(1, 4, 2, 2))
    assert latents.shape == (1, 3, 2 * factor, 2 * factor)


def test_the_log_variance_is_clamped_as_in_diffusers(pair):
    ours, theirs = pair(**FLUX)
    for module in (ours, theirs):
        with torch.no_grad():
            module.encoder.conv_out.bias[4:6] = torch.tensor([1e3, -1e3])
    pixels = normal(6, 1, 3, 8, 8)
    with torch.no_grad():
        expected = theirs.encode(pixels).latent_dist.logvar
    logvar = ours.posterior(pixels)[1]
    assert (logvar.max(), logvar.min()) == (20.0, -30.0)
    assert_close(logvar, expected)
