"""The scene checker against scenes whose truth is known because we drew them."""

from __future__ import annotations

import io
import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from nanoflux_mobile.data.captions import COLUMNS, Claim, Group, arrange, examples, held_out
from nanoflux_mobile.data.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, SceneObject, render
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.evaluate.scene_accuracy import (
    MIN_IOU,
    UNKNOWN,
    Seen,
    clean,
    holds,
    read_scene,
    score,
)

CENTRE_PX = 0.5
"""Templates sit half a pixel apart, so a lattice centre is never read further off."""
EXACT = 0.98
"""Share that drawn scenes must reach in every column."""
TOLERATED = 0.95
"""Share that must survive what a good autoencoder or a JPEG does to a picture."""


PROMPTS = 120
"""Held-out prompts at the head of `drawn`: an equal number of each column."""


def _blurred(image: np.ndarray, sigma_px: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma_px)))


def _noisy(image: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(int(image.sum())).normal(0, sigma, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Claim, Scene]]:
    """Held-out claims of all columns, then training claims with sizes and backgrounds."""
    rng = random.Random(7)
    prompts = [(claim, arrange(claim, rng)) for _, claim in held_out(1, PROMPTS)]
    return prompts + [(claim, scene) for _, claim, scene in itertools.islice(examples(2), 90)]


def _held(drawn, column: str, change) -> float:
    """Share of a column's claims that still hold after `change` spoiled the scene."""
    spoiled = [(c, change(c, s)) for c, s in drawn if c.column == column]
    return float(np.mean([holds(c, read_scene(render(s))) for c, s in spoiled]))


def test_every_drawn_object_is_read_back(drawn):
    for _, scene in drawn:
        seen = read_scene(render(scene))
        assert seen.background == scene.background
        truth = sorted(scene.objects, key=lambda o: (o.x, o.y))
        found = sorted(seen.objects, key=lambda o: (round(o.x), round(o.y)))
        assert len(found) == len(truth)
        for a, b in zip(found, truth, strict=True):
            assert (a.shape, a.colour, a.size) == (b.shape, b.colour, b.size)
            assert abs(a.x - b.x) <= CENTRE_PX
            assert abs(a.y - b.y) <= CENTRE_PX
            assert a.iou >= MIN_IOU


def test_drawn_scenes_score_full_marks(drawn):
    scores = score((claim, render(scene)) for claim, scene in drawn)
    assert min(getattr(scores, column) for column in COLUMNS) >= EXACT
    assert scores.clean >= EXACT
    mean = sum(getattr(scores, column) for column in COLUMNS) / len(COLUMNS)
    assert scores.overall == pytest.approx(mean)


@pytest.mark.parametrize(
    "soften",
    [
        lambda image: _noisy(image, 6.0),
        lambda image: _blurred(image, 0.7),
        lambda image: _noisy(_blurred(image, 0.7), 6.0),
        lambda image: _jpeg(image, 90),
    ],
    ids=["noise 6", "blur 0.7 px", "both", "jpeg 90"],
)
def test_soft_pictures_are_tolerated(drawn, soften):
    scores = score((claim, soften(render(scene))) for claim, scene in drawn)
    assert min(getattr(scores, column) for column in COLUMNS) >= TOLERATED
    assert scores.clean >= TOLERATED


@pytest.mark.parametrize("spoil", [lambda i: _blurred(i, 5.0), lambda i: _noisy(i, 90.0)])
def test_spoiled_pictures_fail(drawn, spoil):
    scores = score((claim, spoil(render(scene))) for claim, scene in drawn)
    assert scores.overall < 0.5
    assert scores.clean < 0.5


def _change_last(scene: Scene, **words: str) -> Scene:
    return replace(scene, objects=(*scene.objects[:-1], replace(scene.objects[-1], **words)))


def _other(known, *taken: str) -> str:
    return next(word for word in known if word not in taken)


@pytest.mark.parametrize("column", ["counting", "colours", "position", "attribution"])
def test_a_wrong_colour_is_caught(drawn, column):
    def recolour(claim, scene):
        used = [thing.colour for thing in scene.objects]
        return _change_last(scene, colour=_other(COLOURS, *used))

    assert _held(drawn, column, recolour) == 0.0


