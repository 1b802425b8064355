"""How fast and what a run learns: its settings, learning rate, device, optimizers, frozen parts."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from nanoflux_mobile.distill.muon import Muon
from nanoflux_mobile.errors import InputError


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast.

    steps: updates in all. lr: the peak, after `warmup` steps. cooling: "linear" falls over the last
    `decay` share of the steps, "cosine" from the warm-up on, both to a hundredth of the peak.
    ema: decay per step of the averaged weights. clip: largest norm of the gradient.
    """

    steps: int
    lr: float
    warmup: int = 100
    cooling: Literal["linear", "cosine"] = "linear"
    decay: float = 0.3
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    device: str = "cpu"
    workers: int = 0
    save_every_s: float = 120.0
    log_every: int = 25


def learning_rate(config: TrainConfig, step: int) -> float:
    """Warm-up, then down to a hundredth of the peak."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    if config.cooling == "cosine":
        done = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
        return config.lr * min(warm, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
    cooling = max(1, int(config.steps * config.decay))
    left = max(config.steps - step, 0) / cooling
    return config.lr * min(warm, max(left, 0.01))


def check_device(device: str) -> None:
    """InputError for a device that torch does not know, or that this machine lacks."""
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"the device is {device!r}; give cpu or cuda") from error
    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if wanted.type == "cpu" or (
        present is not None
        and wanted.type == present.type
        and (wanted.index or 0) < torch.accelerator.device_count()
    ):
        return
    raise InputError(f"torch finds no device {device!r} on this machine; give --device cpu")


def check_compiler(device: str) -> None:
    """InputError where torch.compile would find no C++ compiler for a CPU."""
    compiler = os.environ.get("CXX", "g++")
    if torch.device(device).type == "cpu" and shutil.which(compiler) is None:
        raise InputError(
            f"--compile needs a C++ compiler and {compiler!r} is not here; install one, name it in "
            "CXX, or leave --compile out"
        )


def half_precision(device: str) -> bool:
    """Whether the forward pass runs in bfloat16: on GPUs that compute in it, not by emulation.

    Everything else runs in float32; float16 would need its loss scaled.
    """
    return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(
        including_emulation=False
    )


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for kernels and matrices inside blocks, AdamW for the rest; frozen parts in none.

    Muon is for maps from states to states. A Static-LN table is looked up, embeddings and the
    last projection touch the data, and a depthwise kernel has one input a row: all AdamW's. Token
    resamplers are AdamW's, too, a choice that was not compared: there are few of them, and they
    start where the cut has put them, not at random.
    """
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    inner = {n: p for n, p in named.items() if "block" in n and p.ndim >= 2 and p.shape[1] > 1}
    rest = [p for n, p in named.items() if n not in inner]
    lr, decay = config.lr, config.weight_decay
    found: list[torch.optim.Optimizer] = []
    if rest:
        found.append(torch.optim.AdamW(rest, lr, betas=(0.9, 0.98), weight_decay=decay))
    if inner:
        found.append(Muon(inner.values(), lr, decay))
    return found


def freeze(model: nn.Module, frozen: Sequence[str]) -> None:
    """No gradient for parameters whose names start with one of `frozen`, all others have one.

    ValueError for a beginning that no parameter has.
    """
    names = [name for name, _ in model.named_parameters()]
    for beginning in frozen:
        if not any(name.startswith(beginning) for name in names):
            raise ValueError(f"no parameter begins with {beginning!r}, so it cannot be frozen")
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith(tuple(frozen)))
        p.grad = None
