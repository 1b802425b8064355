"""How much the velocity depends on each head, hidden unit and residual channel.

A gate of one sits at every candidate. Its importance is the mean square of what the whole velocity
would change by if the gate moved: the diagonal of the Gauss-Newton matrix of a distillation loss,
estimated with random signs (Hutchinson), so it needs no labels and is not zero at the teacher.

Shapes: B batch, L tokens, D width, H heads, K head width, F hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nanoflux_mobile.models.nanoflux import NanoFlux


@dataclass(frozen=True)
class Importance:
    """Squared change of the velocity per gate, summed over samples; blocks are doubles first.

    residual: (D,); condition: (D,), zeros for a Static-LN network; heads: (H,) a block;
    units: (F,) a block; text_units: (F,) a double block.
    """

    residual: Tensor
    condition: Tensor
    heads: Sequence[Tensor]
    units: Sequence[Tensor]
    text_units: Sequence[Tensor]


@contextmanager
def inputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """While open, what enters each module, with its gradient kept; also for one's own study."""
    seen: dict[str, Tensor] = {}

    def watcher(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def watch(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            if x.requires_grad:
                x.retain_grad()
            seen[name] = x

        return watch

    handles = [m.register_forward_pre_hook(watcher(name)) for name, m in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def measure(
    model: NanoFlux, velocities: Iterable[Callable[[], Tensor]], seed: int = 0
) -> Importance:
    """Importance over some batches, each a call that runs `model` and gives its velocity."""
    watched = _watched(model)
    sums: dict[str, Tensor] = {}
    rng = torch.Generator().manual_seed(seed)
    for velocity in velocities:
        with inputs_of(watched) as seen, torch.enable_grad(), _trainable(model):
            v = velocity()
            signs = torch.randint(0, 2, v.shape, generator=rng).to(v) * 2 - 1
            (v * signs).sum().backward()
        for name, score in _scores(model, seen).items():
            sums[name] = sums.get(name, torch.zeros_like(score)) + score
        model.zero_grad(set_to_none=True)
    return _by_kind(model, sums)


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """Gradients flow through the first linears, so every state behind them has one."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


DOUBLE = {
    "image_heads": "attn.to_out.0",
    "text_heads": "attn.to_add_out",
    "units": "ff.net.2",
    "text_units": "ff_context.net.2",
    "stream": "",
}
SINGLE = {"joint": "proj_out", "stream": ""}
"""The modules of a block at whose inputs the gates sit."""


def _watched(model: NanoFlux) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for i, block in enumerate(model.transformer_blocks):
        found |= {f"{i}.{name}": block.get_submodule(path) for name, path in DOUBLE.items()}
    for j, block in enumerate(model.single_transformer_blocks, len(model.transformer_blocks)):
        found |= {f"{j}.{name}": block.get_submodule(path) for name, path in SINGLE.items()}
    if not model.cfg.static_steps:
        found["condition"] = model.norm_out
    return found


def _scores(model: NanoFlux, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Squared gradients of gates over a batch, summed over its samples; tokens share a gate."""
    cfg = model.cfg
    # What the velocity does not depend on has no gradient, as text after the last double block.
    moved = {n: x.detach() * (0 if x.grad is None else x.grad) for n, x in seen.items()}
    by_sample = {n: (m.sum(1) if m.ndim == 3 else m) for n, m in moved.items()}
    scores: dict[str, Tensor] = {}
    streams = [m for n, m in by_sample.items() if n.endswith(".stream")]
    scores["residual"] = torch.stack(streams).sum(0).square().sum(0)
    if "condition" in by_sample:
        scores["condition"] = by_sample["condition"].square().sum(0)
    for i in range(cfg.num_layers + cfg.num_single_layers):
        if i < cfg.num_layers:
            heads = by_sample[f"{i}.image_heads"] + by_sample[f"{i}.text_heads"]
            scores[f"{i}.units"] = by_sample[f"{i}.units"].square().sum(0)
            scores[f"{i}.text_units"] = by_sample[f"{i}.text_units"].square().sum(0)
        else:
            heads, units = by_sample[f"{i}.joint"].split([cfg.width, 4 * cfg.width], 1)
            scores[f"{i}.units"] = units.square().sum(0)
        heads_BH = heads.unflatten(1, (cfg.num_attention_heads, -1)).sum(2)
        scores[f"{i}.heads"] = heads_BH.square().sum(0)
    return scores


def _by_kind(model: NanoFlux, sums: dict[str, Tensor]) -> Importance:
    cfg = model.cfg
    blocks = range(cfg.num_layers + cfg.num_single_layers)
    return Importance(
        sums["residual"],
        sums.get("condition", torch.zeros(cfg.width)),
        [sums[f"{i}.heads"] for i in blocks],
        [sums[f"{i}.units"] for i in blocks],
        [sums[f"{i}.text_units"] for i in range(cfg.num_layers)],
    )
