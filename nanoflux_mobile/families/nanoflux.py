"""FLUX checkpoints and NanoFLUX students: loading, the Static-LN cut, running, saving.

A teacher folder is diffusers' FLUX layout. A student folder is the same with a step table in the
transformer and without the CLIP tower, which nothing reads any more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from nanoflux_mobile.checkpoint import (
    Checkpoint,
    KeyMap,
    load_weights,
    save_part,
    sizes,
    write_json,
)
from nanoflux_mobile.compress.static_ln import step_rows, to_static
from nanoflux_mobile.drawing import Canvas, Graphs
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import TokenizerEntry
from nanoflux_mobile.models.clip import ClipConfig, ClipText
from nanoflux_mobile.models.nanoflux import FluxConfig, NanoFlux, Rope, rope_tables
from nanoflux_mobile.models.t5 import T5Config, T5Encoder
from nanoflux_mobile.models.vae import Autoencoder, VaeConfig
from nanoflux_mobile.sampler import Schedule, image_ids, schedule, text_ids
from nanoflux_mobile.storage import staged_folder
from nanoflux_mobile.strict_json import to_plain
from nanoflux_mobile.tokenizer import CLIP_END, encode, encode_prompt, load_tokenizer, save_clip

T5_KEYS = KeyMap(ignored=("encoder.embed_tokens.weight",))
CLIP_KEYS = KeyMap(
    prefixes=(("text_model.", "text_model."), ("", "text_model.")),
    ignored=("text_model.embeddings.position_ids",),
)
T5_PAD = "<pad>"
FLUX_DEFAULTS = {"axes_dims_rope": (16, 56, 56)}
VAE_DEFAULTS = {
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
"""What diffusers assumes where an older config.json is silent, as those of FLUX.1 are."""


@dataclass(frozen=True)
class PooledText:
    """The CLIP tower and its tokenizer: AdaLN teachers only."""

    tower: ClipText
    tokenizer: Tokenizer


@dataclass(frozen=True)
class FluxParts:
    """A loaded checkpoint, all weights float32; `clip` is None once the student is Static-LN."""

    denoiser: NanoFlux
    text_encoder: T5Encoder
    tokenizer: Tokenizer
    vae: Autoencoder
    clip: PooledText | None
    scheduler: Mapping[str, Any]
    text_tokens: int
    side: int

    @property
    def canvas(self) -> Canvas:
        """Geometry of the latents; the patch follows from the channels of both networks."""
        z, cells = self.vae.cfg.latent_channels, self.side // self.vae.cfg.factor
        return Canvas(z, cells, cells, math.isqrt(self.denoiser.cfg.in_channels // z))


def load(checkpoint: Checkpoint) -> FluxParts:
    """Every part of a FLUX folder; InputError names the part and the key that does not fit."""
    flux_config = {**FLUX_DEFAULTS, **checkpoint.config("transformer")}
    flux = sizes(
        FluxConfig, flux_config, "transformer/config.json", {"patch_size": 1, "out_channels": None}
    )
    t5 = sizes(T5Config, checkpoint.config("text_encoder_2"), "text_encoder_2/config.json", {})
    vae_config = {**VAE_DEFAULTS, **checkpoint.config("vae")}
    vae = sizes(VaeConfig, vae_config, "vae/config.json", {"act_fn": "silu"})
    _agree("text states", flux.joint_attention_dim, "text_encoder_2", t5.d_model)
    root = checkpoint.path
    parts = FluxParts(
        denoiser=load_weights(lambda: NanoFlux(flux), root / "transformer"),
        text_encoder=load_weights(lambda: T5Encoder(t5), root / "text_encoder_2", T5_KEYS),
        tokenizer=load_tokenizer(root / "tokenizer_2"),
        vae=load_weights(lambda: Autoencoder(vae), root / "vae"),
        clip=None if flux.static_steps else _load_clip(checkpoint, flux.pooled_projection_dim),
        scheduler=checkpoint.config("scheduler", "scheduler_config.json"),
        text_tokens=_positive(
            checkpoint.config("tokenizer_2", "tokenizer_config.json"),
            "model_max_length",
            "tokenizer_2/tokenizer_config.json",
        ),
        side=_positive(checkpoint.config("vae"), "sample_size", "vae/config.json"),
    )
    channels = parts.canvas.channels * parts.canvas.patch**2
    _agree("tokens", flux.in_channels, "the vae in square patches", channels)
    return parts


def _agree(what: str, wanted: int, part: str, given: int) -> None:
    if wanted != given:
        raise InputError(
            f"the transformer reads {what} of width {wanted}, {part} gives {given}; "
            "these parts are not of one model"
        )


def _positive(config: Mapping[str, Any], key: str, where: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value <= 16_384:
        raise InputError(f"{where}: {key} is {value!r}; expected a whole number up to 16384")
    return value


def _load_clip(checkpoint: Checkpoint, width: int) -> PooledText:
    config = checkpoint.config("text_encoder")
    clip = sizes(ClipConfig, config, "text_encoder/config.json", {})
    _agree("pooled text", width, "text_encoder", clip.hidden_size)
    tower = load_weights(lambda: ClipText(clip), checkpoint.path / "text_encoder", CLIP_KEYS)
    return PooledText(tower, load_tokenizer(checkpoint.path / "tokenizer"))


def token_ids(parts: FluxParts, prompt: str) -> np.ndarray:
    """A prompt as the text encoder takes it, int32 (1, T); InputError if it does not fit."""
    return encode_prompt(parts.tokenizer, prompt, parts.text_tokens, T5_PAD)


def noise_levels(parts: FluxParts, steps: int) -> Schedule:
    """The schedule the checkpoint's scheduler config asks for."""
    return schedule(steps, parts.scheduler, image_tokens=parts.canvas.tokens)


