"""Writing a FLUX checkpoint folder in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

import torch

from nanoflux_mobile.checkpoint import save_part, write_json
from nanoflux_mobile.decoders import decoder_config
from nanoflux_mobile.families.nanoflux.opening import FluxParts
from nanoflux_mobile.families.nanoflux.running import T5_PAD
from nanoflux_mobile.manifest import TokenizerEntry
from nanoflux_mobile.storage import staged_folder
from nanoflux_mobile.strict_json import to_plain
from nanoflux_mobile.tokenizer import save_clip

PIPELINE = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "T5TokenizerFast"),
    "transformer": ("diffusers", "FluxTransformer2DModel"),
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


def save(parts: FluxParts, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint folder, weights as `dtype`; the folder appears whole or not at all.

    Weights go from where they are to the disk one by one.
    """
    with staged_folder(folder) as root:
        write_json(root / "scheduler" / "scheduler_config.json", dict(parts.scheduler))
        own, t5 = parts.networks, parts.networks.text_encoder
        flux_config = {**FLUX_CONFIG, **to_plain(parts.flux)}
        save_part(own.denoiser, root / "transformer", flux_config, dtype)
        t5_config = {**T5_CONFIG, **to_plain(t5.skeleton.cfg)}
        save_part(t5, root / "text_encoder_2", t5_config, dtype)
        vae_config = decoder_config(own.vae, parts.side)
        save_part(own.vae, root / "vae", vae_config, dtype)
        save_tokenizer(parts, root / "tokenizer_2")
        if parts.clip is not None:
            tower, cfg = parts.clip.network, parts.clip.network.skeleton.cfg
            save_part(tower, root / "text_encoder", {**CLIP_CONFIG, **to_plain(cfg)}, dtype)
            save_clip(parts.clip.tokenizer, root / "tokenizer", cfg.max_position_embeddings)
        listed = {part: names for part, names in PIPELINE.items() if (root / part).is_dir()}
        listed["vae"] = ("diffusers", vae_config["_class_name"])
        write_json(root / "model_index.json", {"_class_name": "FluxPipeline", **listed})
