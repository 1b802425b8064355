"""Picture grids: every picture arrives whole and hard-edged, and labels take their own room."""

from __future__ import annotations

import numpy as np
import pytest

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.evaluate.grids import CELL_PX, FAINT, INK, PAPER, side_by_side

SIDE = 64


@pytest.fixture
def pictures() -> list[list[np.ndarray]]:
    """Two rows of three pictures without the colours of paper, ink and frames."""
    draw = np.random.default_rng(0).integers(40, 200, (2, 3, SIDE, SIDE, 3), np.uint8)
    return [list(row) for row in draw]


def _find(sheet: np.ndarray, picture: np.ndarray) -> tuple[int, int] | None:
    """Top left corner of a picture enlarged pixel for pixel, or None."""
    factor = CELL_PX // SIDE
    big = picture.repeat(factor, 0).repeat(factor, 1)
    for y, x in np.argwhere((sheet == big[0, 0]).all(-1)):
        if np.array_equal(sheet[y : y + CELL_PX, x : x + CELL_PX], big):
            return int(y), int(x)
    return None


def test_every_picture_is_there_in_order(pictures):
    sheet = np.asarray(side_by_side(pictures, ["a", "b", "c"], ["one", "two"]))
    corners = [[_find(sheet, picture) for picture in row] for row in pictures]
    assert all(corner for row in corners for corner in row)
    for row in corners:
        assert len({y for y, _ in row}) == 1
        assert [x for _, x in row] == sorted({x for _, x in row})
    assert corners[0][0][0] < corners[1][0][0]
    y, x = corners[0][0]
    assert tuple(sheet[y - 1, x]) == tuple(sheet[y, x - 1]) == FAINT


def test_captions_stand_left_and_labels_above(pictures):
    sheet = np.asarray(side_by_side(pictures, ["a", "b", "c"], ["one", "a prompt " * 9]))
    y, x = _find(sheet, pictures[0][0])
    ink = (sheet == INK).all(-1)
    assert ink[: y - 1, x:].any()
    assert ink[y:, : x - 1].any()
    assert not ink[: y - 1, : x - 1].any()
    assert tuple(sheet[0, 0]) == tuple(sheet[-1, -1]) == PAPER


def test_a_long_label_wraps_and_no_caption_takes_no_room(pictures):
    short = side_by_side(pictures, ["a", "b", "c"])
    tall = side_by_side(pictures, ["a", "a label of far too many words for one line", "c"])
    assert tall.width == short.width
    assert tall.height > short.height
    assert side_by_side(pictures, ["a", "b", "c"], ["x", "y"]).width > short.width


def test_a_large_picture_keeps_its_pixels():
    picture = np.random.default_rng(1).integers(0, 256, (256, 320, 3), np.uint8)
    sheet = np.asarray(side_by_side([[picture]], ["512"]))
    y, x = (sheet.shape[0] - 256 - 17, 17)
    assert np.array_equal(sheet[y : y + 256, x : x + 320], picture)


@pytest.mark.parametrize(
    ("labels", "captions"), [(["a", "b"], []), (["a", "b", "c"], ["only one"])]
)
def test_a_wrong_number_of_words_is_refused(pictures, labels, captions):
    with pytest.raises(InputError, match="row"):
        side_by_side(pictures, labels, captions)


def test_pictures_of_two_sizes_and_no_pictures_are_refused(pictures):
    pictures[1][1] = pictures[1][1][:32]
    with pytest.raises(InputError, match="one size"):
        side_by_side(pictures, ["a", "b", "c"])
    with pytest.raises(InputError, match="pictures"):
        side_by_side([], [])
