"""Image decoders of every kind a checkpoint may have in vae/, by the class its config names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nanoflux_mobile.checkpoint import Checkpoint, fitted, sizes
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.taesd import TaesdConfig, TaesdDecoder, published_keys
from nanoflux_mobile.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from nanoflux_mobile.models.vae import Autoencoder, VaeConfig
from nanoflux_mobile.strict_json import to_plain
from nanoflux_mobile.weights import Network, Weights

PART, WHERE = "vae", "vae/config.json"


def _same(cfg: Any, stored: Weights) -> Weights:
    return stored


def _taesd(cfg: TaesdConfig, stored: Weights) -> Weights:
    """The decoder half of an AutoencoderTiny, or a file of the decoder alone."""
    names = published_keys(cfg)
    if any(theirs in stored for theirs in names.values()):
        ours = {theirs: name for name, theirs in names.items()}
        return {ours.get(name, name): tensor for name, tensor in stored.items()}
    return {name: tensor for name, tensor in stored.items() if not name.startswith("encoder.")}


@dataclass(frozen=True)
class Kind:
    """One class of decoders: its sizes, its module, and what its config.json leaves out.

    `defaults` hold where the config is silent, `fixed` are settings with one supported value;
    `renamed` gives stored tensors our names.
    """

    config: type[Any]
    module: Callable[[Any], nn.Module]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    renamed: Callable[[Any, Weights], Weights] = _same


KINDS: Mapping[str, Kind] = {
    "AutoencoderKL": Kind(
        VaeConfig,
        Autoencoder,
        {"mid_block_add_attention": True, "use_quant_conv": True, "use_post_quant_conv": True},
        {"act_fn": "silu"},
    ),
    "AutoencoderTiny": Kind(
        TaesdConfig,
        TaesdDecoder,
        {"sample_size": 512},
        fixed={"act_fn": "relu", "upsampling_scaling_factor": 2},
        renamed=_taesd,
    ),
    "TinyDecoder": Kind(TinyDecoderConfig, TinyDecoder),
}
"""A new kind of decoder is a row here and its module in models/."""


def open_decoder(checkpoint: Checkpoint) -> Network[Any]:
    """What a checkpoint has in vae/; InputError names a class that is not known, or what is off."""
    config = checkpoint.config(PART)
    name = config.get("_class_name", "AutoencoderKL")
    if name not in tuple(KINDS):  # a tuple, because JSON can hold what no dict can look up
        raise InputError(f"{WHERE}: _class_name is {name!r}; known: {', '.join(KINDS)}")
    kind = KINDS[name]
    cfg = sizes(kind.config, {**kind.defaults, **config}, WHERE, kind.fixed)
    stored = kind.renamed(cfg, checkpoint.weights(PART))
    return fitted(lambda: kind.module(cfg), stored, checkpoint.place(PART))


def picture_side(checkpoint: Checkpoint) -> int:
    """Pixels along each side of the pictures a checkpoint was made for."""
    config = checkpoint.config(PART)
    kind = KINDS.get(str(config.get("_class_name")), KINDS["AutoencoderKL"])
    return positive({**kind.defaults, **config}, "sample_size", WHERE)


def positive(config: Mapping[str, Any], key: str, where: str) -> int:
    """A count out of a config; InputError for anything but 1 to 16384."""
    value = config.get(key)
    if type(value) is not int or not 0 < value <= 16_384:
        raise InputError(f"{where}: {key} is {value!r}; expected a whole number up to 16384")
    return value


def decoder_config(network: Network[Any], side: int) -> dict[str, Any]:
    """The config.json that `open_decoder` and, where it has the class, diffusers can read."""
    cfg = network.skeleton.cfg
    name = next(name for name, kind in KINDS.items() if isinstance(cfg, kind.config))
    config = {"_class_name": name, **KINDS[name].fixed, **to_plain(cfg), "sample_size": side}
    if name == "AutoencoderKL":
        depth = len(cfg.block_out_channels)
        config["down_block_types"] = ["DownEncoderBlock2D"] * depth
        config["up_block_types"] = ["UpDecoderBlock2D"] * depth
    return config
