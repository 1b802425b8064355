"""PNG files say how they were made, and a painter refuses what it cannot draw."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nanoflux_export.golden import Request
from nanoflux_export.pictures import Painter, Picture, open_painter, paint, png, save_png
from nanoflux_mobile import __version__
from nanoflux_mobile.drawing import Canvas, Graphs
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.sampler import Schedule

CANVAS = Canvas(3, 4, 4, 1)


def request(prompt: str, seed: int, steps: int) -> Request:
    sigmas = np.linspace(1.0, 0.0, steps + 1).tolist()
    tables = np.zeros((steps, 1, 1, 1, 1), np.float32)
    return Request(np.zeros((1, 1), np.int32), tables, Schedule(tuple(sigmas)), CANVAS, seed)


GRAPHS = Graphs(
    lambda inputs: {"text_states": np.zeros((1, 1, 1, 1), np.float32)},
    lambda inputs: {"velocity": 0.5 * inputs["latents"]},
    lambda inputs: {"image": np.clip(inputs["latents"], -1, 1)},
)
TEACHER = Painter("teacher", "d" * 64, GRAPHS, request, None)
STUDENT = replace(TEACHER, name="tiny-small-coreml", steps=4)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)

PROMPTS = [
    "a red circle",
    "",
    "line one\nline two\r\n\ttabbed",
    "🦊 draws 円 — “naïve”",
    "x" * 10_000,
    '{"json": "\\u0000"}',
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_metadata_is_read_back_as_it_was_given(prompt: str) -> None:
    data = png(Picture(prompt, 2**64 - 1, 4, PIXELS), STUDENT)
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.format == "PNG"
    assert dict(image.info) == {
        "prompt": prompt,
        "seed": "18446744073709551615",
        "steps": "4",
        "source": "tiny-small-coreml",
        "digest": "d" * 64,
        "software": f"nanoflux-mobile {__version__}",
    }
    assert np.array_equal(np.asarray(image), PIXELS)


def test_the_same_picture_is_the_same_file() -> None:
    picture = paint(TEACHER, "a red circle", 7, 2)
    assert png(picture, TEACHER) == png(paint(TEACHER, "a red circle", 7, 2), TEACHER)


@pytest.mark.parametrize("seed", [-1, 2**64, -(2**70)])
def test_a_seed_out_of_range_names_the_range(seed: int) -> None:
    with pytest.raises(InputError, match=rf"seed is {seed}; accepted: 0 to 2\*\*64 - 1"):
        paint(TEACHER, "a red circle", seed, 2)


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_both_ends_of_the_range_draw(seed: int) -> None:
    picture = paint(TEACHER, "a red circle", seed, 2)
    assert (picture.seed, picture.pixels.shape, picture.pixels.dtype) == (seed, (4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("painter", "asked", "steps"),
    [(TEACHER, 3, 3), (TEACHER, None, 10), (STUDENT, None, 4), (STUDENT, 4, 4)],
)
def test_how_many_steps_are_taken(painter: Painter, asked: int | None, steps: int) -> None:
    heard: list[int] = []
    assert paint(painter, "a red circle", 0, asked, heard.append).steps == steps
    assert heard == list(range(steps))


def test_a_student_has_the_steps_it_was_made_for() -> None:
    with pytest.raises(InputError) as error:
        paint(STUDENT, "a red circle", 0, 8)
    said = str(error.value)
    assert "tiny-small-coreml was made for 4 steps, not 8" in said
    assert "--set steps=8" in said


def test_a_picture_appears_whole_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.png"
    save_png(Picture("a red circle", 1, 4, PIXELS), STUDENT, path)
    assert np.array_equal(np.asarray(Image.open(path)), PIXELS)
    assert [file.name for file in path.parent.iterdir()] == ["b.png"]


Make = Callable[[Path], None]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "neither a bundle"),
        (lambda path: path.write_text("x"), "checkpoint"),
    ],
)
def test_a_path_that_cannot_draw(tmp_path: Path, make: Make, words: str) -> None:
    make(tmp_path / "model")
    with pytest.raises(InputError, match=words):
        open_painter(tmp_path / "model")
