"""Rotary embedding on halves instead of interleaved pairs.

FLUX rotates channels (0, 1), (2, 3), ... of a head, which needs a rank-5 reshape that LiteRT's GPU
delegate rejects and Core ML lowers to stacks. Putting the even channels first, by reordering the
rows that produce queries and keys, turns it into slices and one concat; scores do not change,
because queries and keys are reordered alike.
"""

from __future__ import annotations

import torch
from torch import Tensor


def evens_first(head_width: int) -> Tensor:
    """Order of one head's channels that puts even ones first: 0, 2, ..., 1, 3, ..."""
    return torch.cat((torch.arange(0, head_width, 2), torch.arange(1, head_width, 2)))


def evens_first_rows(heads: int, head_width: int) -> Tensor:
    """The same order for all rows of a query or key projection."""
    starts = torch.arange(heads)[:, None] * head_width
    return (starts + evens_first(head_width)).flatten()


def rotate_halves(x_BHKS: Tensor, cos_OOFS: Tensor, sin_OOFS: Tensor) -> Tensor:
    """Rotate (first half, second half) of axis 2 by tables (1, 1, K/2, S)."""
    half = x_BHKS.shape[2] // 2
    a, b = x_BHKS[:, :, :half], x_BHKS[:, :, half:]
    return torch.cat((a * cos_OOFS - b * sin_OOFS, a * sin_OOFS + b * cos_OOFS), 2)
