"""What every runtime drew for a prompt, and where it differs from the reference."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from nanoflux_export.report.words import decibels
from nanoflux_mobile.markup import Markup, element, join, section, spaced
from nanoflux_mobile.parity import psnr_db

GAIN = 8
"""How often a difference is amplified: one level is barely seen, 32 levels are full brightness."""


@dataclass(frozen=True)
class Row:
    """One prompt, drawn by every runtime.

    `pictures` are uint8 RGB (H, W, 3) by label, all of one size; the first is the reference.
    """

    prompt: str
    pictures: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        """ValueError for a row without pictures, or with one that is not like the first."""
        shapes = {picture.shape for picture in self.pictures.values()}
        kinds = {str(picture.dtype) for picture in self.pictures.values()}
        if len(shapes) != 1 or kinds != {"uint8"} or next(iter(shapes))[2:] != (3,):
            raise ValueError(
                f"pictures of {self.prompt!r} are {sorted(shapes)} of {sorted(kinds)}; "
                "a row needs uint8 (H, W, 3), all of one size"
            )


def difference(picture: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Absolute difference of two uint8 pictures, amplified by `GAIN` and clipped at 255."""
    gap: np.ndarray = np.abs(picture.astype(np.int16) - reference.astype(np.int16)) * GAIN
    return gap.clip(0, 255).astype(np.uint8)


def data_uri(picture: np.ndarray) -> str:
    """A uint8 picture (H, W, 3) as a PNG inside an address."""
    memory = io.BytesIO()
    Image.fromarray(picture).save(memory, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode("ascii")


def gallery(rows: Sequence[Row]) -> Markup:
    """The section with all rows."""
    lead = (
        "The same prompt and the same noise for every runtime; the first picture is the "
        "reference. With each of the others comes its absolute difference from the reference, "
        f"{GAIN} times amplified, so that black means equal."
    )
    shown = (
        join(map(_row, rows)) if rows else element("p", "No pictures were drawn.", class_="none")
    )
    return section("pictures", "Pictures", lead, shown)


def _row(row: Row) -> Markup:
    first, reference = next(iter(row.pictures.items()))
    cells = [_reference(first, reference, row.prompt)]
    cells += [
        _compared(label, picture, first, reference, row.prompt)
        for label, picture in row.pictures.items()
        if label != first
    ]
    prompt = element("h3", row.prompt, class_="prompt", dir="auto")
    return element("div", prompt, element("div", *cells, class_="shots"), class_="row")


def _reference(label: str, picture: np.ndarray, prompt: str) -> Markup:
    caption = _caption(label, "the reference")
    return element("figure", caption, _image(picture, f"{label}: {prompt}"))


def _compared(
    label: str, picture: np.ndarray, first: str, reference: np.ndarray, prompt: str
) -> Markup:
    caption = _caption(label, decibels(psnr_db(picture, reference)))
    gap = _image(difference(picture, reference), f"Difference of {label} from {first}")
    return element("figure", caption, _image(picture, f"{label}: {prompt}"), gap)


def _caption(label: str, note: str) -> Markup:
    return element("figcaption", spaced(element("b", label), element("span", note)))


def _image(picture: np.ndarray, alt: str) -> Markup:
    height, width = map(str, picture.shape[:2])
    return element("img", src=data_uri(picture), alt=alt, width=width, height=height)
