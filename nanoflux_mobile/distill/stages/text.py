"""Stage of the text cut: a small encoder learns the large one's states, then what they do.

First its states are drawn towards the teacher's, as a mean square over prompts, tokens and channels
(padding among them, as FLUX reads it). Then they are judged by what the frozen denoiser makes of
them while it draws, see `rollout`. Learning rates, batches and counts of the paper are unknown.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nanoflux_mobile.compress.text import Sizes, cut_out, pretrained, sizes_of
from nanoflux_mobile.distill.desk import Desk
from nanoflux_mobile.distill.learning import TrainConfig
from nanoflux_mobile.distill.lessons import STRIDE
from nanoflux_mobile.distill.rollout import Prompts, cut_off, rollout_loss
from nanoflux_mobile.distill.trainer import Lesson, LossOf
from nanoflux_mobile.distill.trainer import train as train_model
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families.nanoflux import T5_KEYS, FluxParts
from nanoflux_mobile.families.nanoflux.flow import path_of
from nanoflux_mobile.models.t5 import T5Encoder
from nanoflux_mobile.weights import Network, network


@dataclass(frozen=True)
class Span:
    """One stretch of training: updates, the peak learning rate, prompts of a step."""

    steps: int
    lr: float
    batch: int

    def __post_init__(self) -> None:
        """Refuse counts that mean nothing."""
        if self.steps < 1 or self.lr <= 0 or self.batch < 1:
            raise ValueError(
                f"steps {self.steps}, lr {self.lr}, batch {self.batch}: give steps and a batch "
                "from 1 and an lr above 0"
            )


@dataclass(frozen=True)
class Settings:
    """sizes: of the small encoder that is cut out of the large one. pretrained: the folder of a T5
    to take instead; sizes, if given, must be its own. alphas: the weight of the prompt's states
    after each of the first double blocks. warmup: towards the teacher's states. rollout: towards
    what the denoiser makes of them."""

    sizes: Sizes | None = None
    pretrained: str = ""
    alphas: tuple[float, ...] = (0.1, 0.1, 0.1)
    warmup: Span | None = None
    rollout: Span | None = None

    def __post_init__(self) -> None:
        """Refuse weights that leave nothing to learn from."""
        if min(self.alphas, default=0.0) < 0 or not sum(self.alphas):
            raise ValueError(
                f"alphas are {list(self.alphas)}; give one or more above 0, none below"
            )


def outline(parts: FluxParts, settings: Settings) -> FluxParts:
    """The parts with the small encoder; no weight is read, so it checks a plan."""
    doubles = parts.flux.num_layers
    if settings.rollout and len(settings.alphas) > doubles:
        raise InputError(
            f"alphas weigh {len(settings.alphas)} double blocks, but the denoiser has {doubles}; "
            f"give at most {doubles}"
        )
    return _with_encoder(parts, _encoder(parts, settings))


def _encoder(parts: FluxParts, settings: Settings) -> Network[T5Encoder]:
    large, wanted = parts.networks.text_encoder, settings.sizes
    if not settings.pretrained:
        if wanted is None:
            raise InputError("the text cut needs sizes, or pretrained with the folder of a T5")
        return cut_out(large, wanted)
    found = pretrained(large, Path(settings.pretrained), T5_KEYS)
    present = sizes_of(found.skeleton.cfg)
    if wanted not in (None, present):
        raise InputError(
            f"the T5 in {settings.pretrained} has the sizes {dataclasses.asdict(present)}, not "
            "those of the plan; leave sizes out, or give another folder"
        )
    return found


def _with_encoder(parts: FluxParts, encoder: Network[T5Encoder]) -> FluxParts:
    networks = dataclasses.replace(parts.networks, text_encoder=encoder)
    return dataclasses.replace(parts, networks=networks)


def cut(desk: Desk, settings: Settings) -> FluxParts:
    """The student before any training."""
    return _with_encoder(desk.before, _encoder(desk.before, settings))


def train(desk: Desk, parts: FluxParts, settings: Settings, out: Path) -> FluxParts:
    """The student after both phases; its denoiser stays as it is."""
    if settings.warmup:
        parts = _taught(desk, parts, settings.warmup, out / "warm-up", warmup_loss)
    if settings.rollout:
        loss_of = functools.partial(rollout_loss_of, alphas=settings.alphas)
        parts = _taught(desk, parts, settings.rollout, out / "roll-out", loss_of)
    return parts


def _taught(
    desk: Desk,
    parts: FluxParts,
    span: Span,
    out: Path,
    loss_of: Callable[[Desk, FluxParts, T5Encoder], LossOf],
) -> FluxParts:
    """The parts with their text encoder trained for a while; resumes from the folder `out`."""
    # Weights in memory may be those of another network, which must not learn with it.
    student = copy.deepcopy(parts.networks.text_encoder.whole()).train()
    config = TrainConfig(
        span.steps, span.lr, warmup=20, cooling="cosine", ema=0.99, device=desk.device, log_every=5
    )
    trained = train_model(
        student,
        desk.material.lessons(desk.seed, span.batch),
        loss_of(desk, parts, student),
        config,
        out,
        identity={**desk.identity, "text": out.name, "batch": span.batch},
        on_step=lambda done: desk.on_step(out.name, done, span.steps),
    )
    return _with_encoder(parts, _frozen(trained))


def _frozen(trained: nn.Module) -> Network[T5Encoder]:
    assert isinstance(trained, T5Encoder)
    return network(trained.cpu().eval().requires_grad_(False))


def _gap(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() - b.float()).square().mean()


def warmup_loss(desk: Desk, parts: FluxParts, student: T5Encoder) -> LossOf:
    """How far the student's states lie from the teacher's."""
    teacher = desk.source.text_encoder.to(desk.device)

    def loss_of(lesson: Lesson, step: int) -> tuple[Tensor, dict[str, float]]:
        ids_BT = desk.material.ids(lesson)
        with torch.no_grad():
            taught_BTJ = teacher(ids_BT)
        return _gap(student(ids_BT), taught_BTJ), {}

    return loss_of


def rollout_loss_of(
    desk: Desk, parts: FluxParts, student: T5Encoder, alphas: tuple[float, ...]
) -> LossOf:
    """What the denoiser of `parts` makes of both encoders' states while it draws.

    Cut-off and noise of a step come from the seed and the step alone.
    """
    path = path_of(parts, desk.steps, desk.device)
    model, teacher = parts.denoiser.to(desk.device), desk.source.text_encoder.to(desk.device)

    def loss_of(lesson: Lesson, step: int) -> tuple[Tensor, dict[str, float]]:
        ids_BT = desk.material.ids(lesson)
        rng = torch.Generator().manual_seed(desk.seed * STRIDE + step)
        first = cut_off(desk.steps, rng)
        shape = (len(ids_BT), parts.canvas.tokens, parts.flux.in_channels)
        noise_BSC = torch.randn(shape, generator=rng).to(desk.device)
        with torch.no_grad():
            taught_BTJ = teacher(ids_BT)
        prompts = Prompts(student(ids_BT), taught_BTJ, _pooled(desk, parts, lesson))
        loss = rollout_loss(model, noise_BSC, prompts, path, alphas, first)
        figures = {"step_loss": loss.item() / (desk.steps - first)}
        return loss, {**figures, "states": _gap(prompts.text_BTJ, taught_BTJ).item()}

    return loss_of


def _pooled(desk: Desk, parts: FluxParts, lesson: Lesson) -> Tensor:
    """Pooled text for AdaLN; a Static-LN denoiser does not look at it."""
    if parts.flux.static_steps:
        count = len(desk.material.ids(lesson))
        return torch.zeros(count, parts.flux.pooled_projection_dim, device=desk.device)
    return desk.material.clean(lesson).pooled_BP
