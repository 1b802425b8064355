"""What storing the denoiser smaller costs in pictures: bytes, dB of a step, scene score.

    python benchmarks/compression_study/scenes.py --out build/scenes --count 120 \\
        coreml:fp16 coreml:palette4-g16 coreml:mixed4.3 litert:int8 litert:int4

Each row is a bundle of the tiny family whose denoiser is stored as told and whose other graphs are
half precision; `mixed4.3` is a budget of 4.3 bits for each weight. The saved files draw held-out
prompts, judged by nanoflux_mobile.evaluate.scene_accuracy. Rows already made are reused.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "quality"))

from scene_scores import score_path

from nanoflux_export.demo import tiny_teacher
from nanoflux_export.pipeline import export
from nanoflux_export.recipe import load_recipe
from nanoflux_export.work import Journal
from nanoflux_mobile.spec import Budget, ComponentRecipe, Floors, Recipe

ANY = Floors(10, 1)
"""What files must reach: this table asks how good they are, not whether they pass."""


def recipe_of(row: str, checkpoint_recipe: str) -> Recipe:
    """The recipe of a row such as litert:int8."""
    target, _, scheme = row.partition(":")
    base = load_recipe(checkpoint_recipe)
    budget = Budget(bits=float(scheme[5:])) if scheme.startswith("mixed") else None
    denoiser = ComponentRecipe(ANY, "fp16" if budget else scheme, budget=budget)
    wanted = base.targets[target]
    components = {
        name: dataclasses.replace(part, floors=ANY) for name, part in wanted.components.items()
    }
    changed = dataclasses.replace(
        wanted, components={**components, "denoiser": denoiser}, image=ANY
    )
    return dataclasses.replace(base, targets={target: changed}, name=row.replace(":", "-"))


def rows(told: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One after another, as they are made."""
    for row in told.rows:
        (bundle,) = export(told.checkpoint, recipe_of(row, told.recipe), told.out, Journal())
        entries = {entry.name: entry for entry in bundle.manifest.components}
        parity = {(p.component, p.reference): p.psnr_db for p in bundle.manifest.parity}
        scores, seconds = score_path(bundle.path, told.count)
        yield {
            "row": row,
            "bytes": entries["denoiser"].weight_bytes,
            "step_db": round(parity["denoiser", "fp32"], 2),
            "overall": round(scores.overall, 4),
            **{name: round(value, 4) for name, value in dataclasses.asdict(scores).items()},
            "seconds_per_picture": round(seconds, 3),
        }


def main() -> None:
    """Print a line for each row, then all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--checkpoint", type=Path, default=tiny_teacher())
    parser.add_argument("--recipe", default="tiny-fp16", help="of the other graphs")
    parser.add_argument("--out", type=Path, default=Path("build/scenes"))
    parser.add_argument("--count", type=int, default=120)
    told = parser.parse_args()
    table = []
    for found in rows(told):
        table.append(found)
        print("  ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    print(json.dumps({"prompts": told.count, "rows": table}))


if __name__ == "__main__":
    main()
