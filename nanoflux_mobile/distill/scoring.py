"""What a cut cost and what training won back, for every stage of a chain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch

from nanoflux_mobile.distill.desk import Desk
from nanoflux_mobile.evaluate.sampling import scene_scores
from nanoflux_mobile.families.nanoflux import FluxParts
from nanoflux_mobile.families.nanoflux.flow import noised, path_of, velocity

MOST_DB = 200.0
"""What equal velocities score; beyond what float32 can tell apart."""
HELD_OUT = 104_729
"""Added to a seed for batches that no training step sees; of a folder, which is finite, they are
its pictures in another order."""


@dataclass(frozen=True)
class Score:
    """How one student does: velocity_db is the PSNR of its velocity against the source's, on
    held-out batches over all steps, the source's range as peak; scenes are GenEval's columns over
    so many prompts, 0 for unknown."""

    velocity_db: float
    scenes: Mapping[str, float] | None = None
    prompts: int = 0


@dataclass(frozen=True)
class StageScores:
    """A stage's student: parameters by part, scores before and after training, wall seconds."""

    parameters: Mapping[str, int]
    untrained: Score | None
    trained: Score | None
    seconds: float


def parameters(parts: FluxParts) -> dict[str, int]:
    """How many numbers each part that draws consists of; an autoencoder counts by its decoder."""
    own = parts.networks
    vae = "decoder" if any(name.startswith("decoder.") for name in own.vae.weights) else ""
    clip = parts.clip.network.count() if parts.clip else 0
    return {
        "denoiser": own.denoiser.count(),
        "text_encoder": own.text_encoder.count(),
        "pooled_text": clip,
        "decoder": own.vae.count(vae),
    }


def score_student(
    desk: Desk, untrained: FluxParts, trained: FluxParts, prompts: int, seconds: float
) -> StageScores:
    """A stage's scores, straight after the cut and after training."""
    before, after = (score(desk, parts, prompts) for parts in (untrained, trained))
    return StageScores(parameters(trained), before, after, seconds)


def score(desk: Desk, parts: FluxParts, prompts: int) -> Score:
    """How the student `parts` does; scenes on so many prompts, if any, where it draws scenes."""
    decibels = velocity_db(desk, parts)
    if not prompts or desk.material.identity["data"] != "scenes":
        return Score(decibels)

    def on_batch(done: int, total: int) -> None:
        desk.on_step("scenes", done, total)

    found = scene_scores(parts, desk.steps, prompts, desk.device, on_batch=on_batch)
    return Score(decibels, {"overall": found.overall, **asdict(found)}, prompts)


@torch.no_grad()
def velocity_db(desk: Desk, parts: FluxParts, batches: int = 4, size: int = 40) -> float:
    """PSNR of a student's velocity against the source's, at most MOST_DB."""
    device, material = desk.device, desk.material
    lessons = material.lessons(desk.seed + HELD_OUT, size)
    theirs, ours = path_of(desk.source, desk.steps, device), path_of(parts, desk.steps, device)
    rng, error, peak = torch.Generator().manual_seed(desk.seed), 0.0, 0.0
    for i in range(batches):
        batch = noised(material.clean(lessons[i]), theirs.sigmas, rng)
        truth = velocity(desk.source.denoiser.to(device), batch, theirs)
        text_BTJ = parts.text_encoder.to(device)(material.ids(lessons[i]).to(device))
        own = replace(batch, text_BTJ=text_BTJ)
        said = velocity(parts.denoiser.to(device), own, ours)
        error += (said - truth).square().mean().item() / batches
        peak = max(peak, (truth.max() - truth.min()).item())
    return MOST_DB if error == 0 else min(MOST_DB, 10 * math.log10(peak**2 / error))
