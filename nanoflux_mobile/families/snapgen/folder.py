"""Writing a SnapGen checkpoint folder in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

import torch

from nanoflux_mobile.checkpoint import save_part, write_json
from nanoflux_mobile.decoders import decoder_config
from nanoflux_mobile.families.snapgen.opening import UNET_CLASS, SnapGenParts
from nanoflux_mobile.manifest import TokenizerEntry
from nanoflux_mobile.storage import staged_folder
from nanoflux_mobile.strict_json import to_plain
from nanoflux_mobile.tokenizer import CLIP_END, save_clip

PIPELINE_CLASS = "SnapGenPipeline"
CLIP_CONFIG = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
"""What transformers needs beyond the sizes to open our folders."""


def save_tokenizer(parts: SnapGenParts, folder: Path) -> None:
    """Write the towers' tokenizer and its length, the two files a bundle needs."""
    folder.mkdir(parents=True)
    parts.tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": parts.text_tokens}
    write_json(folder / "tokenizer_config.json", config)


def tokenizer_entry(parts: SnapGenParts, folder: str) -> TokenizerEntry:
    """How a manifest describes the tokenizer written to `folder`."""
    return TokenizerEntry(f"{folder}/tokenizer.json", CLIP_END, parts.text_tokens)


def save(parts: SnapGenParts, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint folder, weights as `dtype`; the folder appears whole or not at all.

    Weights go from where they are to the disk one by one.
    """
    own = parts.networks
    with staged_folder(folder) as root:
        write_json(root / "scheduler" / "scheduler_config.json", dict(parts.scheduler))
        unet_config = {"_class_name": UNET_CLASS, **to_plain(parts.unet)}
        save_part(own.denoiser, root / "unet", unet_config, dtype)
        for name, tower in own.towers.items():
            clip_config = {**CLIP_CONFIG, **to_plain(tower.skeleton.cfg)}
            save_part(tower, root / name, clip_config, dtype)
        save_clip(parts.tokenizer, root / "tokenizer", parts.text_tokens)
        vae_config = decoder_config(own.vae, parts.side)
        save_part(own.vae, root / "vae", vae_config, dtype)
        listed = {
            "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
            **{name: ("transformers", "CLIPTextModel") for name in own.towers},
            "tokenizer": ("transformers", "CLIPTokenizer"),
            "unet": ("nanoflux_mobile", UNET_CLASS),
            "vae": ("diffusers", vae_config["_class_name"]),
        }
        write_json(root / "model_index.json", {"_class_name": PIPELINE_CLASS, **listed})
