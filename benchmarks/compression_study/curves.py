"""Size against quality of a component under a budget: ours beside what others do.

    python curves.py CHECKPOINT --component denoiser --target coreml --out FOLDER

Measures what storing each layer smaller does to the output on prompts of the training set,
fits plans of several sizes in four ways from the same measurements, and runs the whole graph, every
layer stored, on prompts that nothing was measured on. Writes FOLDER/curves.json and curves.svg.
Everything measured is kept in FOLDER, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from baselines import greedy, schemes_of, threshold, uniform
from plot import plot

from nanoflux_export.bundle import target_named
from nanoflux_export.fitting.activations import importance, layer_stats
from nanoflux_export.fitting.budget import Choice, Limits, Solution, solve
from nanoflux_export.fitting.calibration import Calibration, load, record, save
from nanoflux_export.fitting.gradients import estimate
from nanoflux_export.fitting.refining import refine
from nanoflux_export.fitting.sensitivity import (
    Outputs,
    Row,
    Sensitivity,
    damage_of,
    measure,
    outputs,
)
from nanoflux_export.fitting.shortlists import worthwhile
from nanoflux_export.fitting.stored import Store, Stored, storing
from nanoflux_export.graph import MobileGraph
from nanoflux_export.layers import Layer, layers_of
from nanoflux_export.recipe import load_recipe
from nanoflux_export.student import Student, make_student
from nanoflux_export.work import Journal
from nanoflux_mobile.data.captions import held_out, training_examples
from nanoflux_mobile.spec import Recipe, Scheme, content_digest, parse_scheme
from nanoflux_mobile.storage import write_file

BITS = (1.3, 1.6, 2.2, 2.6, 3.2, 3.6, 4.3, 5.0, 6.2, 8.2)
HELD_OUT = 18
"""Prompts that plans are judged on, three of each of GenEval's columns."""
JUDGED = 72
"""Runs that a plan's true damage is a mean of."""
_FORMS = ("", "-g16", "-scaled", "-g16-scaled")
SCHEMES: Mapping[str, tuple[str, ...]] = {
    "coreml": (
        *(
            f"palette{bits}{form}{weighted}"
            for bits in (1, 2, 3, 4, 6, 8)
            for form in (_FORMS if bits < 5 else _FORMS[:2])
            for weighted in ("", "-weighted")
        ),
        "int8",
        "fp16",
    ),
    "litert": ("int4-b32", "int4", "int8", "fp16"),
}
"""What each layer may get; scales gain nothing where palettes have 64 entries."""


@dataclass(frozen=True)
class Study:
    """One component, and the inputs it is measured and judged on."""

    graph: MobileGraph
    layers: Sequence[Layer]
    measured_on: Calibration
    judged_on: Calibration
    store: Store
    out: Path
    plain: dict[int, Outputs] = field(default_factory=dict)

    @property
    def values(self) -> int:
        """Weights of all layers."""
        return sum(math.prod(layer.shape) for layer in self.layers)

    def damage(self, inputs: Calibration, schemes: Mapping[str, Scheme]) -> tuple[float, float]:
        """What a plan does to the whole graph, and the output's mean square."""
        told = {"most_inputs": JUDGED}
        if id(inputs) not in self.plain:
            self.plain[id(inputs)] = outputs(self.graph, inputs, {}, self.store, **told)
        plain = self.plain[id(inputs)]
        return damage_of(self.graph, inputs, schemes, self.store, plain=plain, **told)


def main() -> None:
    """Print a table of all sizes as they are done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--component", default="denoiser")
    parser.add_argument("--target", default="coreml", choices=sorted(SCHEMES))
    parser.add_argument("--recipe", default="tiny-small", help="its steps")
    parser.add_argument("--prompts", type=int, default=20, help="that damages are measured on")
    parser.add_argument("--bits", type=float, nargs="+", default=BITS)
    parser.add_argument("--inputs", type=int, default=8, help="runs that each damage is a mean of")
    parser.add_argument("--out", type=Path, default=Path("build/compression_study"))
    told = parser.parse_args()
    study = opened(told)
    began = time.perf_counter()
    rough = roughly(study, SCHEMES[told.target])
    rows = measure(
        study.graph,
        study.measured_on,
        worthwhile(rough),
        study.store,
        cache=study.out / "measured.jsonl",
        journal=Journal(part=progress),
        most_inputs=told.inputs,
    )
    minutes = (time.perf_counter() - began) / 60
    print(f"{len(study.layers)} layers, {len(rows.rows)} rows, {minutes:.1f} min of measuring")
    print("bits    method        MB   predicted  measured  held out   gap")
    table = []
    for bits in told.bits:
        make = partial(at_size, study, rough, rows, bits)
        done = kept(study.out, f"size-{bits}", make)
        for line in done:
            print(
                f"{bits:<7} {line['method']:<10} {line['bytes'] / 1e6:6.3f} "
                f"{line['predicted_db']:9.2f} {line['measured_db']:9.2f} {line['held_out_db']:9.2f}"
                f"   {line.get('gap', math.nan):.1e}",
                flush=True,
            )
        table += done
    write_file(study.out / "curves.json", json.dumps({"minutes": minutes, "rows": table}, indent=1))
    lines = {
        method: [
            (8 * x["bytes"] / study.values, x["held_out_db"])
            for x in table
            if x["method"] == method
        ]
        for method in ("uniform", "threshold", "greedy", "ours")
    }
    write_file(study.out / "curves.svg", plot(lines, "bits a weight", "dB"))


def opened(told: argparse.Namespace) -> Study:
    """The component of a checkpoint's student; its measurements have a folder of their own."""
    recipe = load_recipe(told.recipe)
    student = make_student(told.checkpoint, recipe)
    graph = next(graph for graph in student.graphs if graph.name == told.component)
    told_by = [
        student.key,
        told.component,
        told.target,
        told.inputs,
        told.prompts,
        SCHEMES[told.target],
    ]
    out = told.out / content_digest(told_by)[:12]
    prompts = [prompt for prompt, _ in held_out(seed=7, count=HELD_OUT)]
    seeds = range(100, 100 + HELD_OUT)
    shown = [prompt for prompt, _, _ in islice(training_examples(11), told.prompts)]
    first = range(500, 500 + told.prompts)
    own = recorded(student, recipe, out / "measured_on.safetensors", prompts=shown, seeds=first)
    other = recorded(student, recipe, out / "judged_on.safetensors", prompts=prompts, seeds=seeds)
    weighs = importance(layer_stats(graph, own))
    half = target_named(told.target).HALF_CONSTANTS
    store = remembering(storing(weighs, half_constants=half))
    return Study(graph, layers_of(graph), own, other, store, out)


