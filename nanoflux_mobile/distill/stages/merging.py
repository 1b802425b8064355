"""Stage of cut C3: similar single blocks become one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanoflux_mobile.compress.merging import (
    Runs,
    check_blocks,
    deleted,
    measure,
    merged,
    one_run,
    similar_runs,
)
from nanoflux_mobile.distill.desk import Desk, calibration, runs_of, with_network
from nanoflux_mobile.distill.plan import share_of
from nanoflux_mobile.distill.teaching import Phase, taught
from nanoflux_mobile.families.nanoflux import FluxParts


@dataclass(frozen=True)
class Settings:
    """blocks: how many single blocks stay, a count or a share. how: average the parameters of each
    run, or delete all but its first block. first: where the one run begins; -1 joins neighbours
    where they are most similar instead. train: phases, in order."""

    blocks: str = "24/38"
    how: Literal["average", "delete"] = "average"
    first: int = -1
    train: tuple[Phase, ...] = ()


def outline(parts: FluxParts, settings: Settings) -> FluxParts:
    """The parts after the cut, one run wherever; nothing is read, so it checks a plan."""
    return _joined(parts, settings, _one(parts, settings, max(0, settings.first)))


def _blocks(parts: FluxParts, settings: Settings) -> int:
    present = parts.flux.num_single_layers
    blocks = share_of(settings.blocks, present, "blocks")
    check_blocks(present, blocks)
    return blocks


def _one(parts: FluxParts, settings: Settings, first: int) -> Runs:
    present, blocks = parts.flux.num_single_layers, _blocks(parts, settings)
    return one_run(present, first, first + present - blocks + 1)


def _joined(parts: FluxParts, settings: Settings, runs: Runs) -> FluxParts:
    ways = {"average": merged, "delete": deleted}
    return with_network(parts, ways[settings.how](parts.networks.denoiser, runs))


def cut(desk: Desk, settings: Settings) -> FluxParts:
    """The student before any training."""
    before = desk.before
    if settings.first >= 0:
        return outline(before, settings)
    runs = runs_of(desk, before, calibration(desk, before, 4, 20))
    similarity = measure(before.denoiser, runs, before.text_tokens)
    return _joined(before, settings, similar_runs(similarity, _blocks(before, settings)))


def train(desk: Desk, parts: FluxParts, settings: Settings, out: Path) -> FluxParts:
    """The student after every phase."""
    return taught(desk, parts, settings.train, out)
