"""Cut C4 of NanoFLUX: AdaLN becomes a table with one entry per scheduled step.

AdaLN's rows barely depend on the prompt, so their mean over a few prompts replaces them. Time
embedding, pooled-text embedding, the CLIP tower and every modulation projection then leave the
network (0.7 B of 2.5 B parameters in the paper). Networks may be larger than memory.

Shapes: B prompts, P pooled width, T steps, N modulation rows, D width.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nanoflux_mobile.models._blocks import Rows
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.weights import Network, in_memory

GUIDANCE = 3.5
"""The scale that FLUX.1-dev was released with."""


@torch.no_grad()
def step_rows(network: Network[NanoFlux], sigmas: Sequence[float], pooled_BP: Tensor) -> Tensor:
    """AdaLN's rows at each noise level, averaged over prompts: (T, N, D).

    Every step has all rows: those of the token resamplers, too, where only low steps read them.
    `pooled_BP` holds the pooled text of the prompts; guidance-distilled models run at GUIDANCE. Of
    each block only the modulation is read, and one block's at a time.
    """
    cfg, batch = network.skeleton.cfg, len(pooled_BP)
    guidance = torch.full((batch,), GUIDANCE) if cfg.guidance_embeds else None
    embed = network.piece("time_text_embed")
    states = [embed(torch.full((batch,), float(s)), pooled_BP, guidance) for s in sigmas]
    rows = [[part.rows(c_BD).mean(0) for c_BD in states] for part in _modulated(network)]
    last = network.piece("norm_out")
    rows.append([last(c_BD).flip(1).mean(0) for c_BD in states])
    return torch.stack([torch.cat(step) for step in zip(*rows, strict=True)])


def _modulated(network: Network[NanoFlux]) -> Iterator[Any]:
    """The parts in the order of their rows, with no weights but those of their modulation."""
    for path in _paths(network.skeleton.cfg):
        part = copy.deepcopy(network.skeleton.get_submodule(path))
        for name, module in list(part.named_modules()):
            if isinstance(module, Rows):
                part.set_submodule(name, network.piece(f"{path}.{name}"))
        yield part


def _paths(cfg: FluxConfig) -> list[str]:
    doubles = [f"transformer_blocks.{i}" for i in range(cfg.num_layers)]
    singles = [f"single_transformer_blocks.{i}" for i in range(cfg.num_single_layers)]
    return doubles + singles + (["downsampler", "upsampler"] if cfg.downsamples else [])


def to_static(network: Network[NanoFlux], table_TND: Tensor) -> Network[NanoFlux]:
    """The same trunk with a step table instead of AdaLN; nothing of the trunk is read."""
    cfg = network.skeleton.cfg
    with torch.device("meta"):
        cut = dataclasses.replace(cfg, static_steps=len(table_TND), guidance_embeds=False)
        skeleton = NanoFlux(cut).eval().requires_grad_(False)
    kept = {name: network.weights[name] for name in skeleton.state_dict() if name != "step_table"}
    return Network(skeleton, {**kept, "step_table": in_memory(table_TND)})
