"""Does the picture show what the caption says? An exact checker for the procedural scenes.

Nothing here is learned, so nothing can be fooled in a way we cannot read: colours are compared
with the palette the scenes are drawn from, silhouettes with the shapes they are drawn with.
The six columns and their rules are those of GenEval (Ghosh et al., 2023).

Shapes: H W canvas pixels, K colours, N objects, T templates, P pixels of one template tile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations, product

import numpy as np

from nanoflux_mobile.data.captions import COLUMNS, Claim, Group, lies
from nanoflux_mobile.data.scenes import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    RADII,
    SHAPES,
    Scene,
    SceneObject,
    silhouette,
)
from nanoflux_mobile.errors import InputError

UNKNOWN = "unknown"
HALF = 0.5
"""Coverage from which a pixel belongs to an object: its edge, for blurred pictures as well."""
MIN_IOU = 0.8
"""Overlap with the best silhouette below which a shape is unknown."""
MAX_COLOUR_DISTANCE = 60.0
"""Euclidean RGB distance beyond which a colour is unknown; the palette's least gap is 89."""
SAME_COLOUR_DISTANCE = 45.0
"""RGB distance, half the palette's gap, within which touching regions are shades of one object."""
MIN_CORE = 8
"""Pixels with four neighbours of their own kind that make a region an object and not dust."""
GROWTH = 2
"""How far, in pixels, an object takes in rim pixels that look like another colour."""

_TILE = 32
_TEMPLATE_RADII = np.arange(5.5, 15.0, 0.5)
_TEMPLATE_SHIFTS = (-1, 0, 1, 2)
"""Half pixels between a template and the middle of a mask's box; a triangle's box sits high."""


@dataclass(frozen=True)
class SeenObject:
    """One object found: its words (or `unknown`), its centre in pixels, how well it fits."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    iou: float


@dataclass(frozen=True)
class Seen:
    """What a picture shows: its background (or `unknown`), and every object on it."""

    background: str
    objects: tuple[SeenObject, ...]


@dataclass(frozen=True)
class Scores:
    """Shares in [0, 1] of pictures that hold their claim, by column; `clean` over all pictures."""

    single: float
    two: float
    counting: float
    colours: float
    position: float
    attribution: float
    clean: float

    @property
    def overall(self) -> float:
        """Mean of the six columns, as GenEval reports it."""
        return float(np.mean([getattr(self, column) for column in COLUMNS]))


def _name(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """The palette's closest name, or `unknown`."""
    names = list(palette)
    gaps = np.linalg.norm(np.array([palette[name] for name in names]) - colour, axis=1)
    return names[int(gaps.argmin())] if gaps.min() <= MAX_COLOUR_DISTANCE else UNKNOWN


