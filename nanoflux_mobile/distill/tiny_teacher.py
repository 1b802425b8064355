"""Train the tiny FLUX-shaped AdaLN teacher by flow matching on fresh procedural scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nanoflux_mobile.distill.lessons import STRIDE, TEXT_TOKENS, CaptionedScenes, Words, unit
from nanoflux_mobile.distill.trainer import Lesson, TrainConfig, train
from nanoflux_mobile.models.clip import ClipText
from nanoflux_mobile.models.nanoflux import FluxConfig, NanoFlux, Rope, modulate, rope_tables
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


GUIDANCE = 0.5
"""How far the last quarter of training leans away from the empty caption (guidance scale 1.5)."""


@dataclass(frozen=True)
class Frozen:
    """What the teacher learns from: trained encoders that stay as they are."""

    vae: Autoencoder
    t5: T5Encoder
    clip: ClipText


@dataclass(frozen=True)
class Batch:
    """Clean packed latents, text states and pooled text of some captions."""

    x_BSC: Tensor
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
    pixels, ids_BT, clip_ids_BS = lesson
    pooled_BP = frozen.clip(clip_ids_BS)
    # Half the pooled vectors belong to another caption: the modulation learns to lean on time,
    # as FLUX's does, which is what makes a table over steps able to replace it.
    half = len(pooled_BP) // 2
    pooled_BP = torch.cat((pooled_BP[:half], pooled_BP[half:].roll(1, 0)))
    x_BSC = frozen.vae.encode(unit(pixels)).flatten(2).transpose(1, 2)
    return Batch(x_BSC.float(), frozen.t5(ids_BT), pooled_BP)


def routed(
    model: NanoFlux, x_BSC: Tensor, text_BTJ: Tensor, rows_BND: Tensor, rope: Rope, kept: Tensor
) -> Tensor:
    """The model's velocity when only the image tokens `kept` visit its middle blocks.

    TREAD (Krause et al., 2025): 30 % less work a step, and the outer blocks learn sooner.
    """
    doubles, singles = model.transformer_blocks, model.single_transformer_blocks
    *rows, last = rows_BND.split([12] * len(doubles) + [3] * len(singles) + [2], 1)
    length = text_BTJ.shape[1]
    x_BSD, y_BTD = model.x_embedder(x_BSC), model.context_embedder(text_BTJ)
    x_BSD, y_BTD = doubles[0](x_BSD, y_BTD, rows[0], rope)
    places = torch.cat((torch.arange(length, device=kept.device), kept + length))
    short = (rope[0][places], rope[1][places])
    x_kept = x_BSD[:, kept]
    for block, m in zip(doubles[1:], rows[1:], strict=False):
        x_kept, y_BTD = block(x_kept, y_BTD, m, short)
    h = torch.cat((y_BTD, x_kept), 1)
    for block, m in zip(singles[:-2], rows[len(doubles) :], strict=False):
        h = block(h, m, short)
    h = torch.cat((h[:, :length], x_BSD.index_copy(1, kept, h[:, length:])), 1)
    for block, m in zip(singles[-2:], rows[-2:], strict=True):
        h = block(h, m, rope)
    shift, scale = last.unbind(1)
    return model.proj_out(modulate(h[:, length:], shift, scale))


@dataclass(frozen=True)
class Phase:
    """What a step does beside plain flow matching: route tokens early, lean on guidance late."""

    routing: bool
    guidance: float


def phase_of(step: int, steps: int) -> Phase:
    """Routing for the first four fifths, guidance for the last quarter."""
    return Phase(step < 0.8 * steps, GUIDANCE if step >= 0.75 * steps else 0.0)


def flow_loss(
    model: NanoFlux, batch: Batch, rope: Rope, rng: torch.Generator, phase: Phase
) -> Tensor:
    """Mean squared error of the velocity at logit-normal times (SD3, section 3.1).

    With guidance, the target moves by the difference between the model's own answers to the
    caption and to the empty one, so that sampling needs one pass (model guidance, Tang et al.,
    2025). The batch's first row has the empty caption.
    """
    device, size = batch.x_BSC.device, len(batch.x_BSC)
    noise = torch.randn(batch.x_BSC.shape, generator=rng).to(device)
    t_B = torch.sigmoid(torch.randn(size, generator=rng) + 0.6).to(device)
    t = t_B[:, None, None]
    x = (1 - t) * batch.x_BSC + t * noise
    rows = model.modulations(t_B, batch.pooled_BP)
    if phase.routing:
        cells = x.shape[1]
        kept = torch.randperm(cells, generator=rng)[: cells // 2].to(device)
        velocity = routed(model, x, batch.text_BTJ, rows, rope, kept)
    else:
        velocity = model(x, batch.text_BTJ, rows, rope)
    target = noise - batch.x_BSC
    if phase.guidance:
        empty_BTJ = batch.text_BTJ[:1].expand_as(batch.text_BTJ)
        with torch.no_grad():
            target = target + phase.guidance * (velocity - model(x, empty_BTJ, rows, rope))
    return (velocity.float() - target.detach()).square().mean()


def new_teacher(seed: int) -> NanoFlux:
    """A teacher whose blocks start as the identity (AdaLN-Zero)."""
    torch.manual_seed(seed)
    model = NanoFlux(TINY_FLUX)
    for name, p in model.named_parameters():
        if ("norm" in name and "linear" in name) or name.startswith("proj_out"):
            nn.init.zeros_(p)
    return model


def train_teacher(
    model: NanoFlux,
    frozen: Frozen,
    words: Words,
    out: Path,
    batch: int,
    seed: int,
    config: TrainConfig,
) -> None:
    """Train the teacher in place; resumes from `out`."""
    for encoder in (frozen.vae, frozen.t5, frozen.clip):
        encoder.to(config.device)
    cos, sin = positions()
    rope = (cos.to(config.device), sin.to(config.device))

    def loss_of(lesson: Lesson, step: int) -> tuple[Tensor, dict[str, float]]:
        rng = torch.Generator().manual_seed(seed * STRIDE + step)
        phase = phase_of(step, config.steps)
        return flow_loss(model, encode_batch(frozen, lesson), rope, rng, phase), {}

    train(model, CaptionedScenes(seed, batch, words, 0.1), loss_of, config, out)