@pytest.mark.parametrize("column", COLUMNS)
def test_a_wrong_shape_is_caught(drawn, column):
    def reshape(claim, scene):
        used = [thing.shape for thing in scene.objects]
        return _change_last(scene, shape=_other(SHAPES, *used))

    assert _held(drawn, column, reshape) == 0.0


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_object_is_caught(drawn, column):
    assert _held(drawn, column, lambda _, s: replace(s, objects=s.objects[:-1])) == 0.0


def test_one_more_object_fails_counting_and_is_never_clean(drawn):
    rng = random.Random(3)
    for claim, scene in drawn[:PROMPTS]:
        if len(scene.objects) > 3:
            continue
        extra = Group(1, claim.groups[0].shape, claim.groups[0].colour, "small")
        crowded = arrange(replace(claim, groups=(*claim.groups, extra)), rng)
        seen = read_scene(render(crowded))
        assert holds(claim, seen) == (claim.column != "counting")
        assert not clean(claim, seen)


def _swapped(scene: Scene, fields: tuple[str, ...]) -> Scene:
    a, b, *rest = scene.objects
    one = replace(a, **{field: getattr(b, field) for field in fields})
    two = replace(b, **{field: getattr(a, field) for field in fields})
    return replace(scene, objects=(one, two, *rest))


def test_swapped_positions_fail_position_only(drawn):
    def swap(claim, scene):
        return _swapped(scene, ("x", "y"))

    prompts = drawn[:PROMPTS]
    assert _held(prompts, "position", swap) == 0.0
    assert _held(prompts, "attribution", swap) == 1.0


@pytest.mark.parametrize("column", ["position", "attribution"])
def test_swapped_colours_are_caught(drawn, column):
    def swap(claim, scene):
        return _swapped(scene, ("colour",))

    assert _held(drawn[:PROMPTS], column, swap) == 0.0


def test_wrong_size_and_wrong_background_are_caught():
    thing = SceneObject("circle", "red", "large", 32, 32)
    seen = read_scene(render(Scene("black", (thing,))))
    group = Group(1, "circle", "red")
    assert holds(Claim("colours", (group,)), seen)
    assert holds(Claim("colours", (replace(group, size="large"),), background="black"), seen)
    assert not holds(Claim("colours", (replace(group, size="small"),)), seen)
    assert not holds(Claim("colours", (group,), background="gray"), seen)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_touching_objects_of_two_colours_are_two(background):
    for one, two in itertools.permutations(COLOURS, 2):
        a = SceneObject("square", one, "medium", 23, 32)
        b = SceneObject("circle", two, "medium", 42, 32)
        seen = read_scene(_blurred(render(Scene(background, (a, b))), 0.6))
        words = sorted((thing.shape, thing.colour) for thing in seen.objects)
        assert words == [("circle", two), ("square", one)]


def test_dust_is_ignored_and_a_pale_rim_stays_part_of_its_object():
    image = render(Scene("white", (SceneObject("circle", "red", "large", 32, 32),))).copy()
    image[4:7, 50:54] = COLOURS["blue"]
    y, x = np.mgrid[:64, :64] - 31.5
    distance = np.hypot(x, y)
    image[(distance > 11.8) & (distance < 13.2)] = COLOURS["pink"]
    seen = read_scene(image)
    assert [(o.shape, o.colour, o.size) for o in seen.objects] == [("circle", "red", "large")]


def test_a_shaded_object_stays_one():
    scene = Scene("white", (SceneObject("square", "yellow", "large", 32, 32),))
    image = render(scene).astype(float)
    towards_orange = np.linspace(0.7, 0.2, 64)[:, None, None]
    orange, yellow = (np.array(COLOURS[name], float) for name in ("orange", "yellow"))
    inside = (image == yellow).all(-1)
    image[inside] = (yellow + towards_orange * (orange - yellow)).repeat(64, 1)[inside]
    seen = read_scene(image.astype(np.uint8))
    assert [(o.shape, o.size) for o in seen.objects] == [("square", "large")]
    assert seen.objects[0].colour in ("orange", "yellow")


