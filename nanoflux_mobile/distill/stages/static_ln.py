"""Stage of cut C4: AdaLN becomes a table over steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from nanoflux_mobile.compress.static_ln import to_static
from nanoflux_mobile.distill.desk import Desk, with_network
from nanoflux_mobile.distill.teaching import Phase, taught
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families.nanoflux import FluxParts, make_student


@dataclass(frozen=True)
class Settings:
    """prompts: the table is averaged over their rows; two suffice. train: phases, in order."""

    prompts: tuple[str, ...]
    train: tuple[Phase, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an average over nothing."""
        if not self.prompts:
            raise ValueError("prompts is empty; give at least one caption, better two")


def outline(parts: FluxParts, settings: Settings) -> FluxParts:
    """The parts with an empty table of one step; nothing is read, so it checks a plan."""
    if parts.flux.static_steps:
        raise InputError("this network has a step table already; it cannot be cut again")
    cfg = parts.flux
    table = torch.zeros(1, cfg.modulation_rows, cfg.width)
    return with_network(parts, to_static(parts.networks.denoiser, table))


def cut(desk: Desk, settings: Settings) -> FluxParts:
    """The student before any training."""
    return bare(desk.before, settings, desk.steps)


def bare(parts: FluxParts, settings: Settings, steps: int) -> FluxParts:
    """The parts with a table for `steps`; of every block only the modulation is read."""
    return make_student(parts, steps, settings.prompts)


def train(desk: Desk, parts: FluxParts, settings: Settings, out: Path) -> FluxParts:
    """The student after every phase."""
    return taught(desk, parts, settings.train, out)
