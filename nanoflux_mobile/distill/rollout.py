"""What a denoiser makes of two encoders' states while it draws: the roll-out of the text cut.

Starting from noise, the frozen denoiser samples a picture from the student's states. At every step
from a random cut-off on it also meets the teacher's states at the same latents, and the loss is how
far the prompt tokens of both lie apart after its first double blocks:

L = sum over steps and blocks i of alpha_i |h_i(p_S) - h_i(p_T)|^2, alpha = (0.1, 0.1, 0.1)

Blocks after the third are left out because it blows up the prompt tokens' norms, and what agrees
there agrees from there on. Not published, so chosen here: |.|^2 is a mean over prompts, tokens and
channels, every step is as likely a cut-off as any other, and the latents are constants. A gradient
through them would run through the whole denoiser at every step and punish, at a late step, what
only an earlier one can mend.

Shapes: B batch, S image tokens, T text tokens, C token channels, J text width, D denoiser width,
N modulation rows, P pooled width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nanoflux_mobile.families.nanoflux.flow import Noised, Path, rows, velocity
from nanoflux_mobile.models.nanoflux import NanoFlux

ROWS = 12
"""Modulation rows of a double block."""


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts as the denoiser reads them: the student's states, the teacher's, pooled
    text; the last is looked at by AdaLN only."""

    text_BTJ: Tensor
    taught_BTJ: Tensor
    pooled_BP: Tensor


def cut_off(steps: int, rng: torch.Generator) -> int:
    """The first of `steps` that counts, from 0: any of them, all alike."""
    return int(torch.randint(steps, (), generator=rng))


def prompt_states(model: NanoFlux, batch: Noised, path: Path, blocks: int) -> list[Tensor]:
    """The prompt tokens after each of the first `blocks` double blocks, each (B, T, D).

    No other block runs. All double blocks come before any token downsampling, so low steps are
    like full ones.
    """
    with torch.no_grad():
        found_BND = rows(model, batch)
    by_block = found_BND[:, : ROWS * blocks].split(ROWS, 1)
    x_BSD, y_BTD = model.x_embedder(batch.x_BSC), model.context_embedder(batch.text_BTJ)
    found = []
    for block, m in zip(model.transformer_blocks[:blocks], by_block, strict=True):
        x_BSD, y_BTD = block(x_BSD, y_BTD, m, path.rope)
        found.append(y_BTD)
    return found


@torch.no_grad()
def walk(model: NanoFlux, noise_BSC: Tensor, prompts: Prompts, path: Path) -> Iterator[Noised]:
    """The batch that the denoiser meets at every step of sampling by the student's states.

    Nothing in it has a gradient, and what follows from the last step is not computed.
    """
    x_BSC, text_BTJ, count = noise_BSC, prompts.text_BTJ.detach(), len(noise_BSC)
    for step, sigma in enumerate(path.sigmas):
        step_B = torch.full((count,), step, device=x_BSC.device)
        t_B = torch.full((count,), sigma, device=x_BSC.device)
        batch = Noised(x_BSC, step_B, t_B, text_BTJ, prompts.pooled_BP, x_BSC)
        yield batch
        if step + 1 < len(path.sigmas):
            x_BSC = x_BSC + (path.sigmas[step + 1] - sigma) * velocity(model, batch, path)


def block_gap(
    model: NanoFlux, batch: Noised, taught_BTJ: Tensor, path: Path, alphas: Sequence[float]
) -> Tensor:
    """L at one step: `batch` carries the student's states, `taught_BTJ` are the teacher's."""
    ours = prompt_states(model, batch, path, len(alphas))
    with torch.no_grad():
        theirs = prompt_states(model, replace(batch, text_BTJ=taught_BTJ), path, len(alphas))
    gaps = [(a.float() - b.float()).square().mean() for a, b in zip(ours, theirs, strict=True)]
    return torch.stack([alpha * gap for alpha, gap in zip(alphas, gaps, strict=True)]).sum()


def rollout_loss(
    model: NanoFlux,
    noise_BSC: Tensor,
    prompts: Prompts,
    path: Path,
    alphas: Sequence[float],
    cut: int,
) -> Tensor:
    """L of a whole roll-out, differentiable in the student's states alone.

    Each step's gradient is taken as soon as its loss is known, so memory holds one step's blocks
    and not those of all steps.

    Args:
        model: the denoiser, its parameters frozen.
        noise_BSC: where sampling starts.
        prompts: in both encoders' words.
        path: the schedule that the denoiser draws with.
        alphas: the weight of each of the first double blocks.
        cut: the first step that counts.
    """
    text_BTJ, total = prompts.text_BTJ, torch.zeros((), device=noise_BSC.device)
    leaf_BTJ = text_BTJ.detach().requires_grad_()
    gradient_BTJ = torch.zeros_like(leaf_BTJ)
    for step, batch in enumerate(walk(model, noise_BSC, prompts, path)):
        if step < cut:
            continue
        own = replace(batch, text_BTJ=leaf_BTJ)
        gap = block_gap(model, own, prompts.taught_BTJ, path, alphas)
        gradient_BTJ += torch.autograd.grad(gap, leaf_BTJ)[0]
        total += gap.detach()
    # The second term is zero; its gradient is the one that was gathered.
    return total + ((text_BTJ - text_BTJ.detach()) * gradient_BTJ).sum()
