"""Cut C4 of NanoFLUX: AdaLN becomes a table with one entry per scheduled step.

AdaLN's rows barely depend on the prompt, so their mean over a few prompts replaces them. Time
embedding, pooled-text embedding, the CLIP tower and every modulation projection then leave the
network (0.7 B of 2.5 B parameters in the paper).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from nanoflux_mobile.models.nanoflux import NanoFlux


@torch.no_grad()
def step_rows(model: NanoFlux, sigmas: Sequence[float], pooled_BP: Tensor) -> Tensor:
    """AdaLN's rows at each noise level, averaged over prompts: (steps, N, D).

    Every step has all rows: those of the token resamplers, too, where only low steps read them.
    `pooled_BP` holds the pooled text of the prompts; guidance-distilled models run at 3.5, the
    value FLUX.1-dev was released with.
    """
    guidance = torch.full((len(pooled_BP),), 3.5) if model.cfg.guidance_embeds else None
    times = [torch.full((len(pooled_BP),), float(sigma)) for sigma in sigmas]
    return torch.stack([model.modulations(t, pooled_BP, guidance).mean(0) for t in times])


def to_static(model: NanoFlux, table_TND: Tensor) -> NanoFlux:
    """The same trunk with a step table instead of AdaLN; it shares the trunk's weights."""
    cfg = dataclasses.replace(model.cfg, static_steps=len(table_TND), guidance_embeds=False)
    with torch.device("meta"):
        student = NanoFlux(cfg)
    kept = {k: v for k, v in model.state_dict().items() if k in student.state_dict()}
    student.load_state_dict({**kept, "step_table": table_TND}, strict=True, assign=True)
    return student.eval().requires_grad_(False)
