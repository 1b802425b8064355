"""One training loop for everything that is trained here: exact resume, EMA, clean stops.

A step's data and noise come from (seed, step) alone, so a run killed at any point and started
again continues as if it had never stopped: on a CPU to the bit. What goes wrong on the way (a loss
that is no number, a full disk) ends the run with its last good state in place.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from nanoflux_mobile.distill.learning import (
    TrainConfig,
    check_device,
    freeze,
    half_precision,
    learning_rate,
    make_optimizers,
)
from nanoflux_mobile.distill.run_files import (
    LAST,
    METRICS,
    add_row,
    check_identity,
    clear_leftovers,
    keep_rows,
    read_state,
    write_state,
)
from nanoflux_mobile.errors import CheckFailed, InputError, NanofluxError

Lesson = tuple[Tensor, ...]
LossOf = Callable[[Lesson, int], tuple[Tensor, dict[str, float]]]
"""A batch and its step to the loss and figures for the log."""


@dataclass
class _Run:
    """Everything that a save has to hold; `saved` is the step of the last one."""

    model: nn.Module
    averaged: AveragedModel
    optimizers: list[torch.optim.Optimizer]
    out: Path
    saved: int = 0

    def save(self, step: int) -> None:
        models = {"model": self.model.state_dict(), "ema": self.averaged.state_dict()}
        stored = [optimizer.state_dict() for optimizer in self.optimizers]
        write_state(self.out / LAST, {"step": step, **models, "optimizers": stored})
        self.saved = step

    def resume(self) -> None:
        path = self.out / LAST
        clear_leftovers(path)
        if not path.exists():
            return
        state = read_state(path)
        try:
            self.model.load_state_dict(state["model"])
            self.averaged.load_state_dict(state["ema"])
            for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(stored)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError) as other:
            raise InputError(
                f"{path} is the state of another model; remove {self.out} to start again"
            ) from other
        self.saved = int(state["step"])

    def kept(self) -> str:
        if not self.saved:
            return "no state was saved before"
        return f"the state after step {self.saved} is whole in {self.out / LAST}"

    def gradient(self, loss: Tensor, clip: float) -> float:
        """Gradients of every trained parameter, clipped; returns their norm before that."""
        loss.backward()
        return float(nn.utils.clip_grad_norm_(self.model.parameters(), clip))

    def update(self, lr: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.averaged.update_parameters(self.model)


class _Told(Dataset[Any]):
    """Lessons, or the error instead: a worker process would wrap it in its own traceback."""

    def __init__(self, lessons: Dataset[Any]) -> None:
        self.lessons = lessons

    def __getitem__(self, step: int) -> Any:
        try:
            return self.lessons[step]
        except NanofluxError as error:
            return error


def _batches(lessons: Dataset[Any], start: int, config: TrainConfig) -> Iterator[Lesson]:
    steps = range(start, config.steps)
    loader = DataLoader(_Told(lessons), batch_size=None, sampler=steps, num_workers=config.workers)
    for lesson in loader:
        if isinstance(lesson, NanofluxError):
            raise lesson
        tensors = lesson if isinstance(lesson, tuple | list) else (lesson,)
        yield tuple(tensor.to(config.device, non_blocking=True) for tensor in tensors)


def train(
    model: nn.Module,
    lessons: Dataset[Any],
    loss_of: LossOf,
    config: TrainConfig,
    out: Path,
    *,
    frozen: Sequence[str] = (),
    identity: Mapping[str, Any] | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> nn.Module:
    """Train `model` in place and return its EMA copy.

    Writes `out/metrics.jsonl` (a row every `log_every` steps), `out/last.pt` and `out/run.json`;
    a second call with the same folder goes on from the last save. On a GPU that computes in
    bfloat16 the forward pass does.

    Args:
        model: what is trained, already on any device.
        lessons: `lessons[step]` is the batch of a step.
        loss_of: the loss of a batch and figures for the log.
        config: how long and how fast.
        out: the run's folder.
        frozen: beginnings of names of parameters that stay as they are.
        identity: what this run is of, beside `config`: digests, seeds, the batch. A folder that
            was begun with another identity is refused.
        on_step: called with the number of finished steps, for progress.

    Raises:
        InputError: the device is not there, the folder holds another run or a damaged state, or
            the disk is full; the last two say what is whole.
        CheckFailed: the loss or its gradient is no number any more; the last state stays.
    """
    check_device(config.device)
    check_identity(out, {**asdict(config), **(identity or {})})
    model.to(config.device)
    freeze(model, frozen)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    run = _Run(model, averaged, make_optimizers(model, config), out)
    run.resume()
    keep_rows(out / METRICS, run.saved)
    on_step(run.saved)
    try:
        _take_steps(run, lessons, loss_of, config, on_step)
    except NanofluxError as problem:
        raise type(problem)(f"{problem}; {run.kept()}") from problem
    trained: nn.Module = averaged.module
    return trained


def _take_steps(
    run: _Run,
    lessons: Dataset[Any],
    loss_of: LossOf,
    config: TrainConfig,
    on_step: Callable[[int], None],
) -> None:
    start, began = run.saved, time.monotonic()
    kind, half, saved_at = torch.device(config.device).type, half_precision(config.device), began
    for step, lesson in enumerate(_batches(lessons, start, config), start):
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            loss, figures = loss_of(lesson, step)
        value, norm = loss.item(), run.gradient(loss, config.clip)
        _check_finite(value, norm, step, run.out)
        run.update(lr := learning_rate(config, step))
        last = step + 1 == config.steps
        if (step + 1) % config.log_every == 0 or last:
            pace = round((step + 1 - start) / (time.monotonic() - began), 4)
            row = {"step": step + 1, "loss": value, **figures, "gradient": norm, "lr": lr}
            add_row(run.out / METRICS, {**row, "steps_per_s": pace})
        if time.monotonic() - saved_at > config.save_every_s or last:
            run.save(step + 1)
            saved_at = time.monotonic()
        on_step(step + 1)


def _check_finite(loss: float, norm: float, step: int, out: Path) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise CheckFailed(
            f"step {step + 1} of {out.name} has loss {loss:g} and gradient {norm:g}, so training "
            "stopped; lower the learning rate and give another folder"
        )


def averaged_state(out: Path) -> dict[str, Tensor]:
    """The EMA weights of a run's last save, by the names of its model; InputError without one."""
    stored = read_state(out / LAST)["ema"]
    return {k.removeprefix("module."): v for k, v in stored.items() if k != "n_averaged"}
