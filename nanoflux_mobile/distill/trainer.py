"""One training loop: warm-up and linear decay, EMA weights, a log, and exact resume.

A step's data and noise come from (seed, step) alone, so a run killed at any point and started
again continues as if it had never stopped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nanoflux_mobile.distill.muon import Muon


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast; `ema` is the decay per step, `decay` the share of steps cooling down."""

    steps: int
    lr: float
    warmup: int = 100
    decay: float = 0.3
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    save_every_s: float = 120.0
    log_every: int = 25


def learning_rate(config: TrainConfig, step: int) -> float:
    """Warm-up, plateau, then a straight line to a hundredth of the peak."""
    cooling = max(1, int(config.steps * config.decay))
    left = max(config.steps - step, 0) / cooling
    return config.lr * min(1.0, (step + 1) / config.warmup, max(left, 0.01))


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for every kernel and matrix inside blocks, AdamW for the rest."""
    inner = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and "block" in n}
    rest = [p for n, p in model.named_parameters() if n not in inner]
    options = {"lr": config.lr, "weight_decay": config.weight_decay}
    return [torch.optim.AdamW(rest, betas=(0.9, 0.98), **options), Muon(inner.values(), **options)]


def _save(path: Path, state: dict[str, object]) -> None:
    aside = path.with_suffix(".partial")
    with aside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def train(
    model: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, dict[str, float]]],
    config: TrainConfig,
    out: Path,
) -> nn.Module:
    """Train `model` in place and return its EMA copy; `loss_of(step)` gives loss and figures.

    Writes `out/log.jsonl` (one line every `log_every` steps) and `out/last.pt`; a second call with
    the same folder goes on from the last save.
    """
    out.mkdir(parents=True, exist_ok=True)
    optimizers = make_optimizers(model, config)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    start, saved = 0, out / "last.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["ema"])
        for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)

    def save(step: int) -> None:
        stored = [optimizer.state_dict() for optimizer in optimizers]
        models = {"model": model.state_dict(), "ema": averaged.state_dict()}
        _save(saved, {"step": step, **models, "optimizers": stored})

    began = saved_at = time.monotonic()
    for step in range(start, config.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
        loss, figures = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        averaged.update_parameters(model)
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            per_second = (step + 1 - start) / (time.monotonic() - began)
            row = {"step": step + 1, "loss": loss.item(), **figures, "steps_per_s": per_second}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps({k: round(v, 5) for k, v in row.items()}) + "\n")
        if time.monotonic() - saved_at > config.save_every_s or step + 1 == config.steps:
            save(step + 1)
            saved_at = time.monotonic()
    return averaged.module
