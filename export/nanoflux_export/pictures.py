"""Drawing with whatever a path holds, and PNG files that say how they were made."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nanoflux_export.bundle import bundle_token_ids, open_bundle, saved_graphs, step_tables
from nanoflux_export.golden import Request, draw_request
from nanoflux_mobile import __version__, plugins
from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.drawing import Graphs
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import FILE
from nanoflux_mobile.storage import write_file

DEFAULT_STEPS = 10
SEEDS = 2**64


@dataclass(frozen=True)
class Painter:
    """Something that draws: its graphs, how it turns a prompt into a request, what it is.

    `steps` is fixed for students and bundles, whose step table was made for one schedule; None
    for AdaLN teachers.
    """

    name: str
    digest: str
    graphs: Graphs
    request: Callable[[str, int, int], Request]
    steps: int | None


@dataclass(frozen=True)
class Picture:
    """A drawn prompt: uint8 pixels (H, W, 3)."""

    prompt: str
    seed: int
    steps: int
    pixels: np.ndarray


def open_painter(path: Path) -> Painter:
    """A painter for a bundle (its saved files run) or a checkpoint folder (PyTorch runs)."""
    if (path / FILE).is_file():
        return _bundle_painter(path)
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise InputError(
            f"{path} is neither a bundle (no {FILE}) nor a checkpoint (no model_index.json)"
        )
    return _checkpoint_painter(path)


def _bundle_painter(path: Path) -> Painter:
    bundle = open_bundle(path)
    tables = step_tables(bundle)

    def request(prompt: str, seed: int, steps: int) -> Request:
        ids = bundle_token_ids(bundle, prompt)
        return Request(ids, tables, bundle.schedule, bundle.canvas, seed)

    return Painter(
        path.name, bundle.manifest.digest, saved_graphs(bundle), request, bundle.schedule.steps
    )


def _checkpoint_painter(path: Path) -> Painter:
    opened = open_checkpoint(path)
    family = plugins.load("nanoflux_mobile.families", opened.family)
    parts = family.load(opened)

    def request(prompt: str, seed: int, steps: int) -> Request:
        ids = family.token_ids(parts, prompt)
        tables = family.step_tables(parts, prompt, steps)
        return Request(ids, tables, family.noise_levels(parts, steps), parts.canvas, seed)

    return Painter(
        path.name, opened.digest(), family.graphs(parts), request, family.fixed_steps(parts)
    )


def paint(
    painter: Painter,
    prompt: str,
    seed: int,
    steps: int | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Picture:
    """One picture. InputError for a seed out of range or a step count the painter cannot run."""
    if not 0 <= seed < SEEDS:
        raise InputError(f"seed is {seed}; accepted: 0 to 2**64 - 1")
    count = steps or painter.steps or DEFAULT_STEPS
    if painter.steps not in (None, count):
        raise InputError(
            f"{painter.name} was made for {painter.steps} steps, not {count}; leave --steps out, "
            f"or export again with --set steps={count}"
        )
    request = painter.request(prompt, seed, count)
    drawing = draw_request(painter.graphs, request, on_step)
    return Picture(prompt, seed, count, drawing.pixels())


def png(picture: Picture, painter: Painter) -> bytes:
    """The picture as PNG, with prompt, seed, steps and the digest of what drew it as metadata."""
    notes = PngInfo()
    for key, value in {
        "prompt": picture.prompt,
        "seed": str(picture.seed),
        "steps": str(picture.steps),
        "source": painter.name,
        "digest": painter.digest,
        "software": f"nanoflux-mobile {__version__}",
    }.items():
        notes.add_itxt(key, value)
    memory = io.BytesIO()
    Image.fromarray(picture.pixels).save(memory, "PNG", pnginfo=notes)
    return memory.getvalue()


def save_png(picture: Picture, painter: Painter, path: Path) -> None:
    """Write the PNG; it appears whole or not at all."""
    write_file(path, png(picture, painter))
