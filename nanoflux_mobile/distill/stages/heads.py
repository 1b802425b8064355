"""Stage of cut C1: fewer heads and a narrower residual stream, taught by the teacher's heads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanoflux_mobile.compress.heads import check_heads, cut_heads, most_important
from nanoflux_mobile.compress.importance import measure
from nanoflux_mobile.distill.desk import Desk, calibration, check_full, runs_of, with_network
from nanoflux_mobile.distill.plan import share_of
from nanoflux_mobile.distill.teaching import Phase, taught
from nanoflux_mobile.families.nanoflux import FluxParts


@dataclass(frozen=True)
class Settings:
    """heads: how many stay, a count or a share. choose: the first ones, as the paper does, or the
    most important in each block. train: phases, in order."""

    heads: str = "2/3"
    choose: Literal["first", "importance"] = "first"
    train: tuple[Phase, ...] = ()


def outline(parts: FluxParts, settings: Settings) -> FluxParts:
    """The parts after the cut with the paper's choice; nothing is read, so it checks a plan."""
    return with_network(parts, cut_heads(parts.networks.denoiser, _heads(parts, settings)))


def _heads(parts: FluxParts, settings: Settings) -> int:
    check_full(parts)
    heads = share_of(settings.heads, parts.flux.num_attention_heads, "heads")
    check_heads(parts.flux, heads)
    return heads


def cut(desk: Desk, settings: Settings) -> FluxParts:
    """The student before any training."""
    if settings.choose == "first":
        return outline(desk.before, settings)
    heads, before = _heads(desk.before, settings), desk.before
    measured = measure(before.denoiser, runs_of(desk, before, calibration(desk, before, 8, 20)))
    kept = most_important(before.flux, heads, measured)
    return with_network(before, cut_heads(before.networks.denoiser, heads, kept))


def train(desk: Desk, parts: FluxParts, settings: Settings, out: Path) -> FluxParts:
    """The student after every phase."""
    return taught(desk, parts, settings.train, out)
