"""What a caption claims about a scene, the ways to say it, and scenes that fulfil it.

A `Claim` is the single source for a caption, for the scenes that train on it, and for the
checker that judges a picture drawn from it. Columns are those of GenEval (Ghosh et al., 2023).
What a caption leaves unsaid: size is medium, background is white, colour and shape are free.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from nanoflux_mobile.data.scenes import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    LATTICE,
    RADII,
    SHAPES,
    Scene,
    SceneObject,
)

COLUMNS = ("single", "two", "counting", "colours", "position", "attribution")
RELATIONS: dict[str, tuple[str, ...]] = {
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
}
NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four"}
GAP = 3
"""Pixels of background kept between two objects, and between an object and the border."""


@dataclass(frozen=True)
class Group:
    """`count` objects of one shape; None where the caption leaves a word out."""

    count: int
    shape: str
    colour: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Claim:
    """Everything a caption says: its groups in order, how the first two lie, the background."""

    column: str
    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None


def _noun(group: Group) -> str:
    name = group.shape + ("" if group.count == 1 else "es" if group.shape == "cross" else "s")
    words = [NUMBERS[group.count], group.size, group.colour, name]
    if group.count == 1 and next(w for w in words[1:] if w)[0] in "aeiou":
        words[0] = "an"
    return " ".join(word for word in words if word)


def phrase(claim: Claim, rng: random.Random) -> str:
    """One of the ways to say a claim, at most 16 words and commas."""
    nouns = [_noun(group) for group in claim.groups]
    if claim.relation:
        text = f"{nouns[0]} {rng.choice(RELATIONS[claim.relation])} {nouns[1]}"
    elif len(nouns) > 2:
        text = ", ".join(nouns[:-1]) + f" and {nouns[-1]}"
    else:
        text = rng.choice((" and ", " and ", " with ")).join(nouns)
    if claim.background:
        tail = (f"on a {claim.background} background", f"on {claim.background}")
        text += " " + (tail[1] if len(text.split()) > 11 else rng.choice(tail))
    return text


def sample_claim(rng: random.Random, column: str) -> Claim:
    """A random claim of one GenEval column, without a size or a background."""
    shapes = rng.sample(SHAPES, 2)
    colours = rng.sample(sorted(COLOURS), 2)
    pair = tuple(Group(1, s, c) for s, c in zip(shapes, colours, strict=True))
    relation = rng.choice(sorted(RELATIONS))
    return {
        "single": Claim("single", (Group(1, shapes[0]),)),
        "two": Claim("two", tuple(Group(1, s) for s in shapes)),
        "counting": Claim("counting", (Group(rng.randint(2, 4), shapes[0], colours[0]),)),
        "colours": Claim("colours", pair[:1]),
        "position": Claim("position", pair, relation),
        "attribution": Claim("attribution", pair),
    }[column]


def sample_training_claim(rng: random.Random) -> Claim:
    """A random claim of the training mix: all columns, plus sizes, backgrounds and mixed groups."""
    weights = (2, 3, 3, 3, 4, 4)
    claim = sample_claim(rng, rng.choices(COLUMNS, weights)[0])
    groups = list(claim.groups)
    if claim.column == "attribution" and rng.random() < 0.35:
        total = rng.choice((3, 4))
        shapes = rng.sample(SHAPES, total)
        groups = [Group(1, shape, rng.choice(sorted(COLOURS))) for shape in shapes]
    elif claim.column == "attribution" and rng.random() < 0.3:
        first = rng.choice((1, 2))
        groups = [Group(n, g.shape, g.colour) for n, g in zip((first, 2), groups, strict=True)]
    if len(groups) < 3 and rng.random() < 0.25:
        groups = [
            Group(g.count, g.shape, g.colour, rng.choice((None, *sorted(RADII)))) for g in groups
        ]
    background = rng.choice(sorted(BACKGROUNDS)) if rng.random() < 0.4 else None
    if len(groups) == 4:
        background = None
    return Claim(claim.column, tuple(groups), claim.relation, background)


def _spread(radii: list[float], rng: random.Random) -> list[tuple[int, int]] | None:
    """Lattice centres for circles of these radii that keep the gap, or None if unlucky."""
    placed: list[tuple[int, int]] = []
    for radius in radii:
        margin = int(-(-(radius + 1) // LATTICE)) * LATTICE
        cells = range(margin, CANVAS - margin + 1, LATTICE)
        free = [
            (x, y)
            for x in cells
            for y in cells
            if all(
                max(abs(x - px), abs(y - py)) >= radius + radii[j] + GAP
                for j, (px, py) in enumerate(placed)
            )
        ]
        if not free:
            return None
        placed.append(rng.choice(free))
    return placed


def lies(relation: str, first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether `first` lies in that relation to `second`: the named axis must dominate."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    along = {"above": -dy, "below": dy, "left": -dx, "right": dx}[relation]
    across = abs(dx) if relation in ("above", "below") else abs(dy)
    return along > 0 and along >= across


def arrange(claim: Claim, rng: random.Random) -> Scene:
    """A random scene that fulfils a claim; what the claim leaves open is drawn from `rng`."""
    wanted: list[tuple[str, str, str]] = []
    for group in claim.groups:
        colour = group.colour or rng.choice(sorted(COLOURS))
        wanted += [(group.shape, colour, group.size or "medium")] * group.count
    radii = [RADII[size] for _, _, size in wanted]
    while True:
        places = _spread(radii, rng)
        if places is None:
            continue
        if claim.relation is None or lies(claim.relation, places[0], places[1]):
            break
    objects = tuple(SceneObject(*words, x, y) for words, (x, y) in zip(wanted, places, strict=True))
    return Scene(claim.background or "white", objects)


def crowd(rng: random.Random) -> Scene:
    """A scene of four objects, every word drawn freely: the densest lesson for an autoencoder."""
    groups = [
        Group(1, rng.choice(SHAPES), None, rng.choice(("small", "medium", "medium", "large")))
        for _ in range(4)
    ]
    return arrange(Claim("crowd", tuple(groups), None, rng.choice(sorted(BACKGROUNDS))), rng)


def reserved(claim: Claim) -> bool:
    """Whether training never shows this claim: one in eight of the coloured pairs and counts.

    Single shapes and single colours cannot be held out: there are only 45 of them.
    """
    if claim.column not in ("counting", "position", "attribution"):
        return False
    said = ", ".join(f"{group.count} {group.colour} {group.shape}" for group in claim.groups)
    return zlib.crc32(said.encode()) % 8 == 0


def training_examples(seed: int) -> Iterator[tuple[str, Claim, Scene]]:
    """`examples` without the claims held out for evaluation."""
    return (row for row in examples(seed) if not reserved(row[1]))


def examples(seed: int) -> Iterator[tuple[str, Claim, Scene]]:
    """An endless stream of (caption, claim, scene), the same for the same seed."""
    rng = random.Random(seed)
    while True:
        claim = sample_training_claim(rng)
        yield phrase(claim, rng), claim, arrange(claim, rng)


def _held_out_claim(rng: random.Random, column: str) -> Claim:
    while True:
        claim = sample_claim(rng, column)
        if reserved(claim) or column in ("single", "two", "colours"):
            return claim


def held_out(seed: int, count: int) -> list[tuple[str, Claim]]:
    """`count` evaluation prompts, the six columns in turn, reserved claims where there are any."""
    rng = random.Random(f"held-out {seed}")
    claims = [_held_out_claim(rng, COLUMNS[i % len(COLUMNS)]) for i in range(count)]
    return [(phrase(claim, rng), claim) for claim in claims]
