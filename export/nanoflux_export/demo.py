"""The whole way on the tiny checkpoints that ship inside the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from nanoflux_export.pictures import Painter, open_painter, paint, save_png
from nanoflux_export.pipeline import Exported, export
from nanoflux_export.recipe import load_recipe
from nanoflux_export.report_html import Report, Row, render
from nanoflux_export.work import Journal
from nanoflux_mobile.cost import read_cost
from nanoflux_mobile.evaluate.grids import side_by_side
from nanoflux_mobile.storage import write_file

RECIPES = ("tiny-fp16", "tiny-small")
PROMPTS = (
    "a red circle above a blue square",
    "three green triangles on a black background",
    "a yellow ring and a purple cross",
    "a pink square to the left of an orange circle",
    "two cyan crosses on a brown background",
)
SEED = 1


@dataclass(frozen=True)
class Demo:
    """What the demo left: its bundles, the report and the picture grid."""

    bundles: tuple[Exported, ...]
    report: Path
    grid: Path


def tiny_teacher() -> Path:
    """The folder of the shipped teacher."""
    return _asset("tiny")


def tiny_student() -> Path:
    """The folder of the student that `nanoflux compress` made of it by the plan `tiny`."""
    return _asset("tiny-student")


def _asset(name: str) -> Path:
    return Path(str(resources.files("nanoflux_mobile") / "assets" / name))


def run(out: Path, journal: Journal) -> Demo:
    """Export the tiny student by every demo recipe, draw with all of them, write the report."""
    bundles = tuple(
        bundle
        for name in RECIPES
        for bundle in export(tiny_student(), load_recipe(name), out, journal)
    )
    painters = {"student": open_painter(tiny_student())}
    painters |= {bundle.path.name: open_painter(bundle.path) for bundle in bundles}
    rows = tuple(draw_row(prompt, painters, out / "pictures", journal) for prompt in PROMPTS)
    grid = out / "pictures.png"
    teacher = open_painter(tiny_teacher())
    cells = [[paint(teacher, row.prompt, SEED).pixels, *row.pictures.values()] for row in rows]
    side_by_side(cells, ["teacher", *painters], PROMPTS).save(grid)
    report = Report(
        "nanoflux demo",
        "What all cuts of NanoFLUX left of a tiny FLUX-shaped teacher, exported to Core ML and "
        "LiteRT, and drawn by PyTorch and by the saved files.",
        rows,
        tuple(bundle.manifest for bundle in bundles),
        tuple(journal.steps),
        costs={bundle.path.name: read_cost(bundle.path) for bundle in bundles},
    )
    write_file(out / "report.html", render(report))
    return Demo(bundles, out / "report.html", grid)


def draw_row(prompt: str, painters: dict[str, Painter], folder: Path, journal: Journal) -> Row:
    """One prompt by every painter, each picture saved as PNG."""
    drawn = {}
    with journal.step(f"draw “{prompt}” {len(painters)} times"):
        for name, painter in painters.items():
            picture = paint(painter, prompt, SEED)
            save_png(picture, painter, folder / f"{prompt.replace(' ', '-')}.{name}.png")
            drawn[name] = picture.pixels
    return Row(prompt, drawn)
