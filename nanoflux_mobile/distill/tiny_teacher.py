"""Train the tiny FLUX-shaped AdaLN teacher by flow matching on fresh procedural scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_mobile.data.scenes import BACKGROUNDS, COLOURS, SHAPES
from nanoflux_mobile.distill.learning import TrainConfig
from nanoflux_mobile.distill.lessons import STRIDE, TEXT_TOKENS, CaptionedScenes, Words, unit
from nanoflux_mobile.distill.trainer import Lesson, train
from nanoflux_mobile.models.clip import ClipText
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.nanoflux_layers import Rope, modulate, rope_tables
from nanoflux_mobile.models.t5 import T5Encoder
from nanoflux_mobile.models.vae import Autoencoder

TINY_FLUX = FluxConfig(
    in_channels=16,
    num_layers=4,
    num_single_layers=8,
    attention_head_dim=16,
    num_attention_heads=12,
    joint_attention_dim=128,
    pooled_projection_dim=64,
    guidance_embeds=False,
    axes_dims_rope=(4, 6, 6),
)
SIDE = 8
"""Latent cells along a side; every cell is one token."""
CLASSES = (1 + len(SHAPES), len(COLOURS) + len(BACKGROUNDS))
"""What a cell may show: a shape or none; a colour or a background."""
READING = 0.1
"""Weight of naming every cell, in nats, against the velocity's mean squared error."""

GUIDANCE = 0.5
"""How far the last fifth of training leans away from the empty caption (guidance scale 1.5)."""


@dataclass(frozen=True)
class Frozen:
    """What the teacher learns from: trained encoders that stay as they are."""

    vae: Autoencoder
    t5: T5Encoder
    clip: ClipText


@dataclass(frozen=True)
class Batch:
    """Clean packed latents, what they show, text states and pooled text of some captions."""

    x_BSC: Tensor
    shown_BS2: Tensor
    text_BTJ: Tensor
    pooled_BP: Tensor


