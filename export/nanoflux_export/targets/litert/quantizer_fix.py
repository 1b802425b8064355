"""Mends for ai-edge-quantizer 0.10: large convolution weights, and memory for large pictures.

Convolution weights of more than 32 MiB: above that size it quantises in pieces of a matrix, but
spreads the scales of a rank-4 weight over that matrix as they are, which numpy refuses. Giving
weight and scales the same two axes first changes nothing else: same values, same pieces.

Ranges: given those of activations, it looks through them for empty ones with an interpreter that
allocates every tensor of the graph at once, gigabytes for a decoder. Ours are never empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def big_convolutions_quantise() -> Iterator[None]:
    """Inside the block, the quantiser takes rank-4 weights of any size."""
    from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor as module

    original = module.uniform_quantize
    module.uniform_quantize = _by_rows(original)
    try:
        yield
    finally:
        module.uniform_quantize = original


def keep_tensors_apart(quantizer: Any) -> None:
    """Let a `Quantizer` take ranges as they are."""
    quantizer._ensure_model_qsv_sufficient = lambda ranges: None


def _by_rows(original: Callable[..., Any]) -> Callable[..., Any]:
    def uniform_quantize(data: np.ndarray, params: Any, is_blockwise_quant: bool = False) -> Any:
        per_row = data.ndim > 2 and params.quantized_dimension == 0 and not is_blockwise_quant
        if not per_row:
            return original(data, params, is_blockwise_quant)
        rows = len(data)
        flat = dataclasses.replace(
            params,
            scale=params.scale.reshape(rows, 1),
            zero_point=params.zero_point.reshape(rows, 1),
        )
        return original(data.reshape(rows, -1), flat).reshape(data.shape)

    return uniform_quantize
