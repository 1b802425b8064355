"""Importance by the size of weights alone: the classic of pruning, here to compare with.

A channel, head or hidden unit counts by the squares of all weights that read or write it. Nothing
runs, and tensors are read one at a time.

Shapes: D width, H heads, K head width, F hidden units.
"""

from __future__ import annotations

import re
from collections import defaultdict

import torch
from torch import Tensor

from nanoflux_mobile.compress.importance import Importance
from nanoflux_mobile.compress.narrowing import AXES, BLOCK
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.weights import Network

Sums = dict[str, Tensor]


def magnitudes(network: Network[NanoFlux]) -> Importance:
    """Sums of squared weights for every candidate of a cut, in the form of measured importance."""
    cfg, sums = network.skeleton.cfg, defaultdict[str, Tensor](lambda: torch.zeros(()))
    for name in network.weights:
        kinds = next(axes for pattern, axes in AXES if re.fullmatch(pattern, name))
        squares = network.tensor(name).double().square()
        for axis, kind in enumerate(kinds):
            if kind:
                along = squares.movedim(axis, 0).flatten(1).sum(1) if squares.ndim > 1 else squares
                _add(sums, kind, _block(name, cfg), along, cfg)
    blocks = range(cfg.num_layers + cfg.num_single_layers)
    heads, width = cfg.num_attention_heads, cfg.attention_head_dim
    return Importance(
        sums["residual"],
        sums["condition"] + torch.zeros(cfg.width),
        [sums[f"{i}.values"].view(heads, width).sum(1) for i in blocks],
        [sums[f"{i}.units"] for i in blocks],
        [sums[f"{i}.text_units"] for i in range(cfg.num_layers)],
    )


def _block(name: str, cfg: FluxConfig) -> int:
    """The number of a tensor's block, doubles first; -1 outside of blocks."""
    found = BLOCK.match(name)
    if found is None:
        return -1
    return int(found[2]) + (cfg.num_layers if found[1].startswith("single") else 0)


def _add(sums: Sums, kind: str, block: int, along: Tensor, cfg: FluxConfig) -> None:
    if kind == "rows":
        sums["residual"] = sums["residual"] + along.view(-1, cfg.width).sum(0)
    elif kind in ("residual", "condition", "embedder"):
        sums[kind] = sums[kind] + along
    elif kind == "values+units":
        _add(sums, "values", block, along[: cfg.width], cfg)
        _add(sums, "units", block, along[cfg.width :], cfg)
    else:
        sums[f"{block}.{kind}"] = sums[f"{block}.{kind}"] + along