def _kinds(pixels_HW3: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Which colour covers a pixel at least half, 1..K, or 0 for the background.

    A pixel is explained as a mix of the background and one colour, because plain nearness would
    read the rim between red and white as pink.
    """
    ways_K3 = np.array(list(COLOURS.values()), np.float32) - back
    lengths_K = np.maximum((ways_K3**2).sum(1), 1.0)
    along_PK = (pixels_HW3.reshape(-1, 3) - back) @ ways_K3.T
    cover_PK = np.clip(along_PK / lengths_K, 0.0, 1.0)
    best_P = (cover_PK**2 * lengths_K - 2 * cover_PK * along_PK).argmin(1)
    covered_P = cover_PK[np.arange(len(best_P)), best_P] >= HALF
    return np.where(covered_P, best_P + 1, 0).reshape(pixels_HW3.shape[:2])


def _regions(kind_HW: np.ndarray) -> np.ndarray:
    """For each pixel the lowest flat index in its 8-connected region of one kind."""
    width = kind_HW.shape[1] + 2
    kind = np.pad(kind_HW, 1).ravel()
    filled = np.flatnonzero(kind)
    ends = [filled + step for step in (1, width - 1, width, width + 1)]
    pairs = [(filled[s], end[s]) for end in ends for s in [kind[filled] == kind[end]]]
    label, before = np.arange(kind.size), np.zeros(0, int)
    while not np.array_equal(label, before):
        before = label.copy()
        for here, there in pairs:
            label[here] = np.minimum(label[here], label[there])
            label[there] = np.minimum(label[there], label[here])
        label = label[label]
    return label.reshape(-1, width)[1:-1, 1:-1]


def _around(field_HW: np.ndarray) -> np.ndarray:
    """The four neighbours of each pixel, (4, H, W), zero outside the picture."""
    padded = np.pad(field_HW, 1)
    return np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])


def _join_shades(label_HW: np.ndarray, core_HW: np.ndarray, pixels_HW3: np.ndarray) -> np.ndarray:
    """Labels with touching regions of nearly one colour made one: decoders shade a surface."""
    label_HW = label_HW.copy()
    names = np.unique(label_HW[label_HW > 0])
    colours = [np.median(pixels_HW3[core_HW & (label_HW == name)], axis=0) for name in names]
    for (a, colour_a), (b, colour_b) in combinations(zip(names, colours, strict=True), 2):
        near = np.linalg.norm(colour_a - colour_b) <= SAME_COLOUR_DISTANCE
        if near and (_around(label_HW == a).any(0) & (label_HW == b)).any():
            label_HW[label_HW == b] = a
    return label_HW


def _masks(kind_HW: np.ndarray, pixels_HW3: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each object its mask and its core, the pixels that no neighbour can have tinted."""
    label_HW = np.where(kind_HW > 0, _regions(kind_HW) + 1, 0)
    core_HW = (label_HW > 0) & (_around(label_HW) == label_HW).all(0)
    names, sizes = np.unique(label_HW[core_HW], return_counts=True)
    names = names[sizes >= MIN_CORE]
    grown_HW = np.where(np.isin(label_HW, names), label_HW, 0)
    for _ in range(GROWTH):
        rim_HW = (kind_HW > 0) & (grown_HW == 0)
        grown_HW = np.where(rim_HW, _around(grown_HW).max(0), grown_HW)
    joined_HW = _join_shades(grown_HW, core_HW, pixels_HW3)
    masks = [joined_HW == name for name in np.unique(joined_HW[joined_HW > 0])]
    return [(mask_HW, core_HW & mask_HW) for mask_HW in masks]


def _shifted(tile: np.ndarray, halves: int, axis: int) -> np.ndarray:
    """A coverage map moved by some half pixels."""
    whole = np.roll(tile, halves // 2, axis)
    moved: np.ndarray = (whole + np.roll(whole, halves % 2, axis)) / 2
    return moved


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, list[tuple[str, float, float, float]]]:
    """Binary silhouettes (T, P), and for each its shape, radius and shift (x, y) in pixels."""
    bank, words = [], []
    for shape, radius in product(SHAPES, _TEMPLATE_RADII.tolist()):
        tile = silhouette(shape, radius)
        padded = np.pad(tile, (_TILE - tile.shape[0]) // 2)
        for dx, dy in product(_TEMPLATE_SHIFTS, repeat=2):
            bank.append((_shifted(_shifted(padded, dx, 1), dy, 0) >= HALF).ravel())
            words.append((shape, radius, dx / 2, dy / 2))
    return np.array(bank, np.float32), words


def _middle(hit: np.ndarray) -> int:
    """The pixel edge in the middle of the filled span, rounded down."""
    filled = np.flatnonzero(hit)
    return int(filled[0] + filled[-1] + 1) // 2


def _recognise(mask_HW: np.ndarray) -> tuple[str, str, float, float, float]:
    """Shape, size, centre (x, y) and overlap of the best silhouette."""
    x, y = _middle(mask_HW.max(0)), _middle(mask_HW.max(1))
    half = _TILE // 2
    tile_P = np.pad(mask_HW, half)[y : y + _TILE, x : x + _TILE].ravel().astype(np.float32)
    bank_TP, words = _templates()
    common_T = bank_TP @ tile_P
    iou_T = common_T / (bank_TP.sum(1) + mask_HW.sum() - common_T)
    best = int(iou_T.argmax())
    shape, radius, dx, dy = words[best]
    size = min(RADII, key=lambda name: abs(RADII[name] - radius))
    fits = bool(iou_T[best] >= MIN_IOU)
    return shape if fits else UNKNOWN, size, x + dx, y + dy, float(iou_T[best])


def read_scene(image_HW3: np.ndarray) -> Seen:
    """What a picture shows, read by colour and silhouette.

    Args:
        image_HW3: uint8 RGB, (64, 64, 3), from the renderer or from a neural decoder.

    Returns:
        The background and every object of some size, `unknown` where no word fits.

    Raises:
        InputError: not a uint8 picture of that shape.
    """
    if image_HW3.shape != (CANVAS, CANVAS, 3) or image_HW3.dtype != np.uint8:
        raise InputError(
            f"a picture of shape {image_HW3.shape} and type {image_HW3.dtype} cannot be read; "
            f"give uint8 RGB of shape ({CANVAS}, {CANVAS}, 3)"
        )
    edges = (image_HW3[0], image_HW3[-1], image_HW3[1:-1, 0], image_HW3[1:-1, -1])
    back = np.median(np.concatenate(edges), axis=0).astype(np.float32)
    pixels_HW3 = image_HW3.astype(np.float32)
    found = []
    for mask_HW, core_HW in _masks(_kinds(pixels_HW3, back), pixels_HW3):
        shape, size, x, y, iou = _recognise(mask_HW)
        colour = _name(np.median(pixels_HW3[core_HW], axis=0), COLOURS)
        found.append(SeenObject(shape, colour, size, x, y, iou))
    return Seen(_name(back, BACKGROUNDS), tuple(found))


def _fits(group: Group, thing: SceneObject | SeenObject) -> bool:
    """Whether an object is of a group, as far as the group says."""
    return (
        thing.shape == group.shape
        and group.colour in (None, thing.colour)
        and group.size in (None, thing.size)
    )


def holds(claim: Claim, seen: Seen | Scene) -> bool:
    """Whether what is seen fulfils a claim, by GenEval's rules.

    Each group needs at least its number of objects; `counting` allows no other object at all;
    `position` needs one pair of the first two groups that lies as said; a named background
    must be there. Overlapping groups ("a circle and a red circle") may share an object.
    """
    if claim.background not in (None, seen.background):
        return False
    groups = [[thing for thing in seen.objects if _fits(g, thing)] for g in claim.groups]
    if any(len(found) < g.count for g, found in zip(claim.groups, groups, strict=True)):
        return False
    if claim.column == "counting" and len(seen.objects) != sum(g.count for g in claim.groups):
        return False
    return claim.relation is None or any(
        a is not b and lies(claim.relation, (a.x, a.y), (b.x, b.y))
        for a, b in product(groups[0], groups[1])
    )


def clean(claim: Claim, seen: Seen | Scene) -> bool:
    """Whether a claim holds with exactly the claimed objects and nothing else in the picture."""
    wanted = [group for group in claim.groups for _ in range(group.count)]
    things: tuple[SceneObject | SeenObject, ...] = seen.objects
    if len(things) != len(wanted) or not holds(claim, seen):
        return False
    orders = permutations(things)
    return any(all(_fits(g, o) for g, o in zip(wanted, order, strict=True)) for order in orders)


def score(pairs: Iterable[tuple[Claim, np.ndarray]]) -> Scores:
    """Shares of pictures that hold their claims, (claim, uint8 (64, 64, 3)) each.

    Raises:
        InputError: a column has no picture, so that the overall score would mean something else.
    """
    held: dict[str, list[bool]] = defaultdict(list)
    tidy = []
    for claim, image_HW3 in pairs:
        seen = read_scene(image_HW3)
        held[claim.column].append(holds(claim, seen))
        tidy.append(clean(claim, seen))
    missing = [column for column in COLUMNS if column not in held]
    if missing:
        raise InputError(f"no picture for {', '.join(missing)}; give at least one of every column")
    shares = {column: float(np.mean(held[column])) for column in COLUMNS}
    return Scores(**shares, clean=float(np.mean(tidy)))
