"""The chart of layers: every layer at its decibels, and what was chosen told in words."""

from __future__ import annotations

import math
import re

import pytest

from nanoflux_export.fitting.sensitivity import Row, Sensitivity
from nanoflux_export.report.sensitivity_chart import Fitted, best_by_bits, sensitivity_charts
from nanoflux_mobile.markup import document
from nanoflux_mobile.spec import parse_scheme

TWO, TWO_SCALED = parse_scheme("palette2"), parse_scheme("palette2-scaled")
SIX, DENSE = parse_scheme("palette6"), parse_scheme("fp16")
NAMES = ("embed/a<b>.weight", "blocks.0/up.weight", "blocks.1/up.weight")


def row(layer: str, scheme, db: float, size: int = 100) -> Row:
    return Row(layer, scheme, 400, size, 10 ** (-db / 10) if db < 200 else 0.0)


@pytest.fixture
def fitted() -> Fitted:
    rows = []
    for i, layer in enumerate(NAMES):
        rows += [row(layer, TWO, 20 + i), row(layer, TWO_SCALED, 23 + i, 110)]
        rows += [row(layer, SIX, 45 + i, 300), row(layer, DENSE, 200, 800)]
    chosen = dict(zip(NAMES, (SIX, TWO_SCALED, DENSE), strict=True))
    return Fitted("denoiser", Sensitivity(tuple(rows), 1.0), chosen)


def drawn(html: str, kind: str) -> list[float]:
    """Heights of the dashes of a class, layer by layer."""
    path = re.search(rf'<path d="([^"]*)" class="{kind}">', html.partition('class="layers"')[2])
    return [float(y) for y in re.findall(r"M\d+ ([-\d.]+)h1", path[1])]


def test_the_best_of_equal_bits_is_drawn_fewest_bits_first(fitted: Fitted) -> None:
    best = best_by_bits(fitted)
    assert list(best) == [2, 6, 16]
    assert [best[2][name] for name in NAMES] == pytest.approx([23, 24, 25])
    assert set(best[16].values()) == {200.0}


def test_dashes_lie_at_their_decibels(fitted: Fitted) -> None:
    html = sensitivity_charts([fitted])
    # The axis runs from 20 to 60 dB over 200 pixels; 200 dB, nothing changed, is clipped to it.
    assert drawn(html, "bits b6") == pytest.approx([200 * (60 - db) / 40 for db in (45, 46, 47)])
    assert drawn(html, "bits b16") == [0, 0, 0]
    assert drawn(html, "chosen") == pytest.approx([75, 180, 0])
    columns = re.search(r'<path d="([^"]*)" class="columns">', html)[1]
    heights = [float(h) for h in re.findall(r"v-([\d.]+)h1", columns)]
    assert heights == pytest.approx([48 * bits / 16 for bits in (6, 2, 16)])


def test_the_choice_is_told_in_words(fitted: Fitted, page) -> None:
    parsed = page(document("t", "", sensitivity_charts([fitted])))
    (told,) = [a["aria-label"] for a in parsed.all("svg") if "aria-label" in a]
    assert told == (
        "denoiser: bits from 2 to 16; blocks.0/up.weight suffers most, 24.0 dB as palette2-scaled"
    )
    assert "3 layers, 8.07 bits a weight, 1.2 kB" in parsed.text
    assert "embed/a<b>.weight" in parsed.text
    assert [text for text in ("45.0 dB", "24.0 dB", "identical") if text not in parsed.text] == []


def test_layers_that_break_the_output_and_single_layers_are_drawn() -> None:
    rows = (row("a/w", TWO, 10), Row("a/w", SIX, 400, 1, math.inf))
    html = sensitivity_charts([Fitted("decoder", Sensitivity(rows, 1.0), {"a/w": TWO})])
    assert drawn(html, "bits b6") == [200]
    assert drawn(html, "bits b2") == drawn(html, "chosen") == [100]


def test_nothing_fitted_is_no_section() -> None:
    assert sensitivity_charts([]) == ""
