"""Stage of cut C2: fewer channels in every head, taught by the student before and the source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanoflux_mobile.compress.features import cut_features, first_channels, value_bases
from nanoflux_mobile.compress.importance import measure
from nanoflux_mobile.compress.redundancy import second_moments
from nanoflux_mobile.distill.desk import Desk, calibration, check_full, runs_of, with_network
from nanoflux_mobile.distill.plan import share_of
from nanoflux_mobile.distill.teaching import Phase, taught
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families.nanoflux import FluxParts


@dataclass(frozen=True)
class Settings:
    """channels: how many stay in each head, a count or a share. choose: the first ones, or the SVD
    of what each head gives out and, for all else, importance. train: phases, in order."""

    channels: str = "3/4"
    choose: Literal["first", "svd"] = "svd"
    train: tuple[Phase, ...] = ()


def outline(parts: FluxParts, settings: Settings) -> FluxParts:
    """The parts after the cut with first channels; nothing is read, so it checks a plan."""
    channels = _channels(parts, settings)
    bases = first_channels(parts.flux, channels)
    return with_network(parts, cut_features(parts.networks.denoiser, channels, bases))


def _channels(parts: FluxParts, settings: Settings) -> int:
    check_full(parts)
    present = parts.flux.attention_head_dim
    channels = share_of(settings.channels, present, "channels")
    if not 0 < channels < present:
        raise InputError(
            f"channels are to become {channels}, but heads have {present}; "
            f"give an even number below {present}"
        )
    return channels


def cut(desk: Desk, settings: Settings) -> FluxParts:
    """The student before any training."""
    if settings.choose == "first":
        return outline(desk.before, settings)
    before, channels = desk.before, _channels(desk.before, settings)
    runs = runs_of(desk, before, calibration(desk, before, 8, 20))
    measured = measure(before.denoiser, runs)
    bases = value_bases(second_moments(before.denoiser, runs).channels, channels)
    return with_network(before, cut_features(before.networks.denoiser, channels, bases, measured))


def train(desk: Desk, parts: FluxParts, settings: Settings, out: Path) -> FluxParts:
    """The student after every phase."""
    return taught(desk, parts, settings.train, out)
