"""Procedural scenes of coloured shapes, drawn without a learned part.

A scene is a background and one to four objects whose centres sit on an 8-pixel lattice of a
64-pixel canvas, so an f8 autoencoder sees every silhouette at one phase. That is what lets a
ten-million-parameter denoiser learn the whole distribution on two CPU cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

CANVAS = 64
LATTICE = 8
SUPERSAMPLE = 8

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (224, 32, 32),
    "orange": (255, 144, 16),
    "yellow": (255, 232, 32),
    "green": (24, 152, 56),
    "cyan": (48, 216, 232),
    "blue": (32, 56, 216),
    "purple": (136, 40, 176),
    "pink": (255, 136, 200),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (244, 244, 244),
    "black": (16, 16, 16),
    "gray": (128, 128, 128),
    "brown": (104, 64, 32),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
RADII: dict[str, float] = {"small": 7.0, "medium": 10.0, "large": 13.0}
"""Half the height of a silhouette, in pixels of the 64-pixel canvas."""


@dataclass(frozen=True)
class SceneObject:
    """One silhouette: its words, and its centre in canvas pixels (x right, y down)."""

    shape: str
    colour: str
    size: str
    x: int
    y: int


@dataclass(frozen=True)
class Scene:
    """A background and the objects on it; objects never touch."""

    background: str
    objects: tuple[SceneObject, ...]


def _inside(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Whether points (x right, y down, relative to the centre) lie in a silhouette of radius r."""
    if shape == "circle":
        return x**2 + y**2 <= r**2
    if shape == "ring":
        return (x**2 + y**2 <= r**2) & (x**2 + y**2 >= (0.5 * r) ** 2)
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.9 * r
    if shape == "triangle":
        return (y <= 0.9 * r) & (2 * abs(x) <= y + r)
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) <= 0.32 * r) & (np.maximum(abs(x), abs(y)) <= r)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


@lru_cache(maxsize=256)
def silhouette(shape: str, radius: float) -> np.ndarray:
    """Anti-aliased coverage of one silhouette, float32 in [0, 1], on the smallest centred tile."""
    half = int(np.ceil(radius)) + 1
    steps = (np.arange(2 * half * SUPERSAMPLE) + 0.5) / SUPERSAMPLE - half
    hit = _inside(shape, steps[None, :], steps[:, None], radius).astype(np.float32)
    return hit.reshape(2 * half, SUPERSAMPLE, 2 * half, SUPERSAMPLE).mean((1, 3))


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene: uint8, (64, 64, 3), RGB."""
    canvas = np.empty((CANVAS, CANVAS, 3), np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    for thing in scene.objects:
        tile = silhouette(thing.shape, RADII[thing.size])
        half = tile.shape[0] // 2
        top, left = thing.y - half, thing.x - half
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = min(top + 2 * half, CANVAS), min(left + 2 * half, CANVAS)
        cover = tile[y0 - top : y1 - top, x0 - left : x1 - left, None]
        patch = canvas[y0:y1, x0:x1]
        patch += cover * (np.array(COLOURS[thing.colour], np.float32) - patch)
    return np.rint(canvas).astype(np.uint8)


def cells(scene: Scene) -> np.ndarray:
    """What each lattice cell shows, int64 (64, 2), row by row: a shape and a colour as numbers.

    Shapes count from 1, 0 is the background; colours come before backgrounds. A cell belongs to
    an object where the cell's centre lies in the square around the silhouette.
    """
    side = CANVAS // LATTICE
    centre = (np.arange(side) + 0.5) * LATTICE
    table = np.zeros((side, side, 2), np.int64)
    table[..., 1] = len(COLOURS) + list(BACKGROUNDS).index(scene.background)
    for thing in scene.objects:
        reach = RADII[thing.size]
        rows, columns = abs(centre - thing.y) < reach, abs(centre - thing.x) < reach
        words = SHAPES.index(thing.shape) + 1, list(COLOURS).index(thing.colour)
        table[np.ix_(rows, columns)] = words
    return table.reshape(-1, 2)
