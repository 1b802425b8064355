"""Softmax attention on (1, H, K, S), written in the way that suits a runtime best.

batched: all heads in two rank-4 matmuls, no transposed layout.
per-head: two einsums for each head on its channels, (1, K, 1, S), and softmax over axis 1, as Apple
writes attention for the Neural Engine (apple/ml-stable-diffusion, `split_einsum`).
fused: torch's own function, which Core ML has as one operation from iOS 18 on and LiteRT's
converter takes apart.

The three agree to float32 rounding. benchmarks/attention_study has what each costs on every target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.graph import MobileGraph, rewritten
from nanoflux_export.rewrites.replacing import with_parts
from nanoflux_mobile.spec import Attention

Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def split_heads(x_BDOS: Tensor, heads: int) -> Tensor:
    """(1, D, 1, S) -> (1, H, K, S)."""
    _, width, _, length = x_BDOS.shape
    return x_BDOS.reshape(1, heads, width // heads, length)


class HeadAttention(nn.Module):
    """Softmax attention in the form of its name, without weights."""

    def __init__(self, form: Attention = "batched") -> None:
        super().__init__()
        self.form = form

    def forward(
        self, q_BHKS: Tensor, k_BHKT: Tensor, v_BHKT: Tensor, bias_OHST: Tensor | None = None
    ) -> Tensor:
        """The heads joined again, (1, D, 1, S).

        Unscaled: the factor 1/sqrt(K) belongs into the queries' weights. `bias_OHST` is added to
        the scores, one for each head or one for all. A single head of keys and values serves all
        queries.
        """
        return FORMS[self.form or "batched"](q_BHKS, k_BHKT, v_BHKT, bias_OHST)


def with_attention(graph: MobileGraph, form: Attention) -> MobileGraph:
    """The graph with every attention in it written in this form."""
    if form in ("", "batched"):
        return graph
    return rewritten(graph, lambda _, module: written(module, form), lambda _: form)


def written(module: nn.Module, form: Attention) -> nn.Module:
    """A copy of a module that shares its weights and writes attention in this form."""
    found = (path for path, part in module.named_modules() if isinstance(part, HeadAttention))
    return with_parts(module, {path: HeadAttention(form) for path in found})


def _batched(q_BHKS: Tensor, k_BHKT: Tensor, v_BHKT: Tensor, bias_OHST: Tensor | None) -> Tensor:
    heads = q_BHKS.shape[1]
    scores = q_BHKS.transpose(2, 3) @ _for_all(k_BHKT, heads)
    weights = torch.softmax(scores if bias_OHST is None else _biased(scores, bias_OHST), -1)
    return _joined(_for_all(v_BHKT, heads) @ weights.transpose(2, 3))


def _biased(scores_BHST: Tensor, bias_OHST: Tensor) -> Tensor:
    """The sum, with heads and queries on one axis while it is made.

    LiteRT's converter drops the batch of one from scores, and its GPU delegate then reads constants
    wrongly that vary along more than their last axis (tests/toolchains/test_gpu_delegate.py).
    """
    _, heads, queries, keys = scores_BHST.shape
    if bias_OHST.shape[1] != heads:
        return scores_BHST + bias_OHST
    rows = (1, heads * queries, 1, keys)
    return (scores_BHST.reshape(rows) + bias_OHST.reshape(rows)).reshape(scores_BHST.shape)


def _per_head(q_BHKS: Tensor, k_BHKT: Tensor, v_BHKT: Tensor, bias_OHST: Tensor | None) -> Tensor:
    if bias_OHST is not None:
        return _biased_per_head(q_BHKS, k_BHKT, v_BHKT, bias_OHST)
    heads, width = q_BHKS.shape[1:3]
    queries = _each_head(_joined(q_BHKS), heads, width, 1)
    keys = _each_head(_joined(k_BHKT).transpose(1, 3), heads, width, 3)
    values = _each_head(_joined(v_BHKT), heads, v_BHKT.shape[2], 1)
    parts = []
    for q_OKOS, k_OTOK, v_OKOT in zip(queries, keys, values, strict=True):
        scores_OTOS = torch.einsum("bchq,bkhc->bkhq", q_OKOS, k_OTOK)
        parts.append(torch.einsum("bkhq,bchk->bchq", torch.softmax(scores_OTOS, 1), v_OKOT))
    return torch.cat(parts, 1)


def _biased_per_head(q_BHKS: Tensor, k_BHKT: Tensor, v_BHKT: Tensor, bias_OHST: Tensor) -> Tensor:
    """The bias of all heads is one constant of a file, which cannot be cut: it is added to all."""
    heads = q_BHKS.shape[1]
    queries, keys, values = (_each_head(x, heads, 1, 1) for x in (q_BHKS, k_BHKT, v_BHKT))
    scores = [q.transpose(2, 3) @ k for q, k in zip(queries, keys, strict=True)]
    weights = torch.softmax(torch.cat(scores, 1) + bias_OHST, -1).split(1, 1)
    parts = [v @ w.transpose(2, 3) for v, w in zip(values, weights, strict=True)]
    return _joined(torch.cat(parts, 1))


def _fused(q_BHKS: Tensor, k_BHKT: Tensor, v_BHKT: Tensor, bias_OHST: Tensor | None) -> Tensor:
    heads, width = q_BHKS.shape[1:3]
    keys, values = _for_all(k_BHKT, heads), _for_all(v_BHKT, heads)
    q, k, v = (x.transpose(2, 3) for x in (q_BHKS, keys, values))
    scale: float | None = 1.0
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        # Core ML's operation divides by sqrt(K), and coremltools takes the function apart that has
        # a scale of its own. LiteRT's converter would fold the factor into the weights before it.
        q, scale = q * width**0.5, None
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_OHST, scale=scale)
    return _joined(mixed.transpose(2, 3))


FORMS: Mapping[Attention, Attend] = {"batched": _batched, "per-head": _per_head, "fused": _fused}
"""Every form by its name; each takes queries, keys, values and what is added to the scores."""


def _each_head(x: Tensor, heads: int, width: int, axis: int) -> list[Tensor]:
    """Pieces of `width` along an axis, one for each head; the only one again and again."""
    # litert_torch cannot split into one.
    return [x] * heads if x.shape[axis] == width else list(x.split(width, axis))


def _for_all(x_BHKT: Tensor, heads: int) -> Tensor:
    """Copies of a single head side by side, small beside the scores.

    A broadcast would be BROADCAST_TO, and a batch of one, with heads as more queries, LiteRT's
    converter takes for a dense layer and loses a transpose or an axis.
    """
    return x_BHKT if x_BHKT.shape[1] == heads else torch.cat([x_BHKT] * heads, 1)


def _joined(x_BHKS: Tensor) -> Tensor:
    """(1, H, K, S) -> (1, D, 1, S)."""
    _, heads, width, length = x_BHKS.shape
    return x_BHKS.reshape(1, heads * width, 1, length)
