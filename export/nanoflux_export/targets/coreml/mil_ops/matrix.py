"""MIL ops that multiply matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def einsum(*values: Tensor, equation: str) -> Tensor:
    """Products summed as the equation says."""
    return torch.einsum(equation, *values)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias; weight is [D_out, D_in]."""
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, *, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Matrix product over the last two axes, the rest broadcast."""
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """softmax(query key^T / sqrt(E) + mask) value over [..., L, E], [..., S, E], [..., S, EV]."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)
