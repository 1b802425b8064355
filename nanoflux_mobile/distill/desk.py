"""What every stage of a chain works with, and what it may ask of a student before a cut.

Shapes: B batch, S image tokens, C token channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanoflux_mobile.distill.answers import Answers
from nanoflux_mobile.distill.material import Material
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families.nanoflux import FluxParts
from nanoflux_mobile.families.nanoflux.flow import Noised, noised, path_of, velocity
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.weights import Network

MEASURED = 7_919
"""Added to a seed for batches that students are measured on before a cut."""


@dataclass(frozen=True)
class Desk:
    """What every stage works with.

    source: the checkpoint that is compressed. before: the student as it enters the stage.
    answers: where the source's velocities are kept, None for nowhere. steps: Euler steps of the
    student. batch: samples of a training step. identity: what a run of the stage is of.
    on_step: hears what is under way, how far it is, and of how much. compiled: whether students
    are compiled to train.
    """

    source: FluxParts
    before: FluxParts
    material: Material
    answers: Answers | None
    steps: int
    batch: int
    seed: int
    device: str
    identity: Mapping[str, Any]
    on_step: Callable[[str, int, int], None] = lambda what, done, total: None
    compiled: bool = False


def with_network(parts: FluxParts, denoiser: Network[NanoFlux]) -> FluxParts:
    """The same parts with another denoiser; CLIP leaves with AdaLN."""
    networks = dataclasses.replace(parts.networks, denoiser=denoiser)
    clip = None if denoiser.skeleton.cfg.static_steps else parts.clip
    return dataclasses.replace(parts, networks=networks, clip=clip)


def check_full(parts: FluxParts) -> None:
    """InputError for a student whose low steps would run while it is measured at full ones."""
    if parts.flux.downsamples:
        raise InputError(
            "heads and channels are measured at full resolution; put this cut before token "
            "downsampling in the plan"
        )


def calibration(desk: Desk, parts: FluxParts, batches: int, size: int) -> list[Noised]:
    """Batches to measure `parts` on before a cut, from a seed that no training step uses."""
    lessons = desk.material.lessons(desk.seed + MEASURED, size)
    sigmas = path_of(parts, desk.steps).sigmas
    rng = torch.Generator().manual_seed(desk.seed)
    return [noised(desk.material.clean(lessons[i]), sigmas, rng) for i in range(batches)]


def runs_of(desk: Desk, parts: FluxParts, batches: Sequence[Noised]) -> list[Callable[[], Tensor]]:
    """For each batch a call that runs the denoiser of `parts` on it."""
    path, model = path_of(parts, desk.steps), parts.denoiser
    return [lambda batch=batch: velocity(model, batch, path) for batch in batches]  # type: ignore[misc]


def check_latents(teacher: FluxParts, student: FluxParts) -> None:
    """InputError unless both denoisers work on the same latents and text states."""
    for what, field in (("latent channels", "in_channels"), ("text width", "joint_attention_dim")):
        theirs, ours = getattr(teacher.flux, field), getattr(student.flux, field)
        if theirs != ours:
            raise InputError(
                f"teacher and student differ in {what}: {theirs} and {ours}; both must come from "
                "one family of checkpoints"
            )
