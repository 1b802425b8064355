"""The paper's table in small: what every cut of a chain costs, and what distillation wins back.

    python benchmarks/student_study/table.py --count 500 build/tiny [build/deletion ...]

Each argument is a folder of `nanoflux compress`. A stage gives two rows, the student straight after
its cut and after training; the first row is the teacher. A stage that chains share is listed once,
under the first of them. Scores are of PyTorch on held-out prompts, ten Euler steps; sizes are of
what a phone runs; a step is the exported int8 LiteRT denoiser on this machine's CPU, median of 30
runs on one thread, rows in turns so that a busy machine favours none.
Finished rows are kept in --cache and not scored again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nanoflux_export.demo import tiny_teacher
from nanoflux_export.graph import MAIN, STEP_FULL, STEP_LOW, Function, Runner
from nanoflux_export.recipe import load_recipe
from nanoflux_export.student import make_student
from nanoflux_export.targets.litert import target
from nanoflux_mobile import variants
from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.distill.scoring import parameters
from nanoflux_mobile.evaluate.sampling import scene_scores
from nanoflux_mobile.families.nanoflux import FluxParts, load
from nanoflux_mobile.spec import Component, parse_scheme
from nanoflux_mobile.storage import write_file
from nanoflux_mobile.variants import FULL, LOW, Variant

STEPS, ROUNDS = 10, 30


@dataclass(frozen=True)
class Row:
    """One checkpoint: parameters of what draws and of its denoiser, mean MACs of a step, scores."""

    name: str
    digest: str
    parameters: int
    denoiser: int
    macs: float
    scores: dict[str, float]


def checkpoints(chains: list[Path]) -> Iterator[tuple[str, Path]]:
    """The teacher, then every stage of every chain before and after training."""
    yield "teacher", tiny_teacher()
    for chain in chains:
        for stage in sorted(path for path in chain.iterdir() if path.name[:2].isdigit()):
            name = f"{chain.name}: {stage.name[3:]}"
            yield f"{name}, cut", stage / "cut"
            yield f"{name}, trained", stage / "checkpoint"


def step_macs(parts: FluxParts) -> float:
    """Multiply-accumulates of a step, the mean over low and full ones."""
    canvas = parts.canvas
    latents = (canvas.channels, canvas.height, canvas.width)
    part = {"transformer": variants.Component("flux", parts.flux)}
    variant = Variant(
        "variant/1", "nanoflux", "", parts.side, parts.text_tokens, STEPS, latents, "", part
    )
    macs, low = variants.sizes(variant)["transformer"].macs, parts.flux.low_steps(STEPS)
    return (low * macs.get(LOW, 0) + (STEPS - low) * macs[FULL]) / STEPS


def scored(name: str, path: Path, count: int, cache: Path) -> Row:
    """A row, from the cache where the same checkpoint was scored on as many prompts."""
    digest = open_checkpoint(path).digest()
    kept = cache / f"{digest[:16]}-{count}.json"
    if kept.exists():
        return Row(**{**json.loads(kept.read_text()), "name": name})
    parts = load(open_checkpoint(path))
    found = scene_scores(parts, STEPS, count)
    held = parameters(parts)
    row = Row(
        name,
        digest,
        sum(held.values()),
        held["denoiser"],
        step_macs(parts),
        {"overall": found.overall, **asdict(found)},
    )
    write_file(kept, json.dumps(asdict(row)) + "\n")
    return row


@dataclass(frozen=True)
class Timed:
    """The exported steps of one checkpoint: each function once, weighted by how often it runs."""

    runners: tuple[tuple[Runner, dict[str, np.ndarray], float], ...]

    def milliseconds(self) -> float:
        """One run of each function, weighted."""
        total = 0.0
        for run, inputs, share in self.runners:
            began = time.perf_counter()
            run(inputs)
            total += share * (time.perf_counter() - began) * 1000
        return total


def exported(path: Path, folder: Path) -> Timed:
    """The int8 LiteRT denoiser of a checkpoint, written to `folder` and loaded."""
    student = make_student(path, load_recipe("tiny-small"))
    (graph,) = (graph for graph in student.graphs if graph.name == "denoiser")
    file = folder / f"{student.key[:16]}{target.SUFFIX}"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        target.write(graph, parse_scheme("int8"), file)
    low = student.parts.flux.low_steps(STEPS) / STEPS
    shares = {STEP_LOW: low, STEP_FULL: 1 - low, MAIN: 1.0}
    return Timed(
        tuple(
            (target.load(file, component(one), function=name), inputs(one), shares[name])
            for name, one in graph.functions.items()
        )
    )


def component(function: Function) -> Component:
    """What a runtime must know of a function of the denoiser."""
    return Component("denoiser", function.inputs, function.outputs)


def inputs(function: Function) -> dict[str, np.ndarray]:
    """Noise for every input."""
    rng = np.random.default_rng(0)
    return {
        spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in function.inputs
    }


def main() -> None:
    """Print the table and then all of it as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chains", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--cache", type=Path, default=Path("build/student-study"))
    told = parser.parse_args()
    found = list(checkpoints(told.chains))
    listed: dict[str, Row] = {}
    timed: list[Timed] = []
    for number, (name, path) in enumerate(found, 1):
        print(f"{number} of {len(found)}  {name}", file=sys.stderr, flush=True)
        row = scored(name, path, told.count, told.cache)
        if row.digest not in listed:
            listed[row.digest] = row
            timed.append(exported(path, told.cache / "files"))
    rows = list(listed.values())
    rounds = [[one.milliseconds() for one in timed] for _ in range(ROUNDS)]
    columns = list(rows[0].scores)
    print(f"{'':36}{'total':>9}{'denoiser':>10}{'MMAC':>7}{'ms':>8}" + "".join(
        f"{c[:9]:>10}" for c in columns
    ))  # fmt: skip
    for i, row in enumerate(rows):
        ms = statistics.median(one[i] for one in rounds)
        sized = f"{row.parameters / 1e6:8.2f}M{row.denoiser / 1e6:9.2f}M{row.macs / 1e6:7.0f}"
        scores = "".join(f"{row.scores[c]:10.3f}" for c in columns)
        print(f"{row.name:36}{sized}{ms:8.2f}{scores}", flush=True)
    print(json.dumps({"prompts": told.count, "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
