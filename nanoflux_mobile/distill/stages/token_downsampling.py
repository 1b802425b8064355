"""Stage of Progressive Token Downsampling: D moves back a block at a time, then all is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanoflux_mobile.compress.token_downsampling import downsampled
from nanoflux_mobile.distill.desk import Desk, with_network
from nanoflux_mobile.distill.teaching import Phase, taught, teach
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families.nanoflux import FluxParts
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.token_resampling import half_grid
from nanoflux_mobile.weights import Network


@dataclass(frozen=True)
class Settings:
    """start: the first low single block in the end. stride: how many blocks D moves at a time.
    share: of the sampling, from its noisy end, that runs low. separable: the form of the
    resamplers' convolutions. skip: whether image tokens also go round the low blocks. absorb: the
    phase at every place of D, in which the blocks it has just absorbed and D itself learn, and in
    the first one U and the projections. train: phases of everything, in order; the paper has one.
    """

    absorb: Phase
    start: int = 1
    stride: int = 1
    share: float = 0.5
    separable: bool = False
    skip: bool = False
    train: tuple[Phase, ...] = ()


def outline(parts: FluxParts, settings: Settings) -> FluxParts:
    """The parts with resamplers at their final place; nothing is read, so it checks a plan."""
    canvas = parts.canvas
    try:
        half_grid((canvas.height // canvas.patch, canvas.width // canvas.patch))
    except ValueError as odd:
        raise InputError(f"token downsampling: {odd}") from odd
    if settings.stride < 1:
        raise InputError(f"stride is {settings.stride}; give a whole number from 1")
    network = parts.networks.denoiser
    return with_network(parts, _downsampled(network, settings.start, settings))


def _downsampled(
    network: Network[NanoFlux], start: int, settings: Settings, seed: int = 0
) -> Network[NanoFlux]:
    form = settings.separable, settings.skip
    return downsampled(network, start, settings.share, seed, *form)


def places(single_blocks: int, settings: Settings) -> list[int]:
    """Where D stands, stage by stage: before the last block first, `start` at last."""
    steps = list(range(single_blocks - 1, settings.start, -settings.stride))
    return [*steps, settings.start]


def cut(desk: Desk, settings: Settings) -> FluxParts:
    """The student before any training, D and U put in at their final place at once."""
    return outline(desk.before, settings)


def train(desk: Desk, parts: FluxParts, settings: Settings, out: Path) -> FluxParts:
    """The student after D has come to its place step by step, and after every phase."""
    blocks = desk.before.flux.num_single_layers
    student, last = desk.before, blocks
    for number, start in enumerate(places(blocks, settings)):
        network = _downsampled(student.networks.denoiser, start, settings, desk.seed)
        student = with_network(student, network)
        learning = [f"single_transformer_blocks.{i}." for i in range(start, last)]
        learning += ["downsampler."] + ([] if number else ["upsampler.", "proj_out."])
        names = network.skeleton.state_dict()
        frozen = [n for n in names if not n.startswith(tuple(learning)) and n != "step_table"]
        student = teach(desk, student, settings.absorb, out / f"from-{start}", frozen)
        last = start
    return taught(desk, student, settings.train, out)
