"""Train the shipped tiny family from nothing.

    python -m nanoflux_mobile.distill.tiny --out runs/tiny --teacher-steps 6000 --teacher-batch 64

Uses a GPU when there is one. Tokenizers, text towers, autoencoder, teacher, in that order; every
stage resumes where it was killed. Ends with a diffusers FLUX folder at OUT/checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.data.scenes import CANVAS
from nanoflux_mobile.distill.learning import TrainConfig, check_device
from nanoflux_mobile.distill.lessons import TEXT_TOKENS, CrowdedScenes, Words, unit
from nanoflux_mobile.distill.tiny_teacher import Frozen, Pupil, new_pupil, train_teacher
from nanoflux_mobile.distill.tiny_text import new_towers, train_text
from nanoflux_mobile.distill.tiny_tokenizers import write_tokenizers
from nanoflux_mobile.distill.tiny_vae import TINY_VAE, train_vae
from nanoflux_mobile.distill.trainer import averaged_state
from nanoflux_mobile.errors import InputError, NanofluxError
from nanoflux_mobile.families.nanoflux import FluxParts, Networks, PooledText, load, save
from nanoflux_mobile.models.vae import Autoencoder
from nanoflux_mobile.tokenizer import load_tokenizer
from nanoflux_mobile.weights import network

M = TypeVar("M", bound=nn.Module)
SEED = 0


@dataclass(frozen=True)
class Budget:
    """How long each stage trains, and on how many samples a step."""

    text: TrainConfig
    vae: TrainConfig
    teacher: TrainConfig
    teacher_batch: int


def budget(device: str, teacher_steps: int, teacher_batch: int) -> Budget:
    """The stages' settings on a device; a GPU is fed by worker processes."""
    workers = 0 if device == "cpu" else max(1, (os.cpu_count() or 2) - 2)
    plain = TrainConfig(steps=0, lr=2e-3, device=device, workers=workers)
    return Budget(
        dataclasses.replace(plain, steps=1000, ema=0.99, weight_decay=0.03),
        dataclasses.replace(plain, steps=2400, ema=0.995),
        dataclasses.replace(plain, steps=teacher_steps, warmup=50, ema=0.99, log_every=10),
        teacher_batch,
    )


def averaged(model: M, folder: Path) -> M:
    """`model` with the EMA weights of a training folder, frozen, on the CPU."""
    model.load_state_dict(averaged_state(folder))
    return model.eval().requires_grad_(False)


def scaled(vae: Autoencoder) -> Autoencoder:
    """The same autoencoder, its config centring and scaling latents to unit variance."""
    with torch.no_grad():
        z = vae.posterior(unit(CrowdedScenes(seed=12345, batch=256)[0]))[0]
    shift, scale = round(z.mean().item(), 4), round(1 / z.std().item(), 4)
    vae.cfg = dataclasses.replace(vae.cfg, shift_factor=shift, scaling_factor=scale)
    return vae


def words_of(out: Path) -> Words:
    """The tokenizers of a run."""
    folder = out / "words"
    return Words(load_tokenizer(folder / "tokenizer_2"), load_tokenizer(folder / "tokenizer"))


def frozen_parts(out: Path, words: Words) -> Frozen:
    """Everything the teacher learns from, out of the finished stages."""
    towers = averaged(new_towers(words), out / "text")
    return Frozen(scaled(averaged(Autoencoder(TINY_VAE), out / "vae")), towers.t5, towers.clip)


def write_checkpoint(out: Path, frozen: Frozen, words: Words) -> Path:
    """The trained teacher and its encoders as a diffusers FLUX folder in float16."""
    pupil = averaged(new_pupil(SEED), out / "teacher")
    parts = FluxParts(
        Networks(network(pupil.denoiser), network(frozen.t5), network(frozen.vae)),
        tokenizer=words.unigram,
        clip=PooledText(network(frozen.clip), words.bytepair),
        scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0},
        text_tokens=TEXT_TOKENS,
        side=CANVAS,
    )
    save(parts, out / "checkpoint", torch.float16)
    return out / "checkpoint"


def run(out: Path, plan: Budget) -> Path:
    """Every stage that is not finished yet, then the checkpoint."""
    if not (out / "words").exists():
        write_tokenizers(out / "words", SEED)
    words = words_of(out)
    train_text(words, out / "text", 64, SEED, plan.text)
    train_vae(out / "vae", 8, SEED, plan.vae)
    frozen, pupil = frozen_parts(out, words), new_pupil(SEED)
    train_teacher(pupil, frozen, words, out / "teacher", plan.teacher_batch, SEED, plan.teacher)
    return write_checkpoint(out, frozen, words)


def go_on(start: Path, out: Path, plan: Budget) -> Path:
    """More training for the teacher of a checkpoint; its encoders stay as they are.

    Batches come from the next seed, so nothing is learned twice.
    """
    checkpoint = open_checkpoint(start)
    parts = load(checkpoint)
    if parts.clip is None:
        raise InputError(f"{start} is a Static-LN student; give its AdaLN teacher")
    frozen = Frozen(parts.vae, parts.text_encoder, parts.clip.tower)
    words = Words(parts.tokenizer, parts.clip.tokenizer)
    torch.manual_seed(SEED)
    pupil = Pupil(parts.denoiser.train().requires_grad_(True))
    folder, batch = out / "teacher", plan.teacher_batch
    digest = checkpoint.digest()
    train_teacher(pupil, frozen, words, folder, batch, SEED + 1, plan.teacher, digest)
    return write_checkpoint(out, frozen, words)


def main() -> None:
    """Parse the few choices and run."""
    told = "a checkpoint whose teacher to go on with, instead of starting from nothing"
    parser = argparse.ArgumentParser(description="Train the shipped tiny family from nothing.")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--teacher-steps", type=int, default=6000)
    parser.add_argument("--teacher-batch", type=int, default=64)
    parser.add_argument("--start", type=Path, help=told)
    given = parser.parse_args()
    plan = budget(given.device, given.teacher_steps, given.teacher_batch)
    try:
        check_device(given.device)
        print(go_on(given.start, given.out, plan) if given.start else run(given.out, plan))
    except NanofluxError as problem:
        print(problem, file=sys.stderr)
        sys.exit(problem.exit_code)


if __name__ == "__main__":
    main()
