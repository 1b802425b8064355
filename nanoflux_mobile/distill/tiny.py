"""Train the shipped tiny family from nothing.

    python -m nanoflux_mobile.distill.tiny --out runs/tiny

Tokenizers, text towers, autoencoder, teacher, in that order; every stage resumes where it was
killed. Ends with a diffusers FLUX folder at OUT/checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from torch import nn

from nanoflux_mobile.data.scenes import CANVAS
from nanoflux_mobile.distill.tiny_teacher import Frozen, new_teacher, train_teacher
from nanoflux_mobile.distill.tiny_text import TEXT_TOKENS, new_towers, train_text
from nanoflux_mobile.distill.tiny_tokenizers import write_tokenizers
from nanoflux_mobile.distill.tiny_vae import TINY_VAE, pictures, train_vae
from nanoflux_mobile.families.nanoflux import FluxParts, PooledText, save
from nanoflux_mobile.models.vae import Autoencoder
from nanoflux_mobile.tokenizer import load_tokenizer

SEED = 0
TEXT_STEPS, VAE_STEPS, TEACHER_STEPS = 1000, 2400, 1800


def averaged(model: nn.Module, folder: Path) -> nn.Module:
    """`model` with the EMA weights of a training folder, frozen."""
    stored = torch.load(folder / "last.pt", weights_only=True)["ema"]
    weights = {k.removeprefix("module."): v for k, v in stored.items() if k != "n_averaged"}
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def scaled(vae: Autoencoder) -> Autoencoder:
    """The same autoencoder, its config centring and scaling latents to unit variance."""
    with torch.no_grad():
        z = vae.posterior(pictures(12345, 256))[0]
    shift, scale = round(z.mean().item(), 4), round(1 / z.std().item(), 4)
    vae.cfg = dataclasses.replace(vae.cfg, shift_factor=shift, scaling_factor=scale)
    return vae


def frozen_parts(out: Path) -> Frozen:
    """Everything the teacher learns from, out of the finished stages."""
    unigram, bytepair = (load_tokenizer(out / "words" / n) for n in ("tokenizer_2", "tokenizer"))
    towers = averaged(new_towers(unigram, bytepair), out / "text")
    vae = scaled(averaged(Autoencoder(TINY_VAE), out / "vae"))
    return Frozen(vae, towers.t5, towers.clip, unigram, bytepair)


def write_checkpoint(out: Path) -> Path:
    """The finished stages as a diffusers FLUX folder in float16, at OUT/checkpoint."""
    frozen = frozen_parts(out)
    parts = FluxParts(
        denoiser=averaged(new_teacher(SEED), out / "teacher"),
        text_encoder=frozen.t5,
        tokenizer=frozen.unigram,
        vae=frozen.vae,
        clip=PooledText(frozen.clip, frozen.bytepair),
        scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0},
        text_tokens=TEXT_TOKENS,
        side=CANVAS,
    )
    save(parts, out / "checkpoint", torch.float16)
    return out / "checkpoint"


def main() -> None:
    """Run every stage that is not finished yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    out = parser.parse_args().out
    if not (out / "words").exists():
        write_tokenizers(out / "words", SEED)
    train_text(out / "words", out / "text", TEXT_STEPS, 64, SEED)
    train_vae(out / "vae", VAE_STEPS, 8, SEED)
    train_teacher(frozen_parts(out), out / "teacher", TEACHER_STEPS, 64, SEED)
    print(write_checkpoint(out))


if __name__ == "__main__":
    main()
