"""What a denoiser has too much of, measured before anything is cut: the evidence for every cut.

One `Analysis` holds the numbers of all the paper's arguments: heads and channels that repeat each
other, single blocks that change little, modulation that hardly depends on the prompt.

Shapes: B prompts, P pooled width, T steps, N modulation rows, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanoflux_mobile.compress import importance, merging
from nanoflux_mobile.compress.redundancy import (
    Moments,
    energy_of_channels,
    energy_of_heads,
    kept_energy,
    second_moments,
    with_components,
)
from nanoflux_mobile.compress.static_ln import step_rows, to_static
from nanoflux_mobile.distill.desk import Desk, calibration, runs_of, with_network
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.evaluate.sampling import draw_many
from nanoflux_mobile.families.nanoflux import FluxParts
from nanoflux_mobile.families.nanoflux.flow import Noised, guidance, path_of
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.storage import write_file
from nanoflux_mobile.strict_json import from_plain, parse_json, to_plain

SHARES = ((1, 1), (2, 3), (1, 2), (1, 3), (1, 6))
"""Of a block's heads, as many components are drawn with; the second is the paper's 16 of 24."""
MOST_SETS = 4
"""Disjoint sets of prompts that tables of one size are made from."""

Curve = tuple[float, ...]
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Agreement:
    """PSNR in dB of velocities against the network as it is, with `count` of something.

    Of components there is one figure, of prompts one for each of several sets.
    """

    count: int
    db: Curve


@dataclass(frozen=True)
class Analysis:
    """Blocks are doubles first, `doubles` of them; energies are shares by how many are kept.

    head_energy: top 1 ... H components over the heads. loudest_heads: heads as they are instead.
    channel_energy: top 1 ... K directions in each head. components: velocities at SHARES of the
    heads. head_importance: mean squared change of the velocity per head gate.
    similarity: of single blocks. row_variance: at each step, for each block and the last norm, the
    variance of AdaLN's rows over prompts as a share of their mean square; empty for Static-LN, as
    `tables` is: velocities with a step table of so many prompts, on prompts of its own.
    """

    doubles: int
    head_energy: tuple[Curve, ...]
    loudest_heads: tuple[Curve, ...]
    channel_energy: tuple[Curve, ...]
    components: tuple[Agreement, ...]
    head_importance: tuple[Curve, ...]
    similarity: merging.Similarity
    sigmas: Curve
    row_variance: tuple[Curve, ...]
    tables: tuple[Agreement, ...]


def analyse(
    desk: Desk, parts: FluxParts, batches: int = 4, size: int = 20
) -> tuple[Analysis, Moments]:
    """Measure a denoiser on calibration batches; the moments are for `drawn_with_components`.

    Half of the batches are measured on. Tables take their prompts from the other half.
    """
    if batches < 2:
        raise InputError(f"batches is {batches}; give 2 or more, half of them make the tables")
    drawn = calibration(desk, parts, batches, size)
    judged, others = drawn[: batches // 2], drawn[batches // 2 :]
    runs, cfg = runs_of(desk, parts, judged), parts.flux
    moments = second_moments(parts.denoiser, runs)
    variance: tuple[Curve, ...] = ()
    tables: tuple[Agreement, ...] = ()
    if not cfg.static_steps:
        pooled_BP = torch.cat([batch.pooled_BP for batch in others])
        variance = row_variance(desk, parts, pooled_BP)
        tables = _tables(desk, parts, judged[:1], pooled_BP)
    found = Analysis(
        cfg.num_layers,
        _curves(kept_energy(block) for block in moments.heads),
        _curves(energy_of_heads(block) for block in moments.heads),
        _curves(energy_of_channels(block) for block in moments.channels),
        _components(parts, moments, runs),
        _curves(importance.measure(parts.denoiser, runs).heads),
        merging.measure(parts.denoiser, runs, parts.text_tokens),
        path_of(parts, desk.steps).sigmas,
        variance,
        tables,
    )
    return found, moments


def _curves(rows: Iterable[Tensor]) -> tuple[Curve, ...]:
    return tuple(tuple(row.tolist()) for row in rows)


def component_counts(heads: int) -> tuple[int, ...]:
    """SHARES of so many heads, all of them first."""
    return tuple(dict.fromkeys(max(1, heads * part // whole) for part, whole in SHARES))


def _components(parts: FluxParts, moments: Moments, runs: Sequence[Run]) -> tuple[Agreement, ...]:
    truth, found = _answers(runs), []
    for count in component_counts(parts.flux.num_attention_heads):
        with with_components(parts.denoiser, moments, count):
            found.append(Agreement(count, (psnr_db(_answers(runs), truth),)))
    return tuple(found)


@torch.no_grad()
def _answers(runs: Sequence[Run]) -> np.ndarray:
    return np.concatenate([run().cpu().numpy() for run in runs])


@torch.no_grad()
def row_variance(desk: Desk, parts: FluxParts, pooled_BP: Tensor) -> tuple[Curve, ...]:
    """At each step, for each block and the last norm: variance over prompts by mean square."""
    model, cfg, shares = parts.denoiser, parts.flux, []
    resampled = [2, 4] if cfg.downsamples else []
    counts = [12] * cfg.num_layers + [3] * cfg.num_single_layers + resampled + [2]
    for sigma in path_of(parts, desk.steps).sigmas:
        t_B = torch.full((len(pooled_BP),), sigma, device=pooled_BP.device)
        rows_BND = model.modulations(t_B, pooled_BP, guidance(model, len(pooled_BP))).double()
        moved_N = rows_BND.var(0, correction=0).sum(-1)
        whole_N = rows_BND.square().mean(0).sum(-1)
        pairs = zip(moved_N.split(counts), whole_N.split(counts), strict=True)
        shares.append(tuple((a.sum() / b.sum()).item() for a, b in pairs))
    return tuple(shares)


def _tables(
    desk: Desk, parts: FluxParts, judged: Sequence[Noised], pooled_BP: Tensor
) -> tuple[Agreement, ...]:
    """Velocities with tables of 1, 2, 4 ... prompts against AdaLN's own."""
    truth, found, count = _answers(runs_of(desk, parts, judged)), [], 1
    while count <= len(pooled_BP):
        sets = pooled_BP.split(count)[: min(MOST_SETS, len(pooled_BP) // count)]
        runs = (runs_of(desk, static(desk, parts, some), judged) for some in sets)
        found.append(Agreement(count, tuple(psnr_db(_answers(run), truth) for run in runs)))
        count *= 2
    return tuple(found)


def static(desk: Desk, parts: FluxParts, pooled_BP: Tensor) -> FluxParts:
    """The parts with a step table averaged over prompts, and no training."""
    denoiser = parts.networks.denoiser
    table_TND = step_rows(denoiser, path_of(parts, desk.steps).sigmas, pooled_BP)
    return with_network(parts, to_static(denoiser, table_TND))


def drawn_with_components(
    parts: FluxParts, moments: Moments, prompts: Sequence[str], seeds: Sequence[int], steps: int
) -> list[list[np.ndarray]]:
    """Pictures, uint8 (H, W, 3): a row for each prompt, a column for each of `component_counts`."""
    columns = []
    for count in component_counts(parts.flux.num_attention_heads):
        with with_components(parts.denoiser, moments, count):
            columns.append(list(draw_many(parts, prompts, seeds, steps)))
    return [list(row) for row in zip(*columns, strict=True)]


def save(analysis: Analysis, path: Path) -> None:
    """Write the numbers as JSON."""
    write_file(path, json.dumps(to_plain(analysis)) + "\n")


def load(path: Path) -> Analysis:
    """Read what `save` wrote; InputError names what is off."""
    try:
        return from_plain(Analysis, parse_json(path.read_text("utf-8")), path.name)
    except ValueError as broken:
        raise InputError(f"{path} holds no analysis: {broken}") from broken
