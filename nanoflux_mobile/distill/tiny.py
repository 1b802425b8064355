"""Train the shipped tiny family from nothing.

    python -m nanoflux_mobile.distill.tiny --out runs/tiny

Tokenizers, text towers, autoencoder, teacher, in that order; every stage resumes where it was
killed. Ends with a diffusers FLUX folder at OUT/checkpoint.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from nanoflux_mobile.distill.tiny_teacher import Frozen, new_teacher, train_teacher
from nanoflux_mobile.distill.tiny_text import TextTowers, new_towers, train_text
from nanoflux_mobile.distill.tiny_tokenizers import write_tokenizers
from nanoflux_mobile.distill.tiny_vae import TINY_VAE, pictures, train_vae
from nanoflux_mobile.models.vae import Autoencoder
from nanoflux_mobile.tokenizer import load_tokenizer

STAGES = ("text", "vae", "teacher")
SEED = 0


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
    factors = {"shift_factor": round(z.mean().item(), 4), "scaling_factor": round(1 / z.std().item(), 4)}
    vae.cfg = dataclasses.replace(vae.cfg, **factors)
    return vae


def frozen_parts(out: Path) -> Frozen:
    """Everything the teacher learns from, out of the finished stages."""
    unigram, bytepair = (load_tokenizer(out / "checkpoint" / n) for n in ("tokenizer_2", "tokenizer"))
    towers: TextTowers = averaged(new_towers(unigram, bytepair), out / "text")
    vae = scaled(averaged(Autoencoder(TINY_VAE), out / "vae"))
    return Frozen(vae, towers.t5, towers.clip, unigram, bytepair)
