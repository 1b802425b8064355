"""Stage of cut C7: a tiny decoder, taught by the full one.

loss = |S(z + e) - T(z)|^2 + perceptual distance of S(z + e) and T(z) + adversary, each weighed.
z are latents of the pictures at hand, T is the full decoder, S the tiny one; there is no KL, since
latents stay what they are. What papers leave open, chosen here:

* T's pictures are the truth of all three losses, the critic's as well. So everything pulls one way,
  and what a decoder cannot know from the latents is not asked of it.
* e is noise, its deviation drawn evenly up to `noise` for each picture, because a denoiser's
  latents are inexact; T draws the exact ones.
* The adversary comes in after a share of the steps, when there is something to tell.

decoder.json holds how far the trained decoder is from the full one, in decibels and in colour.

Shapes: B batch, C channels, H W pixels, Z latent channels, h w latent cells.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from nanoflux_mobile.compress.decoder import check_decoder, tiny_decoder
from nanoflux_mobile.distill.adversary import Contest, fooling, seeded_critic, telling
from nanoflux_mobile.distill.answers import Answers
from nanoflux_mobile.distill.decoder_report import judge
from nanoflux_mobile.distill.desk import Desk
from nanoflux_mobile.distill.learning import TrainConfig
from nanoflux_mobile.distill.lessons import STRIDE
from nanoflux_mobile.distill.perceptual import Perceptual, lpips, open_lpips, trained_here
from nanoflux_mobile.distill.trainer import Lesson, LossOf
from nanoflux_mobile.distill.trainer import train as run
from nanoflux_mobile.families.nanoflux import FluxParts
from nanoflux_mobile.storage import file_sha256, write_file
from nanoflux_mobile.strict_json import to_plain
from nanoflux_mobile.weights import Network, network

REPORT = "decoder.json"


@dataclass(frozen=True)
class Settings:
    """The sizes of the decoder, SnapGen's unless told, and how it is taught.

    steps: of training, 0 for none. batch: pictures a step. answers: how many batches are kept on
    disk with the full decoder's pictures and used again and again, 0 for fresh ones every time.
    noise: the most that is added to latents of unit variance. perceptual, adversarial: weights
    beside the squared error's 1, 0 for none. adversary_from: share of the steps after which it
    comes in. lpips: a safetensors file with LPIPS' weights, "" for features trained here, in
    `feature_steps`.
    """

    block_out_channels: tuple[int, ...] = (192, 192, 160, 48)
    layers_per_block: tuple[int, ...] = (5, 2, 2, 2)
    norm_num_groups: int = 16
    steps: int = 0
    lr: float = 1e-3
    batch: int = 16
    answers: int = 0
    noise: float = 0.1
    perceptual: float = 0.1
    adversarial: float = 0.01
    adversary_from: float = 0.5
    lpips: str = ""
    feature_steps: int = 300
    warmup: int = 20
    ema: float = 0.99
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        """Refuse counts, weights and shares that mean nothing."""
        if min(self.steps, self.answers) < 0 or min(self.batch, self.feature_steps, self.lr) <= 0:
            raise ValueError(
                f"steps {self.steps}, answers {self.answers}, batch {self.batch}, feature_steps "
                f"{self.feature_steps}, lr {self.lr}: give the first two from 0, the others above 0"
            )
        weights = self.noise, self.perceptual, self.adversarial
        if min(weights) < 0 or not 0 <= self.adversary_from <= 1:
            raise ValueError(
                f"noise, perceptual, adversarial are {weights}, adversary_from is "
                f"{self.adversary_from}; give numbers from 0, the last up to 1"
            )


def outline(parts: FluxParts, settings: Settings) -> FluxParts:
    """The parts with an untrained decoder; no weight is read, so it checks a plan."""
    if settings.lpips:
        open_lpips(Path(settings.lpips))
    return _with_decoder(parts, _fresh(parts, settings, seed=0))


def _fresh(parts: FluxParts, settings: Settings, seed: int) -> Network[Any]:
    widths, blocks = settings.block_out_channels, settings.layers_per_block
    return tiny_decoder(parts.networks.vae, widths, blocks, settings.norm_num_groups, seed)


def _with_decoder(parts: FluxParts, decoder: Network[Any]) -> FluxParts:
    return dataclasses.replace(parts, networks=dataclasses.replace(parts.networks, vae=decoder))


def cut(desk: Desk, settings: Settings) -> FluxParts:
    """The student with a decoder that has learned nothing yet."""
    return _with_decoder(desk.before, _fresh(desk.before, settings, desk.seed))


def train(desk: Desk, parts: FluxParts, settings: Settings, out: Path) -> FluxParts:
    """The student with its decoder taught; how well, is written to OUT/decoder.json."""
    check_decoder(desk.source.networks.vae, parts.networks.vae)
    if not settings.steps:
        return parts
    # The weights may be those of `parts`, which must not learn with them.
    decoder = copy.deepcopy(parts.networks.vae.whole()).train()
    contest = Contest(decoder, seeded_critic(desk.seed) if settings.adversarial else None)
    likeness = _likeness(desk, settings, out / "features") if settings.perceptual else None
    trained = run(
        contest,
        TensorDataset(torch.arange(settings.steps) % (settings.answers or settings.steps)),
        _loss(desk, contest, _pictures(desk, settings, out / "answers"), likeness, settings),
        _config(desk, settings, settings.steps),
        out / "decoder",
        identity=_identity(desk, settings),
        on_step=lambda done: desk.on_step("decoder", done, settings.steps),
    )
    taught = trained.get_submodule("blocks.decoder").cpu().eval().requires_grad_(False)
    student = _with_decoder(parts, network(taught))
    write_file(out / REPORT, json.dumps(to_plain(judge(desk, student)), indent=2) + "\n")
    return student


def _config(desk: Desk, settings: Settings, steps: int) -> TrainConfig:
    return TrainConfig(
        steps,
        settings.lr,
        warmup=settings.warmup,
        cooling="cosine",
        weight_decay=settings.weight_decay,
        ema=settings.ema,
        device=desk.device,
        log_every=5,
    )


def _identity(desk: Desk, settings: Settings) -> dict[str, Any]:
    sha = file_sha256(Path(settings.lpips)) if settings.lpips else ""
    return {**desk.identity, "settings": to_plain(settings), "lpips": sha}


def _likeness(desk: Desk, settings: Settings, out: Path) -> Perceptual:
    if settings.lpips:
        return lpips(open_lpips(Path(settings.lpips)), desk.device)
    steps = settings.feature_steps
    return trained_here(
        desk.material.lessons(desk.seed, settings.batch),
        desk.material.pixels,
        _config(desk, settings, steps),
        desk.seed,
        out,
        _identity(desk, settings),
        lambda done: desk.on_step("features", done, steps),
    )


Pictures = Callable[[int], Mapping[str, Tensor]]
"""The number of a batch to its latents and what the full decoder draws of them."""


def _pictures(desk: Desk, settings: Settings, out: Path) -> Pictures:
    full, kind = desk.source.vae.to(desk.device), torch.device(desk.device).type
    lessons = desk.material.lessons(desk.seed, settings.batch)

    @torch.no_grad()
    def made(index: int) -> dict[str, Tensor]:
        pixels_BCHW = desk.material.pixels(lessons[index]).to(desk.device)
        with torch.autocast(kind, enabled=False):  # a truth in bfloat16 would be a coarse one
            latents_BZhw = full.encode(pixels_BCHW)
            return {"latents": latents_BZhw, "pictures": full.decode(latents_BZhw)}

    if not settings.answers:
        return made
    kept = Answers(out, settings.answers, ("latents", "pictures"))
    return lambda index: kept.get(index, lambda: made(index))


def _loss(
    desk: Desk,
    contest: Contest,
    pictures: Pictures,
    likeness: Perceptual | None,
    settings: Settings,
) -> LossOf:
    contested = round(settings.adversary_from * settings.steps)

    def loss_of(lesson: Lesson, step: int) -> tuple[Tensor, dict[str, float]]:
        said = pictures(int(lesson[0]))
        z_BZhw, theirs_BCHW = (said[k].to(desk.device) for k in ("latents", "pictures"))
        rng = torch.Generator().manual_seed(desk.seed * STRIDE + step)
        ours_BCHW = contest.decoder.decode(inexact(z_BZhw, settings.noise, rng)).float()
        losses = {"squared": ((ours_BCHW - theirs_BCHW).square().mean(), 1.0)}
        if likeness is not None:
            losses["perceptual"] = likeness(ours_BCHW, theirs_BCHW), settings.perceptual
        if contest.critic is not None and step >= contested:
            # The critic's own loss gets the same weight, so that it does not fill the norm that
            # gradients are clipped to; its steps depend on no scale and stay as long as they are.
            told = telling(contest.critic, ours_BCHW, theirs_BCHW)
            losses["critic"] = told, settings.adversarial
            losses["fooling"] = fooling(contest.critic, ours_BCHW), settings.adversarial
        total = torch.stack([weight * loss for loss, weight in losses.values()]).sum()
        return total, {name: loss.item() for name, (loss, _) in losses.items()}

    return loss_of


def inexact(z_BZhw: Tensor, most: float, rng: torch.Generator) -> Tensor:
    """Latents with noise of a deviation from 0 to `most`, drawn for each picture."""
    spread_B = most * torch.rand((len(z_BZhw), 1, 1, 1), generator=rng)
    noise_BZhw = spread_B * torch.randn(z_BZhw.shape, generator=rng)
    return z_BZhw + noise_BZhw.to(z_BZhw)
