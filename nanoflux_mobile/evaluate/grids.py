"""Labelled grids of pictures, to compare by eye what several models draw for one prompt."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nanoflux_mobile.errors import InputError

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
PAPER, INK, FAINT = (255, 255, 255), (32, 33, 36), (208, 211, 216)
CELL_PX = 192
"""Least side of a shown picture; a smaller one is enlarged by a whole factor, pixels kept hard."""
GUTTER_PX = 16
TEXT_PX = 15
LEADING_PX = 5
LINE_CHARS = 26
"""Where labels and captions wrap; about the width of a picture in this size."""


def _check(rows: Sequence[Sequence[np.ndarray]], columns: int, captions: int) -> None:
    shapes = {image.shape for row in rows for image in row}
    if not rows or len(shapes) != 1 or {len(row) for row in rows} != {columns}:
        raise InputError(
            f"a grid needs {columns} pictures of one size in every row, one for each label; "
            f"got rows of {[len(row) for row in rows]} and sizes {sorted(shapes)}"
        )
    if captions not in (0, len(rows)):
        raise InputError(f"{captions} captions for {len(rows)} rows; give one per row, or none")


def _tile(image_HW3: np.ndarray) -> Image.Image:
    """A picture enlarged by a whole factor, in a hairline frame that shows where white ends."""
    height, width = image_HW3.shape[:2]
    factor = max(1, -(-CELL_PX // min(height, width)))
    tile = Image.fromarray(image_HW3).resize(
        (width * factor, height * factor), Image.Resampling.NEAREST
    )
    framed = Image.new("RGB", (tile.width + 2, tile.height + 2), FAINT)
    framed.paste(tile, (1, 1))
    return framed


def _wrap(texts: Sequence[str]) -> list[str]:
    return ["\n".join(textwrap.wrap(text, LINE_CHARS)) for text in texts]


def _extent(texts: Sequence[str], font: Font) -> tuple[int, int]:
    """Width and height in pixels of the widest and of the tallest text."""
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [pen.multiline_textbbox((0, 0), text, font, spacing=LEADING_PX) for text in texts]
    return int(max(box[2] for box in boxes)), int(max(box[3] for box in boxes))


def side_by_side(
    rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str], captions: Sequence[str] = ()
) -> Image.Image:
    """One picture of many: a row per prompt, a column per model.

    Args:
        rows: uint8 RGB pictures (H, W, 3), all of one size, as many per row as labels.
        labels: what stands above each column.
        captions: what stands left of each row; or none.

    Raises:
        InputError: ragged rows, pictures of several sizes, or a wrong number of captions.
    """
    _check(rows, len(labels), len(captions))
    tiles = [[_tile(image) for image in row] for row in rows]
    font = ImageFont.load_default(TEXT_PX)
    heads, prompts = _wrap(labels), _wrap(captions)
    left = GUTTER_PX + (_extent(prompts, font)[0] + GUTTER_PX if prompts else 0)
    top = GUTTER_PX + _extent(heads, font)[1] + GUTTER_PX // 2
    width, height = tiles[0][0].size
    step_x, step_y = width + GUTTER_PX, height + GUTTER_PX
    sheet = Image.new("RGB", (left + step_x * len(heads), top + step_y * len(rows)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for x, text in enumerate(heads):
        foot = (left + x * step_x + width // 2, top - GUTTER_PX // 2)
        pen.multiline_text(foot, text, INK, font, "md", LEADING_PX, "center")
    for y, text in enumerate(prompts):
        middle = (GUTTER_PX, top + y * step_y + height // 2)
        pen.multiline_text(middle, text, INK, font, "lm", LEADING_PX)
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            sheet.paste(tile, (left + x * step_x, top + y * step_y))
    return sheet