def test_a_strange_shape_or_colour_is_unknown_but_still_an_object():
    picture = Image.new("RGB", (64, 64), BACKGROUNDS["white"])
    pen = ImageDraw.Draw(picture)
    pen.rectangle((4, 10, 60, 20), fill=COLOURS["green"])
    pen.ellipse((22, 32, 42, 52), fill=(70, 70, 70))
    bar, disc = sorted(read_scene(np.asarray(picture)).objects, key=lambda o: o.y)
    assert (bar.shape, bar.colour) == (UNKNOWN, "green")
    assert bar.iou < MIN_IOU
    assert (disc.shape, disc.colour) == ("circle", UNKNOWN)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_picture_shows_nothing(background):
    assert read_scene(render(Scene(background, ()))) == Seen(background, ())


def test_a_strange_background_is_unknown():
    flood = np.full((64, 64, 3), COLOURS["red"], np.uint8)
    assert read_scene(flood) == Seen(UNKNOWN, ())


def _at(shape: str, colour: str, x: int, y: int) -> SceneObject:
    return SceneObject(shape, colour, "medium", x, y)


RING, CROSS = Group(1, "ring"), Group(1, "cross")


@pytest.mark.parametrize(
    ("claim", "things", "held", "tidy"),
    [
        (Claim("two", (RING, CROSS)), [("ring", 9), ("cross", 40)], True, True),
        (Claim("two", (RING, CROSS)), [("ring", 9), ("cross", 40), ("ring", 55)], True, False),
        (Claim("two", (RING, CROSS)), [("ring", 9), ("square", 40)], False, False),
        (Claim("counting", (Group(2, "ring"),)), [("ring", 9), ("ring", 40)], True, True),
        (Claim("counting", (Group(2, "ring"),)), [("ring", 9)], False, False),
        (Claim("counting", (Group(1, "ring"),)), [("ring", 9), ("cross", 40)], False, False),
        (Claim("position", (RING, CROSS), "left"), [("ring", 9), ("cross", 40)], True, True),
        (Claim("position", (RING, CROSS), "right"), [("ring", 9), ("cross", 40)], False, False),
        (Claim("position", (RING, CROSS), "above"), [("ring", 9), ("cross", 40)], False, False),
        (
            Claim("position", (RING, CROSS), "right"),
            [("ring", 9), ("cross", 32), ("ring", 55)],
            True,
            False,
        ),
    ],
)
def test_rules_of_the_columns(claim, things, held, tidy):
    scene = Scene("white", tuple(_at(shape, "red", x, 32) for shape, x in things))
    assert holds(claim, scene) == held
    assert clean(claim, scene) == tidy


def test_clean_gives_every_object_one_group():
    claim = Claim("attribution", (Group(1, "ring"), Group(1, "ring", "red")))
    assert clean(claim, Scene("white", (_at("ring", "red", 9, 32), _at("ring", "blue", 40, 32))))
    stray = Scene("white", (_at("ring", "red", 9, 32), _at("cross", "blue", 40, 32)))
    assert not clean(claim, stray)


def test_score_counts_by_column():
    ring = render(Scene("white", (_at("ring", "red", 32, 32),)))
    pairs = [(Claim(column, (RING,)), ring) for column in COLUMNS]
    pairs.append((Claim("single", (CROSS,)), ring))
    scores = score(pairs)
    assert scores.single == 0.5
    assert scores.two == 1.0
    assert scores.overall == pytest.approx(5.5 / 6)
    assert scores.clean == pytest.approx(6 / 7)


def test_bad_input_is_explained():
    with pytest.raises(InputError, match="two, counting, colours, position, attribution"):
        score([(Claim("single", (RING,)), render(Scene("white", ())))])
    with pytest.raises(InputError, match="uint8"):
        read_scene(np.zeros((64, 64, 3), np.float32))
    with pytest.raises(InputError, match="32"):
        read_scene(np.zeros((32, 32, 3), np.uint8))