def recorded(student: Student, recipe: Recipe, path: Path, **more: Any) -> Calibration:
    """A calibration, recorded once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save(record(student, recipe, **more), path)
    return load(path)


def remembering(store: Store) -> Store:
    """A store that does nothing twice; for components that fit into memory many times over."""
    known: dict[tuple[str, Scheme], Stored] = {}

    def remembered(layer: Layer, values: Any, scheme: Scheme) -> Stored:
        key = layer.name, scheme
        if key not in known:
            known[key] = store(layer, values, scheme)
        return known[key]

    return remembered


def progress(done: int, of: int) -> None:
    """A line now and then."""
    if done == of or done % 100 == 0:
        print(f"{done} of {of}", file=sys.stderr, flush=True)


def roughly(study: Study, schemes: Sequence[str]) -> Sensitivity:
    """Every layer in every scheme, by gradients."""
    every = {layer.name: tuple(map(parse_scheme, schemes)) for layer in study.layers}

    def make() -> list[Any]:
        found = estimate(
            study.graph,
            study.measured_on,
            every,
            study.store,
            journal=Journal(part=progress),
        )
        return [[r.layer, str(r.scheme), r.values, r.bytes, r.damage] for r in found.rows]

    rows = (
        Row(layer, parse_scheme(scheme), *rest)
        for layer, scheme, *rest in kept(study.out, "gradients", make)
    )
    return Sensitivity(tuple(rows), 1.0)


def at_size(
    study: Study, rough: Sensitivity, rows: Sensitivity, bits: float
) -> list[dict[str, Any]]:
    """All four ways at one size, largest plans that are no larger."""
    most = bits * study.values / 8
    finite = [row for row in rows.rows if math.isfinite(row.damage)]
    lines = [
        line(study, rows, name, schemes_of(way(finite, most)))
        for name, way in (("threshold", threshold), ("greedy", greedy))
    ]
    if alike := uniform(rough.rows, most):
        told = dataclasses.replace(rough, signal=rows.signal)
        lines.append(line(study, told, "uniform", schemes_of(alike)))
    began = time.perf_counter()
    made = refine(
        study.graph,
        study.measured_on,
        rows,
        partial(solved, limits=Limits(bytes=most)),
        study.store,
        journal=Journal(),
    )
    first = line(study, rows, "solved", made.first.solution.schemes)
    ours = line(study, rows, "ours", made.best.solution.schemes)
    took = {"gap": made.first.solution.gap, "seconds": time.perf_counter() - began}
    return [*lines, first | took, ours | took]


def solved(rows: Sensitivity, limits: Limits) -> Solution:
    """The best plan by what every layer does alone."""
    finite = [row for row in rows.rows if math.isfinite(row.damage)]
    return solve([Choice(r.layer, r.scheme, r.damage, r.bytes) for r in finite], limits)


def line(
    study: Study, rows: Sensitivity, method: str, schemes: Mapping[str, Scheme]
) -> dict[str, Any]:
    """A plan: its size, the damage that single layers foretell, and what the whole graph does."""
    sizes = {(row.layer, row.scheme): row.bytes for row in rows.rows}
    own, signal = study.damage(study.measured_on, schemes)
    other, loud = study.damage(study.judged_on, schemes)
    return {
        "method": method,
        "bytes": sum(sizes[pair] for pair in schemes.items()),
        "predicted_db": rows.db(rows.predicted(schemes)),
        "measured_db": dataclasses.replace(rows, signal=signal).db(own),
        "held_out_db": dataclasses.replace(rows, signal=loud).db(other),
        "schemes": {layer: str(scheme) for layer, scheme in schemes.items()},
    }


def kept(folder: Path, name: str, make: Callable[[], list[Any]]) -> list[Any]:
    """What `make` returns, from a file where it was made before."""
    path = folder / f"{name}.json"
    if not path.exists():
        write_file(path, json.dumps(make()))
    return list(json.loads(path.read_text("utf-8")))


if __name__ == "__main__":
    main()
