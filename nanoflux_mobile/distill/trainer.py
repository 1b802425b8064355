"""One training loop: warm-up and linear decay, EMA weights, a log, and exact resume.

A step's data and noise come from (seed, step) alone, so a run killed at any point and started
again continues as if it had never stopped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from nanoflux_mobile.distill.muon import Muon

Lesson = tuple[Tensor, ...]


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast; `ema` decays per step, `decay` is the share of steps cooling down."""

    steps: int
    lr: float
    warmup: int = 100
    decay: float = 0.3
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    device: str = "cpu"
    workers: int = 0
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
    lr, decay = config.lr, config.weight_decay
    return [
        torch.optim.AdamW(rest, lr, betas=(0.9, 0.98), weight_decay=decay),
        Muon(inner.values(), lr, decay),
    ]


def _save(path: Path, state: dict[str, object]) -> None:
    aside = path.with_suffix(".partial")
    with aside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


@dataclass(frozen=True)
class _Run:
    """Everything that a save has to hold."""

    model: nn.Module
    averaged: AveragedModel
    optimizers: list[torch.optim.Optimizer]

    def save(self, path: Path, step: int) -> None:
        models = {"model": self.model.state_dict(), "ema": self.averaged.state_dict()}
        stored = [optimizer.state_dict() for optimizer in self.optimizers]
        _save(path, {"step": step, **models, "optimizers": stored})

    def resume(self, path: Path, device: str) -> int:
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True, map_location=device)
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["ema"])
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        return int(state["step"])

    def update(self, lr: float, clip: float) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.averaged.update_parameters(self.model)


def _batches(lessons: Dataset[Lesson], start: int, config: TrainConfig) -> Iterator[Lesson]:
    loader = DataLoader(
        lessons, batch_size=None, sampler=range(start, config.steps), num_workers=config.workers
    )
    for lesson in loader:
        tensors = lesson if isinstance(lesson, tuple | list) else (lesson,)
        yield tuple(tensor.to(config.device, non_blocking=True) for tensor in tensors)


def train(
    model: nn.Module,
    lessons: Dataset[Any],
    loss_of: Callable[[Lesson, int], tuple[Tensor, dict[str, float]]],
    config: TrainConfig,
    out: Path,
) -> nn.Module:
    """Train `model` in place and return its EMA copy.

    `lessons[step]` is the batch of a step, `loss_of(batch, step)` its loss and figures for the
    log. Writes `out/log.jsonl` (a line every `log_every` steps) and `out/last.pt`; a second call
    with the same folder goes on from the last save. On a GPU the forward pass is bfloat16.
    """
    out.mkdir(parents=True, exist_ok=True)
    model.to(config.device)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    run = _Run(model, averaged, make_optimizers(model, config))
    start = run.resume(out / "last.pt", config.device)
    kind = torch.device(config.device).type
    began = saved_at = time.monotonic()
    for step, lesson in enumerate(_batches(lessons, start, config), start):
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            loss, figures = loss_of(lesson, step)
        loss.backward()
        run.update(learning_rate(config, step), config.clip)
        last = step + 1 == config.steps
        if (step + 1) % config.log_every == 0 or last:
            pace = (step + 1 - start) / (time.monotonic() - began)
            _log(out, {"step": step + 1, "loss": loss.item(), **figures, "steps_per_s": pace})
        if time.monotonic() - saved_at > config.save_every_s or last:
            run.save(out / "last.pt", step + 1)
            saved_at = time.monotonic()
    return averaged.module


def _log(out: Path, row: dict[str, float]) -> None:
    line = json.dumps({name: round(value, 5) for name, value in row.items()})
    with (out / "log.jsonl").open("a") as log:
        log.write(line + "\n")
    print(f"{out.name}: {line}", file=sys.stderr, flush=True)
