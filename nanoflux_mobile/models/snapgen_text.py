"""What the SnapGen UNet reads of a prompt: the states of several encoders as one sequence.

Shapes: B batch, T text tokens, J text width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEXT_WIDTHS = (768, 1280, 2304)
"""Widths of CLIP-L, CLIP-G and Gemma-2-2B states."""


def join_context(
    clip_l: Tensor | None,
    clip_g: Tensor | None,
    gemma: Tensor | None,
    widths: tuple[int, int, int] = TEXT_WIDTHS,
) -> Tensor:
    """Text states of any encoders at hand as one sequence of Gemma's width, (B, T, J).

    The two CLIPs share their tokens: their states lie side by side in the channels, CLIP-L first,
    with zeros up to J. If one of them is absent its channels are zeros; if both are, there are no
    CLIP tokens. Gemma's tokens follow, none if it is absent.

    Args:
        clip_l: (B, 77, 768) or None.
        clip_g: (B, 77, 1280) or None.
        gemma: (B, any, 2304) or None.
        widths: of the three encoders, for students of other ones.

    Raises:
        ValueError: all are absent, or the last axis is not the encoder's width.
    """
    given = (clip_l, clip_g, gemma)
    for name, states, width in zip(("clip_l", "clip_g", "gemma"), given, widths, strict=True):
        if states is not None and states.shape[-1] != width:
            raise ValueError(f"{name} has {states.shape[-1]} channels; its width is {width}")
    left, right, whole = widths
    margins = ((clip_l, (0, whole - left)), (clip_g, (left, whole - left - right)))
    clips = [F.pad(states, margin) for states, margin in margins if states is not None]
    sequences = [torch.stack(clips).sum(0)] if clips else []
    if gemma is not None:
        sequences.append(gemma)
    if not sequences:
        raise ValueError("clip_l, clip_g and gemma are all absent; give at least one")
    return torch.cat(sequences, 1)


class ContextProjection(nn.Module):
    """Text states of another width, projected and normed."""

    def __init__(self, cin: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(cin, width)
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, text_BTC: Tensor) -> Tensor:
        """(B, T, cin) -> (B, T, J)."""
        return self.norm(self.linear(text_BTC))
