"""What students of a stage draw for a few held-out captions, beside their teacher, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from nanoflux_mobile.data.captions import COLUMNS, held_out
from nanoflux_mobile.distill.desk import Desk
from nanoflux_mobile.evaluate.grids import side_by_side
from nanoflux_mobile.evaluate.sampling import draw_many
from nanoflux_mobile.families.nanoflux import FluxParts
from nanoflux_mobile.storage import write_file


def write_pictures(desk: Desk, models: Mapping[str, FluxParts], path: Path) -> None:
    """A row per model, a column per caption; nothing unless the material is scenes.

    The captions and seeds are the first ones of the scene score, one of each of its columns.
    """
    if desk.material.identity["data"] != "scenes":
        return
    prompts = [text for text, _ in held_out(seed=0, count=len(COLUMNS))]
    seeds = range(len(prompts))
    rows = [
        list(draw_many(parts, prompts, seeds, desk.steps, desk.device)) for parts in models.values()
    ]
    file = io.BytesIO()
    side_by_side(rows, prompts, list(models)).save(file, "PNG", optimize=True)
    write_file(path, file.getvalue())
