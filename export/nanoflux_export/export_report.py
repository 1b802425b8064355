"""The page an export leaves beside its bundles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nanoflux_export.bundle import PICTURE
from nanoflux_export.golden import GOLDEN_SEED
from nanoflux_export.pictures import open_painter, paint
from nanoflux_export.pipeline import Exported
from nanoflux_export.report_html import Report, Row, render
from nanoflux_export.work import Journal
from nanoflux_mobile.cost import read_cost
from nanoflux_mobile.spec import Recipe
from nanoflux_mobile.storage import write_file


def write_report(recipe: Recipe, bundles: Sequence[Exported], out: Path, journal: Journal) -> Path:
    """OUT/<recipe>-report.html: agreement, sizes, schemes, lint, and the recipe's first prompt.

    The prompt is drawn by PyTorch and by the saved files of every bundle; not by networks that are
    proven on single steps, which would take many minutes.
    """
    report = Report(
        f"{recipe.name}, exported",
        recipe.summary,
        (_row(recipe, bundles, journal),) if recipe.proof == "image" else (),
        tuple(bundle.manifest for bundle in bundles),
        tuple(journal.steps),
        tuple(fit for bundle in bundles for fit in bundle.fits),
        {bundle.path.name: read_cost(bundle.path) for bundle in bundles},
    )
    path = out / f"{recipe.name}-report.html"
    write_file(path, render(report))
    return path


def _row(recipe: Recipe, bundles: Sequence[Exported], journal: Journal) -> Row:
    prompt = recipe.calibration_prompts[0]
    drawn = {"PyTorch": np.asarray(Image.open(bundles[0].path / PICTURE))}
    with journal.step(f"draw “{prompt}” with the saved files"):
        for bundle in bundles:
            drawn[bundle.path.name] = paint(open_painter(bundle.path), prompt, GOLDEN_SEED).pixels
    return Row(prompt, drawn)
