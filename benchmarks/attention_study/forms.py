"""What each way to write attention costs in the files of every target.

    PYTHONPATH=.:export python benchmarks/attention_study/forms.py [coreml] [litert]

Writes the denoiser of the tiny checkpoint, and a double and a single block of full width with
random weights, in all forms, and prints one Markdown table of what is found in the saved files.
Seconds are processor time of one thread, the least of several runs.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from nanoflux_export.bundle import target_named
from nanoflux_export.compression.rounding import rounded
from nanoflux_export.families.nanoflux import denoiser, denoiser_function
from nanoflux_export.graph import MAIN, MobileGraph, Target
from nanoflux_export.rewrites.head_attention import FORMS, with_attention
from nanoflux_export.torch_run import torch_runner
from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.families import nanoflux
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.nanoflux_layers import rope_tables
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.sampler import image_ids, text_ids
from nanoflux_mobile.spec import Component, parse_scheme
from nanoflux_mobile.weights import network

FP16 = parse_scheme("fp16")
FULL = FluxConfig(
    in_channels=64,
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=96,
    num_attention_heads=16,
    joint_attention_dim=1024,
    pooled_projection_dim=768,
    guidance_embeds=False,
    axes_dims_rope=(16, 40, 40),
    static_steps=1,
)
SIDE, WORDS = 32, 256  # tokens of a picture of 512 pixels along each side, and of its prompt
RUNS = {"litert": 5}
"""How often a target's files are timed here; Core ML's runtime is not on this machine."""

Row = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """A network in one form, on its way to one target."""

    name: str
    graph: MobileGraph
    form: str
    target: Target


def main(names: list[str]) -> None:
    """Print the table, row by row as they are measured."""
    torch.set_num_threads(1)
    for i, case in enumerate(cases(names or ["coreml", "litert"])):
        row = measured(case)
        if not i:
            print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}", flush=True)
        print(f"| {' | '.join(row.values())} |", flush=True)


def cases(names: list[str]) -> Iterator[Case]:
    """Every network in every form for every target."""
    for name, make in {"tiny denoiser": tiny, "two full blocks": full_width}.items():
        graph = make()
        for target in map(target_named, names):
            for form in FORMS:
                yield Case(name, with_attention(graph, form), form, target)


def tiny() -> MobileGraph:
    """The shipped student's denoiser at full resolution."""
    student = nanoflux.load(open_checkpoint(Path(str(files("nanoflux_mobile") / "assets/tiny"))))
    function = list(denoiser(student).functions.values())[-1]
    return MobileGraph("denoiser", {MAIN: function})


def full_width() -> MobileGraph:
    """A double and a single block of the 1.8 B student, 90 million random weights."""
    torch.manual_seed(0)
    rope = rope_tables(
        torch.from_numpy(np.concatenate((text_ids(WORDS), image_ids(SIDE, SIDE)))),
        FULL.axes_dims_rope,
    )
    function = denoiser_function(network(NanoFlux(FULL)), SIDE * SIDE, WORDS, rope)
    return MobileGraph("denoiser", {MAIN: function})


def measured(case: Case) -> Row:
    """What the saved file holds, costs and answers."""
    target, graph = case.target, case.graph
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"denoiser{target.SUFFIX}"
        target.write(graph, FP16, path)
        ops = {kind.lower(): count for kind, count in target.summarize(path).ops.items()}
        found = Counter({f"{x.severity} {x.rule}": x.count for x in target.lint(path, "denoiser")})
        blocks = target.cost(path, "denoiser").blocks
        parity, seconds = ran(case, path)
    moved = sum(block.weight_bytes + block.activation_bytes for block in blocks)
    return {
        "network": case.name,
        "target": target.NAME,
        "form": case.form,
        "ops": str(sum(ops.values())),
        "of them": ", ".join(f"{ops[kind]} {kind}" for kind in WATCHED if kind in ops),
        "GMAC": f"{sum(block.macs for block in blocks) / 1e9:.2f}",
        "MB moved": f"{moved / 1e6:.0f}",
        "MB at once": f"{max(block.working_set_bytes for block in blocks) / 1e6:.1f}",
        "lint": "; ".join(f"{count} {rule}" for rule, count in found.items()) or "-",
        "CPU s": seconds,
        "parity dB": f"{parity:.0f}",
    }


WATCHED = (
    *("matmul", "batch_matmul", "einsum", "scaled_dot_product_attention", "fully_connected"),
    *("softmax", "transpose", "reshape", "split", "slice", "slice_by_index", "concat"),
    *("concatenation", "mul", "reduce_max", "exp", "sum", "div"),
)
"""Ops in which the forms differ."""


def ran(case: Case, path: Path) -> tuple[float, str]:
    """Agreement with torch on the same weights, and seconds where they mean anything."""
    function, target = case.graph.functions[MAIN], case.target

    def twin(_: Any, module: Any) -> Any:
        return rounded(module, FP16, half_constants=target.HALF_CONSTANTS)

    draw = np.random.default_rng(0)
    inputs = {x.name: draw.normal(size=x.shape).astype(np.float32) for x in function.inputs}
    run = target.load(path, Component("denoiser", function.inputs, function.outputs))
    ours, theirs = run(inputs), torch_runner(function, twin, keep=False)(inputs)
    name = function.outputs[0].name
    runs = RUNS.get(target.NAME, 0)
    seconds = f"{min(timed(lambda: run(inputs)) for _ in range(runs)):.3f}" if runs else "-"
    return psnr_db(ours[name], theirs[name]), seconds


def timed(call: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main(sys.argv[1:])
