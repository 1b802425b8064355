"""Opening a FLUX checkpoint or a NanoFLUX student."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from nanoflux_mobile.checkpoint import Checkpoint, fitted, sizes
from nanoflux_mobile.decoders import open_decoder, picture_side, positive
from nanoflux_mobile.drawing import Canvas
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.clip import ClipConfig, ClipText
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.t5 import T5Config, T5Encoder
from nanoflux_mobile.tokenizer import load_tokenizer
from nanoflux_mobile.weight_files import SAME, KeyMap
from nanoflux_mobile.weights import Network, Weights

T5_KEYS = KeyMap(ignored=("encoder.embed_tokens.weight",))
CLIP_KEYS = KeyMap(
    prefixes=(("text_model.", "text_model."), ("", "text_model.")),
    ignored=("text_model.embeddings.position_ids",),
)
FLUX_DEFAULTS = {"axes_dims_rope": (16, 56, 56)}
"""What diffusers assumes where an older config.json is silent."""


@dataclass(frozen=True)
class PooledText:
    """The CLIP tower and its tokenizer: AdaLN teachers only."""

    network: Network[ClipText]
    tokenizer: Tokenizer

    @property
    def tower(self) -> ClipText:
        """The whole tower, float32."""
        return self.network.module


@dataclass(frozen=True)
class Networks:
    """What a checkpoint computes with; the weights stay where they are until a piece is read."""

    denoiser: Network[NanoFlux]
    text_encoder: Network[T5Encoder]
    vae: Network[Any]
    """Any of `decoders.KINDS`."""


@dataclass(frozen=True)
class FluxParts:
    """An opened checkpoint; `clip` is None once the student is Static-LN.

    `networks` cost no memory; `denoiser`, `text_encoder` and `vae` are the same as whole float32
    modules, made at the first use.
    """

    networks: Networks
    tokenizer: Tokenizer
    clip: PooledText | None
    scheduler: Mapping[str, Any]
    text_tokens: int
    side: int

    @property
    def denoiser(self) -> NanoFlux:
        """The whole transformer, float32."""
        return self.networks.denoiser.module

    @property
    def text_encoder(self) -> T5Encoder:
        """The whole text encoder, float32."""
        return self.networks.text_encoder.module

    @property
    def vae(self) -> Any:
        """The whole autoencoder or decoder, float32."""
        return self.networks.vae.module

    @property
    def flux(self) -> FluxConfig:
        """The sizes of the transformer."""
        return self.networks.denoiser.skeleton.cfg

    @property
    def canvas(self) -> Canvas:
        """Geometry of the latents; the patch follows from the channels of both networks."""
        vae = self.networks.vae.skeleton.cfg
        z, cells = vae.latent_channels, self.side // vae.factor
        return Canvas(z, cells, cells, math.isqrt(self.flux.in_channels // z))


def open_denoiser(checkpoint: Checkpoint) -> Network[NanoFlux]:
    """The transformer, which a checkpoint of one file has as well; InputError names what is off."""
    cfg = _flux_sizes(checkpoint)
    where = checkpoint.place("transformer")
    stored = checkpoint.weights("transformer")
    return fitted(lambda: NanoFlux(cfg), stored, where, layout=checkpoint.layout)


def _flux_sizes(checkpoint: Checkpoint) -> FluxConfig:
    config = {**FLUX_DEFAULTS, **checkpoint.config("transformer")}
    fixed = {"patch_size": 1, "out_channels": None}
    return sizes(FluxConfig, config, "transformer/config.json", fixed)


def load(checkpoint: Checkpoint) -> FluxParts:
    """Every part of a FLUX folder; InputError names the part and the key that does not fit."""
    flux = _flux_sizes(checkpoint)
    t5 = sizes(T5Config, checkpoint.config("text_encoder_2"), "text_encoder_2/config.json", {})
    _agree("text states", flux.joint_attention_dim, "text_encoder_2", t5.states_width)

    def part(build: Callable[[], Any], name: str, keys: KeyMap = SAME) -> Network[Any]:
        return fitted(build, checkpoint.weights(name, keys), checkpoint.place(name))

    networks = Networks(
        open_denoiser(checkpoint),
        part(lambda: T5Encoder(t5), "text_encoder_2", T5_KEYS),
        open_decoder(checkpoint),
    )
    parts = FluxParts(
        networks,
        tokenizer=load_tokenizer(checkpoint.place("tokenizer_2")),
        clip=None if flux.static_steps else _open_clip(checkpoint, flux.pooled_projection_dim),
        scheduler=checkpoint.config("scheduler", "scheduler_config.json"),
        text_tokens=positive(
            checkpoint.config("tokenizer_2", "tokenizer_config.json"),
            "model_max_length",
            "tokenizer_2/tokenizer_config.json",
        ),
        side=picture_side(checkpoint),
    )
    channels = parts.canvas.channels * parts.canvas.patch**2
    _agree("tokens", flux.in_channels, "the vae in square patches", channels)
    return parts


def with_denoiser(parts: FluxParts, change: Callable[[Weights], Weights]) -> FluxParts:
    """The same parts, the denoiser's weights passed through `change`, such as a LoRA's fusing."""
    denoiser = parts.networks.denoiser
    changed = dataclasses.replace(denoiser, weights=change(denoiser.weights))
    return dataclasses.replace(
        parts, networks=dataclasses.replace(parts.networks, denoiser=changed)
    )


def _agree(what: str, wanted: int, part: str, given: int) -> None:
    if wanted != given:
        raise InputError(
            f"the transformer reads {what} of width {wanted}, {part} gives {given}; "
            "these parts are not of one model"
        )


def _open_clip(checkpoint: Checkpoint, width: int) -> PooledText:
    config = checkpoint.config("text_encoder")
    clip = sizes(ClipConfig, config, "text_encoder/config.json", {})
    _agree("pooled text", width, "text_encoder", clip.pooled_width)
    weights = checkpoint.weights("text_encoder", CLIP_KEYS)
    network = fitted(lambda: ClipText(clip), weights, checkpoint.place("text_encoder"))
    return PooledText(network, load_tokenizer(checkpoint.place("tokenizer")))
