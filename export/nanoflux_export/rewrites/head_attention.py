"""Attention of all heads as two batched matmuls on (1, H, K, S): rank 4, no transposed layout.

Core ML keeps a fifth of the operations of the one-einsum-per-head form; neither runtime sees a
fused attention, which Neural Engine compilers drop to the CPU (stablehlo-coreml PR 89).
"""

from __future__ import annotations

import torch
from torch import Tensor


def split_heads(x_BDOS: Tensor, heads: int) -> Tensor:
    """(1, D, 1, S) -> (1, H, K, S)."""
    _, width, _, length = x_BDOS.shape
    return x_BDOS.reshape(1, heads, width // heads, length)


def attend(q_BHKS: Tensor, k_BHKS: Tensor, v_BHKS: Tensor, bias_OHSS: Tensor | None) -> Tensor:
    """Softmax attention, unscaled: the factor 1/sqrt(K) belongs into the queries' weights.

    Returns the heads joined again, (1, D, 1, S); `bias_OHSS` is added to the scores.
    """
    scores = q_BHKS.transpose(2, 3) @ k_BHKS
    weights = torch.softmax(scores if bias_OHSS is None else scores + bias_OHSS, -1)
    joined = v_BHKS @ weights.transpose(2, 3)
    _, heads, width, length = joined.shape
    return joined.reshape(1, heads * width, 1, length)
