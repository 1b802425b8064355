"""Cut C7: a tiny decoder in the place of a full one, on the same latents.

NanoFLUX's paper speaks of "the VAE decoder" at 160 ms a picture and does not say which; SnapGen's
(see `models/tiny_decoder`) is 36 times smaller than FLUX.1's. Nothing of the full decoder is taken
over, so this cut has to be trained before it draws anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from nanoflux_mobile.models.vae import Autoencoder, VaeConfig
from nanoflux_mobile.weights import Network, network

SAME = {
    "latent_channels": "latent channels",
    "factor": "pixels per latent cell",
    "scaling_factor": "scaling of the latents",
    "shift_factor": "shift of the latents",
}
"""What two decoders of the same latents have in common, in words."""


def tiny_decoder(
    full: Network[Any], widths: Sequence[int], blocks: Sequence[int], groups: int, seed: int
) -> Network[TinyDecoder]:
    """A fresh tiny decoder of the latents that an autoencoder makes.

    Args:
        full: the autoencoder, of which only the sizes are looked at.
        widths: channels of each resolution, the smallest resolution first.
        blocks: residual blocks of each.
        groups: of every group norm.
        seed: of its weights.

    Raises:
        InputError: `full` has no encoder, so that nothing could be learned from pictures, or the
            sizes do not fit it or each other.
    """
    cfg = _full_sizes(full)
    if uneven := [w for w in widths if groups < 1 or w < 1 or w % groups]:
        raise InputError(
            f"norm_num_groups is {groups}, which does not divide a width of {uneven[0]}; give "
            "block_out_channels of which each is a multiple of it"
        )
    small = TinyDecoderConfig(
        cfg.latent_channels,
        cfg.out_channels,
        tuple(widths),
        tuple(blocks),
        groups,
        cfg.scaling_factor,
        cfg.shift_factor,
    )
    if small.factor != cfg.factor:
        raise InputError(
            f"block_out_channels has {len(widths)} entries, which draw {small.factor} pixels per "
            f"latent cell along each side, but the teacher has {cfg.factor}; "
            f"give {len(cfg.block_out_channels)} entries"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network(TinyDecoder(small).eval().requires_grad_(False))


def check_decoder(full: Network[Any], small: Network[Any]) -> None:
    """InputError unless the second decodes the latents that the first makes."""
    theirs, ours = _full_sizes(full), small.skeleton.cfg
    for field, words in SAME.items():
        wanted, given = getattr(theirs, field), getattr(ours, field)
        if wanted != given:
            raise InputError(
                f"teacher and student differ in {words}: {wanted} and {given}; both must come "
                "from one family of checkpoints"
            )


def _full_sizes(full: Network[Any]) -> VaeConfig:
    if not isinstance(full.skeleton, Autoencoder):
        raise InputError(
            f"the checkpoint's vae is a {type(full.skeleton).__name__}, which has no encoder to "
            "learn from; give a checkpoint with its full autoencoder"
        )
    return full.skeleton.cfg
