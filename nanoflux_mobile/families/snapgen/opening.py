"""Opening a SnapGen student."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from nanoflux_mobile.checkpoint import Checkpoint, fitted, sizes
from nanoflux_mobile.decoders import open_decoder, picture_side
from nanoflux_mobile.drawing import Canvas
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.clip import ClipConfig, ClipText
from nanoflux_mobile.models.snapgen import TEXT_WIDTHS, SnapGen, SnapGenConfig
from nanoflux_mobile.tokenizer import load_tokenizer
from nanoflux_mobile.weight_files import KeyMap
from nanoflux_mobile.weights import Network, Weights

UNET_CLASS = "SnapGenUNet"
TOWERS = ("text_encoder", "text_encoder_2")
"""Folders of CLIP-L and CLIP-G."""
CLIP_KEYS = KeyMap(
    prefixes=(("text_model.", "text_model."), ("", "text_model.")),
    ignored=("text_model.embeddings.position_ids", "text_projection.weight"),
)
"""Keys of a tower with or without a projection, which makes pooled states: nothing reads those."""


@dataclass(frozen=True)
class Networks:
    """What a checkpoint computes with; the weights stay where they are until a piece is read."""

    denoiser: Network[SnapGen]
    clip_l: Network[ClipText] | None
    clip_g: Network[ClipText] | None
    vae: Network[Any]
    """Any of `decoders.KINDS`."""

    @property
    def towers(self) -> Mapping[str, Network[ClipText]]:
        """The CLIP towers at hand by their folders, in the order their states are joined."""
        named = zip(TOWERS, (self.clip_l, self.clip_g), strict=True)
        return {name: tower for name, tower in named if tower is not None}


@dataclass(frozen=True)
class SnapGenParts:
    """An opened checkpoint whose parts fit each other, and the side of its pictures.

    `networks` cost no memory; their `module` is the same as a whole float32 one, made at the first
    use. InputError for parts that are not of one model, or for a side the UNet cannot halve.
    """

    networks: Networks
    tokenizer: Tokenizer
    scheduler: Mapping[str, Any]
    side: int

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other."""
        _check_towers(self)
        vae, unet = self.networks.vae.skeleton.cfg, self.unet
        if unet.in_channels != vae.latent_channels:
            raise InputError(
                f"the unet reads latents of {unet.in_channels} channels, the vae has "
                f"{vae.latent_channels}; these parts are not of one model"
            )
        unit = vae.factor * unet.factor
        if self.side < 1 or self.side % unit:
            raise InputError(
                f"pictures of {self.side} px do not fit this UNet; give a multiple of {unit}"
            )

    @property
    def unet(self) -> SnapGenConfig:
        """The sizes of the UNet."""
        return self.networks.denoiser.skeleton.cfg

    @property
    def text_tokens(self) -> int:
        """The length prompts are padded to."""
        towers = self.networks.towers.values()
        return next(iter(towers)).skeleton.cfg.max_position_embeddings

    @property
    def joined_widths(self) -> tuple[int, int, int]:
        """Channels of CLIP-L's states, of CLIP-G's, and of the whole, zeros behind them.

        Where CLIP-L is absent, zeros of its published width stand for it.
        """
        own = self.networks
        left = own.clip_l.skeleton.cfg.hidden_size if own.clip_l else TEXT_WIDTHS[0]
        right = own.clip_g.skeleton.cfg.hidden_size if own.clip_g else 0
        return left, right, self.unet.text_width

    @property
    def canvas(self) -> Canvas:
        """Geometry of the latents: every cell is a token."""
        vae = self.networks.vae.skeleton.cfg
        cells = self.side // vae.factor
        return Canvas(vae.latent_channels, cells, cells, 1)


def _check_towers(parts: SnapGenParts) -> None:
    towers = parts.networks.towers
    if not towers:
        raise InputError(
            f"the checkpoint has neither {TOWERS[0]} (CLIP-L) nor {TOWERS[1]} (CLIP-G); "
            "add one of them or both"
        )
    lengths = {name: tower.skeleton.cfg.max_position_embeddings for name, tower in towers.items()}
    if len(set(lengths.values())) > 1:
        told = " and ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"the towers read the same tokens, but {told} of them; use CLIP's own")
    left, right, whole = parts.joined_widths
    # A UNet of the published width was trained on the published towers; swapped ones would fit.
    others = (left, right or TEXT_WIDTHS[1], whole) != TEXT_WIDTHS
    if left + right > whole or (whole == TEXT_WIDTHS[2] and others):
        raise InputError(
            f"the unet reads text states of width {whole}, {TOWERS[0]} gives {left} of it and "
            f"{TOWERS[1]} {right}; these parts are not of one model"
        )


def load(checkpoint: Checkpoint) -> SnapGenParts:
    """Every part of a SnapGen folder; InputError names the part and the key that does not fit."""
    config, fixed = checkpoint.config("unet"), {"_class_name": UNET_CLASS}
    unet = sizes(SnapGenConfig, config, "unet/config.json", fixed)
    stored, place = checkpoint.weights("unet"), checkpoint.place("unet")
    clip_l, clip_g = (_open_tower(checkpoint, name) for name in TOWERS)
    network = fitted(lambda: SnapGen(unet), stored, place)
    networks = Networks(network, clip_l, clip_g, open_decoder(checkpoint))
    return SnapGenParts(
        networks,
        tokenizer=load_tokenizer(checkpoint.place("tokenizer")),
        scheduler=checkpoint.config("scheduler", "scheduler_config.json"),
        side=picture_side(checkpoint),
    )


def _open_tower(checkpoint: Checkpoint, name: str) -> Network[ClipText] | None:
    if not checkpoint.has(name):
        return None
    config = {**checkpoint.config(name), "projection_width": 0}
    cfg = sizes(ClipConfig, config, f"{name}/config.json", {})
    return fitted(
        lambda: ClipText(cfg), checkpoint.weights(name, CLIP_KEYS), checkpoint.place(name)
    )


def with_denoiser(parts: SnapGenParts, change: Callable[[Weights], Weights]) -> SnapGenParts:
    """The same parts, the denoiser's weights passed through `change`, such as a LoRA's fusing."""
    denoiser = parts.networks.denoiser
    changed = dataclasses.replace(denoiser, weights=change(denoiser.weights))
    return dataclasses.replace(
        parts, networks=dataclasses.replace(parts.networks, denoiser=changed)
    )