def fixed_steps(parts: FluxParts) -> int | None:
    """The step count of a Static-LN student's table; None for a teacher, which takes any."""
    return parts.denoiser.cfg.static_steps or None


@torch.no_grad()
def pooled_text(clip: PooledText, prompts: Sequence[str]) -> Tensor:
    """Pooled states of prompts, (B, P)."""
    length = clip.tower.cfg.max_position_embeddings
    ids = [encode(clip.tokenizer, prompt, length, CLIP_END) for prompt in prompts]
    return clip.tower(torch.from_numpy(np.concatenate(ids)).long())


def make_student(parts: FluxParts, steps: int, prompts: Sequence[str]) -> FluxParts:
    """The Static-LN student for a schedule of `steps`, its table averaged over `prompts`."""
    if parts.clip is None:
        stored = parts.denoiser.cfg.static_steps
        if stored != steps:
            raise InputError(
                f"this student's table has {stored} steps, not {steps}; use its teacher"
            )
        return parts
    sigmas = noise_levels(parts, steps).sigmas[:-1]
    table = step_rows(parts.denoiser, sigmas, pooled_text(parts.clip, prompts))
    return dataclasses.replace(parts, denoiser=to_static(parts.denoiser, table), clip=None)


def step_tables(parts: FluxParts, prompt: str, steps: int) -> np.ndarray:
    """Modulation of every step as graphs take it, float32 (steps, 1, D, 1, N).

    A Static-LN student has one table for all prompts; an AdaLN teacher computes this prompt's.
    """
    student = make_student(parts, steps, [prompt])
    columns = student.denoiser.step_table.detach().transpose(1, 2)
    return columns[:, None, :, None].contiguous().numpy()


def joint_rope(parts: FluxParts) -> Rope:
    """RoPE tables of text tokens, at the origin, followed by image tokens on their grid."""
    canvas = parts.canvas
    grid = image_ids(canvas.height // canvas.patch, canvas.width // canvas.patch)
    ids = torch.from_numpy(np.concatenate((text_ids(parts.text_tokens), grid)))
    return rope_tables(ids, parts.denoiser.cfg.axes_dims_rope)


def graphs(parts: FluxParts) -> Graphs:
    """The parts as runnable graphs, in plain PyTorch float32."""
    rope = joint_rope(parts)

    def rows(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x)[:, :, 0].transpose(1, 2)

    def columns(x_BSC: Tensor) -> np.ndarray:
        return x_BSC.transpose(1, 2)[:, :, None].contiguous().numpy()

    @torch.inference_mode()
    def text_encoder(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids_BT = torch.from_numpy(inputs["token_ids"]).long()
        return {"text_states": columns(parts.text_encoder(ids_BT))}

    @torch.inference_mode()
    def denoiser(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        named = (rows(inputs[name]) for name in ("latents", "text_states", "step_table"))
        return {"velocity": columns(parts.denoiser(*named, rope))}

    @torch.inference_mode()
    def decoder(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"image": parts.vae.decode(torch.from_numpy(inputs["latents"])).numpy()}

    return Graphs(text_encoder, denoiser, decoder)


PIPELINE = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "T5TokenizerFast"),
    "transformer": ("diffusers", "FluxTransformer2DModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
FLUX_CONFIG = {"_class_name": "FluxTransformer2DModel", "patch_size": 1}
T5_CONFIG = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "is_encoder_decoder": False,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
CLIP_CONFIG = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
VAE_CONFIG = {"_class_name": "AutoencoderKL", "act_fn": "silu"}
"""What diffusers and transformers need beyond the sizes to open our folders."""


def save_tokenizer(parts: FluxParts, folder: Path) -> None:
    """Write the text encoder's tokenizer and its length, the two files a bundle needs."""
    folder.mkdir(parents=True)
    parts.tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": parts.text_tokens}
    write_json(folder / "tokenizer_config.json", config)


def tokenizer_entry(parts: FluxParts, folder: str) -> TokenizerEntry:
    """How a manifest describes the tokenizer written to `folder`."""
    return TokenizerEntry(f"{folder}/tokenizer.json", T5_PAD, parts.text_tokens)


def _vae_config(parts: FluxParts) -> dict[str, Any]:
    depth = len(parts.vae.cfg.block_out_channels)
    down, up = ["DownEncoderBlock2D"] * depth, ["UpDecoderBlock2D"] * depth
    blocks = {"down_block_types": down, "up_block_types": up, "sample_size": parts.side}
    return {**VAE_CONFIG, **to_plain(parts.vae.cfg), **blocks}


def save(parts: FluxParts, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint folder, weights as `dtype`; the folder appears whole or not at all."""
    with staged_folder(folder) as root:
        write_json(root / "scheduler" / "scheduler_config.json", dict(parts.scheduler))
        denoiser, t5 = parts.denoiser, parts.text_encoder
        save_part(denoiser, root / "transformer", {**FLUX_CONFIG, **to_plain(denoiser.cfg)}, dtype)
        save_part(t5, root / "text_encoder_2", {**T5_CONFIG, **to_plain(t5.cfg)}, dtype)
        save_part(parts.vae, root / "vae", _vae_config(parts), dtype)
        save_tokenizer(parts, root / "tokenizer_2")
        if parts.clip is not None:
            tower = parts.clip.tower
            save_part(tower, root / "text_encoder", {**CLIP_CONFIG, **to_plain(tower.cfg)}, dtype)
            save_clip(parts.clip.tokenizer, root / "tokenizer", tower.cfg.max_position_embeddings)
        listed = {part: names for part, names in PIPELINE.items() if (root / part).is_dir()}
        write_json(root / "model_index.json", {"_class_name": "FluxPipeline", **listed})
