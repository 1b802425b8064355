"""Measure what a teacher has too much of, and draw it: charts, and pictures with fewer components.

    python benchmarks/student_study/figures.py nanoflux_mobile/assets/tiny --out docs/student

Writes OUT/analysis.json, an SVG for every chart and OUT/components.png. The plan tells what
its cuts keep. Prompts are held out, prompt i is drawn from seed i. Minutes on a CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.compress.merging import Runs, Similarity, one_run, similar_runs
from nanoflux_mobile.compress.redundancy import Moments
from nanoflux_mobile.data.captions import held_out
from nanoflux_mobile.distill.analysis import Analysis, analyse, drawn_with_components, save
from nanoflux_mobile.distill.desk import Desk
from nanoflux_mobile.distill.figures import figures
from nanoflux_mobile.distill.material import material_of
from nanoflux_mobile.distill.plan import Plan, load, share_of
from nanoflux_mobile.evaluate.grids import side_by_side
from nanoflux_mobile.families import nanoflux as family
from nanoflux_mobile.storage import write_file, write_with


def merged_runs(plan: Plan, similarity: Similarity) -> Runs:
    """The runs of single blocks that the plan's merging stage joins."""
    settings = next(stage.settings for stage in plan.stages if stage.cut == "merging")
    present = len(similarity.image)
    blocks = share_of(settings.blocks, present, "blocks")
    if settings.first < 0:
        return similar_runs(similarity, blocks)
    return one_run(present, settings.first, settings.first + present - blocks + 1)


def charts(plan: Plan, parts: family.FluxParts, analysis: Analysis) -> dict[str, str]:
    """Every chart by file name, what the plan keeps marked in it."""
    settings = {stage.cut: stage.settings for stage in plan.stages}
    heads = share_of(settings["heads"].heads, parts.flux.num_attention_heads, "heads")
    wide = parts.flux.attention_head_dim
    channels = share_of(settings["features"].channels, wide, "channels")
    return figures(analysis, heads, channels, merged_runs(plan, analysis.similarity))


def write_pictures(
    path: Path,
    plan: Plan,
    parts: family.FluxParts,
    analysis: Analysis,
    moments: Moments,
    count: int,
) -> None:
    """A row for each prompt, a column for each number of components."""
    prompts = [text for text, _ in held_out(seed=0, count=count)]
    rows = drawn_with_components(parts, moments, prompts, range(count), plan.steps)
    heads = parts.flux.num_attention_heads
    labels = [_label(analysis, found.count, found.db[0], heads) for found in analysis.components]
    grid = side_by_side(rows, labels, prompts)
    write_with(path, lambda file: grid.save(file, "png", optimize=True))


def _label(analysis: Analysis, count: int, db: float, heads: int) -> str:
    if count == heads:
        return f"all {heads} components"
    curves = analysis.head_energy
    energy = sum(curve[count - 1] for curve in curves) / len(curves)
    return f"{count} of {heads}: energy {energy:.0%}, velocity {db:.1f} dB"


def main() -> None:
    """Analyse one checkpoint and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--plan", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("build/student_study"))
    parser.add_argument("--prompts", type=int, default=6)
    arguments = parser.parse_args()
    plan, parts = load(arguments.plan), family.load(open_checkpoint(arguments.checkpoint))
    material = material_of("scenes", parts)
    desk = Desk(parts, parts, material, None, plan.steps, plan.batch, plan.seed, "cpu", {})
    analysis, moments = analyse(desk, parts)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save(analysis, arguments.out / "analysis.json")
    for name, svg in charts(plan, parts, analysis).items():
        write_file(arguments.out / name, svg)
    picture = arguments.out / "components.png"
    write_pictures(picture, plan, parts, analysis, moments, arguments.prompts)


if __name__ == "__main__":
    main()
