"""How much heads say twice, and channels inside a head: the evidence behind cuts C1 and C2.

Per token a block's attention gives out H heads of K channels, softmax(QK^T)V, before the output
projection. Side by side, the outputs of all tokens are a matrix of H rows; where few singular
values hold its energy, few mixtures of heads say nearly all. The paper draws FLUX.1 with the top 16
of 24 and does not say how the matrix is put together: here each block has one basis for all tokens,
text and image together as they share its heads, and no mean is taken off.

Shapes: B batch, L tokens, N all of them, H heads, K head width, M heads or channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.nanoflux import NanoFlux

Change = Callable[[int, Tensor], Tensor]
"""A block's number, doubles first, and some of its head outputs (B, L, H, K) to what goes on."""


@dataclass(frozen=True)
class Moments:
    """Second moments of what heads give out, float64 on the CPU: an entry a block, doubles first.

    heads: head times head, summed over tokens and channels, (H, H).
    channels: channel times channel inside each head, summed over tokens, (H, K, K).
    """

    heads: Sequence[Tensor]
    channels: Sequence[Tensor]


@contextmanager
def _between(model: NanoFlux, change: Change) -> Iterator[None]:
    """While open, `change` stands between the heads of every block and their projection."""
    heads, width = model.cfg.num_attention_heads, model.cfg.width

    def hook(block: int) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
        def enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
            # The last linear of a single block reads hidden units after the heads.
            joint, rest = inputs[0][..., :width], inputs[0][..., width:]
            changed = change(block, joint.unflatten(-1, (heads, -1))).flatten(-2)
            return torch.cat((changed, rest), -1)

        return enter

    handles = [
        module.register_forward_pre_hook(hook(block))
        for block, modules in enumerate(_projections(model))
        for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _projections(model: NanoFlux) -> list[tuple[nn.Module, ...]]:
    doubles: list[Any] = list(model.transformer_blocks)
    singles: list[Any] = list(model.single_transformer_blocks)
    pairs = [(block.attn.to_add_out, block.attn.to_out[0]) for block in doubles]
    return pairs + [(block.proj_out,) for block in singles]


@torch.no_grad()
def second_moments(model: NanoFlux, velocities: Iterable[Callable[[], object]]) -> Moments:
    """Moments over some batches, each a call that runs `model`."""
    heads, channels = model.cfg.num_attention_heads, model.cfg.attention_head_dim
    blocks = range(len(_projections(model)))
    by_head = [torch.zeros(heads, heads, dtype=torch.float64) for _ in blocks]
    by_channel = [torch.zeros(heads, channels, channels, dtype=torch.float64) for _ in blocks]

    def add(block: int, out_BLHK: Tensor) -> Tensor:
        out_NHK = out_BLHK.flatten(0, 1).float()
        by_head[block] += torch.einsum("nhk,ngk->hg", out_NHK, out_NHK).double().cpu()
        by_channel[block] += torch.einsum("nhk,nhc->hkc", out_NHK, out_NHK).double().cpu()
        return out_BLHK

    with _between(model, add):
        for run in velocities:
            run()
    return Moments(by_head, by_channel)


def kept_energy(moments_MM: Tensor) -> Tensor:
    """Share of the energy in the top 1, 2 ... M directions, rising to 1; any axes may lead."""
    values = torch.linalg.eigvalsh(moments_MM).flip(-1).clamp(min=0)
    # Of nothing at all, every share is the whole.
    return (values.cumsum(-1) / values.sum(-1, keepdim=True)).nan_to_num(1.0)


def energy_of_heads(moments_HH: Tensor) -> Tensor:
    """The same where heads stay as they are: share of the loudest 1, 2 ... H of them."""
    values = moments_HH.diagonal(dim1=-2, dim2=-1).sort(descending=True).values
    return (values.cumsum(-1) / values.sum(-1, keepdim=True)).nan_to_num(1.0)


def energy_of_channels(moments_HKK: Tensor) -> Tensor:
    """Share of a block's energy where each head keeps its own top 1, 2 ... K directions: (K,)."""
    values_K = torch.linalg.eigvalsh(moments_HKK).flip(-1).clamp(min=0).sum(0)
    return (values_K.cumsum(0) / values_K.sum()).nan_to_num(1.0)


@contextmanager
def with_components(model: NanoFlux, moments: Moments, count: int) -> Iterator[None]:
    """While open, the heads of every block give out no more than their top `count` components.

    As many as there are heads change nothing but the last bits of a float.

    Raises:
        InputError: no components, or more than there are heads.
    """
    heads = model.cfg.num_attention_heads
    if not 0 < count <= heads:
        raise InputError(f"{count} components of {heads} heads; give 1 to {heads}")
    onto_HH = [_projector(block, count) for block in moments.heads]

    def project(block: int, out_BLHK: Tensor) -> Tensor:
        return torch.einsum("hg,blgk->blhk", onto_HH[block].to(out_BLHK), out_BLHK)

    with _between(model, project):
        yield


def _projector(moments_HH: Tensor, count: int) -> Tensor:
    top = torch.linalg.eigh(moments_HH).eigenvectors[:, -count:]
    return top @ top.T