def positions() -> Rope:
    """RoPE tables of the joint sequence: text at the origin, image tokens on their grid."""
    cells = torch.arange(SIDE * SIDE)
    image = torch.stack((torch.zeros_like(cells), cells // SIDE, cells % SIDE), 1)
    ids = torch.cat((torch.zeros(TEXT_TOKENS, 3), image.float()))
    return rope_tables(ids, TINY_FLUX.axes_dims_rope)


@torch.no_grad()
def encode_batch(frozen: Frozen, lesson: Lesson) -> Batch:
    """A lesson's pixels and captions as the teacher meets them."""
    pixels, shown_BS2, ids_BT, clip_ids_BS = lesson
    pooled_BP = frozen.clip(clip_ids_BS)
    # Half the pooled vectors belong to another caption: the modulation learns to lean on time,
    # as FLUX's does, which is what makes a table over steps able to replace it.
    half = len(pooled_BP) // 2
    pooled_BP = torch.cat((pooled_BP[:half], pooled_BP[half:].roll(1, 0)))
    x_BSC = frozen.vae.encode(unit(pixels)).flatten(2).transpose(1, 2)
    return Batch(x_BSC.float(), shown_BS2, frozen.t5(ids_BT), pooled_BP)


def routed(
    model: NanoFlux, x_BSC: Tensor, text_BTJ: Tensor, rows_BND: Tensor, rope: Rope, kept_K: Tensor
) -> tuple[Tensor, Tensor]:
    """The model's velocity when only the image tokens `kept` visit its middle blocks.

    TREAD (Krause et al., 2025): 30 % less work a step, and the outer blocks learn sooner. Also
    returns those tokens' states (B, K, D) where the two streams become one.
    """
    doubles, singles = model.transformer_blocks, model.single_transformer_blocks
    *rows, last = rows_BND.split([12] * len(doubles) + [3] * len(singles) + [2], 1)
    length = text_BTJ.shape[1]
    x_BSD, y_BTD = model.x_embedder(x_BSC), model.context_embedder(text_BTJ)
    x_BSD, y_BTD = doubles[0](x_BSD, y_BTD, rows[0], rope)
    places = torch.cat((torch.arange(length, device=kept_K.device), kept_K + length))
    short = (rope[0][places], rope[1][places])
    x_BKD = x_BSD[:, kept_K]
    for block, m in zip(doubles[1:], rows[1:], strict=False):
        x_BKD, y_BTD = block(x_BKD, y_BTD, m, short)
    h = torch.cat((y_BTD, x_BKD), 1)
    for block, m in zip(singles[:-2], rows[len(doubles) :], strict=False):
        h = block(h, m, short)
    h = torch.cat((h[:, :length], x_BSD.index_copy(1, kept_K, h[:, length:])), 1)
    for block, m in zip(singles[-2:], rows[-2:], strict=True):
        h = block(h, m, rope)
    shift, scale = last.unbind(1)
    return model.proj_out(modulate(h[:, length:], shift, scale)), x_BKD


class Pupil(nn.Module):
    """The teacher in training, and the reader that names what its middle states will show.

    Naming cells at every noise level makes the double blocks plan the picture from the caption
    (representation alignment, Yu et al., 2025, with the scene itself as the representation).
    """

    def __init__(self, denoiser: NanoFlux) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.reader = nn.Linear(denoiser.cfg.width, sum(CLASSES))

    def misread(self, x_BKD: Tensor, shown_BK2: Tensor) -> Tensor:
        """Cross-entropy of the named shapes and colours, in nats per cell."""
        shape, colour = self.reader(x_BKD).float().flatten(0, 1).split(CLASSES, 1)
        truth = shown_BK2.flatten(0, 1)
        return F.cross_entropy(shape, truth[:, 0]) + F.cross_entropy(colour, truth[:, 1])


@dataclass(frozen=True)
class Phase:
    """What a step does beside plain flow matching: route and read early, lean on guidance late."""

    routing: bool
    reading: float
    guidance: float


def phase_of(step: int, steps: int) -> Phase:
    """Routing and reading for the first four fifths, guidance for the last fifth."""
    early = step < 0.8 * steps
    return Phase(early, READING if early else 0.0, 0.0 if early else GUIDANCE)


def flow_loss(
    pupil: Pupil, batch: Batch, rope: Rope, rng: torch.Generator, phase: Phase
) -> tuple[Tensor, dict[str, float]]:
    """Mean squared error of the velocity at logit-normal times (SD3, section 3.1).

    With guidance, the target moves by the difference between the model's own answers to the
    caption and to the empty one, so that sampling needs one pass (model guidance, Tang et al.,
    2025). The batch's first row has the empty caption.
    """
    device, (size, cells, _) = batch.x_BSC.device, batch.x_BSC.shape
    model = pupil.denoiser
    noise = torch.randn(batch.x_BSC.shape, generator=rng).to(device)
    t_B = torch.sigmoid(torch.randn(size, generator=rng) + 0.6).to(device)
    t = t_B[:, None, None]
    x = (1 - t) * batch.x_BSC + t * noise
    rows = model.modulations(t_B, batch.pooled_BP)
    order = torch.randperm(cells, generator=rng).to(device)
    kept = order[: cells // 2] if phase.routing else order
    velocity, seen = routed(model, x, batch.text_BTJ, rows, rope, kept)
    target = noise - batch.x_BSC
    if phase.guidance:
        empty_BTJ = batch.text_BTJ[:1].expand_as(batch.text_BTJ)
        with torch.no_grad():
            target = target + phase.guidance * (velocity - model(x, empty_BTJ, rows, rope))
    misread = pupil.misread(seen, batch.shown_BS2[:, kept])
    flow = (velocity.float() - target.detach()).square().mean()
    return flow + phase.reading * misread, {"flow": flow.item(), "misread": misread.item()}


def new_pupil(seed: int) -> Pupil:
    """A teacher whose blocks start as the identity (AdaLN-Zero), and its reader."""
    torch.manual_seed(seed)
    model = NanoFlux(TINY_FLUX)
    for name, p in model.named_parameters():
        if ("norm" in name and "linear" in name) or name.startswith("proj_out"):
            nn.init.zeros_(p)
    return Pupil(model)


def train_teacher(
    pupil: Pupil,
    frozen: Frozen,
    words: Words,
    out: Path,
    batch: int,
    seed: int,
    config: TrainConfig,
    start: str = "",
) -> None:
    """Train a teacher in place; resumes from `out`. `start` is the digest of what it began as."""
    for encoder in (frozen.vae, frozen.t5, frozen.clip):
        encoder.to(config.device)
    cos, sin = positions()
    rope = (cos.to(config.device), sin.to(config.device))

    def loss_of(lesson: Lesson, step: int) -> tuple[Tensor, dict[str, float]]:
        rng = torch.Generator().manual_seed(seed * STRIDE + step)
        phase = phase_of(step, config.steps)
        return flow_loss(pupil, encode_batch(frozen, lesson), rope, rng, phase)

    lessons = CaptionedScenes(seed, batch, words, 0.1)
    who = {"seed": seed, "batch": batch, "start": start}
    train(pupil, lessons, loss_of, config, out, identity=who)
