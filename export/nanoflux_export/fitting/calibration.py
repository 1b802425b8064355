"""What enters every graph of a student while it draws the recipe's prompts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import cast

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as to_bytes

from nanoflux_export.golden import Request, Tensors, draw_request, probes, record_steps
from nanoflux_export.graph import MAIN, STEP_FULL, STEP_LOW, MobileGraph
from nanoflux_export.student import Student, golden_request
from nanoflux_export.torch_run import torch_graphs, torch_runner
from nanoflux_mobile.drawing import Graphs
from nanoflux_mobile.sampler import Schedule
from nanoflux_mobile.spec import ComponentName, Recipe, content_digest
from nanoflux_mobile.storage import write_file

Inputs = Mapping[str, np.ndarray]
Entry = tuple[ComponentName, str]
"""A graph and one of its functions."""

_SAME = "same"
"""Key of a saved file's metadata that says which arrays were equal to one that it holds."""


@dataclass(frozen=True)
class Calibration:
    """Inputs by graph and function, one entry for each time the function ran."""

    inputs: Mapping[tuple[ComponentName, str], tuple[Inputs, ...]]


def record(
    student: Student,
    recipe: Recipe,
    *,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Calibration:
    """What enters the graphs as the float32 student draws prompts in PyTorch, step by step.

    A recipe whose proof is `steps` means networks too large to draw with: of those it is the first
    prompt, and noise mixed as at the first step of every form of the denoiser.

    Args:
        student: whose graphs run.
        recipe: what it draws with.
        prompts: what it draws; the recipe's calibration prompts by default.
        seeds: one for each prompt; 0, 1, 2, ... by default.
    """
    prompts = recipe.calibration_prompts if prompts is None else prompts
    seeds = range(len(prompts)) if seeds is None else seeds
    requests = [
        dataclasses.replace(_request(student, recipe, prompt), seed=seed)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    if recipe.proof == "steps":
        graphs = torch_graphs(student.graphs, keep=False)
        return _calibration([(requests[0], _mixed(graphs, requests[0]))], student.graphs)
    graphs = torch_graphs(student.graphs)
    drawn = [(request, _drawn(graphs, request)) for request in requests]
    return _calibration(drawn, student.graphs)


def _request(student: Student, recipe: Recipe, prompt: str) -> Request:
    return golden_request(student, dataclasses.replace(recipe, calibration_prompts=(prompt,)))


def _drawn(graphs: Graphs, request: Request) -> Tensors:
    """A drawing in the words of a golden run that probes every step."""
    drawing = draw_request(graphs, request)
    latents = {f"latents.{i}": one for i, one in enumerate(drawing.latents)}
    return latents | {
        "token_ids": request.token_ids,
        "step_tables": request.step_tables,
        "probe_steps": np.arange(request.schedule.steps),
        "final_latents": drawing.final_latents,
        "fp32.text_encoder.0": drawing.text_states,
    }


def _mixed(graphs: Graphs, request: Request) -> Tensors:
    """What the golden run of single steps probes; only the text encoder runs for it."""
    states = graphs.text_encoder({"token_ids": request.token_ids})

    def echo(inputs: Inputs) -> Tensors:
        return dict(inputs)

    silent = Graphs(echo, echo, echo, echo)
    encoded = dataclasses.replace(silent, text_encoder=lambda inputs: states)
    return record_steps(request, encoded, silent)


def _calibration(
    runs: Sequence[tuple[Request, Tensors]], graphs: Sequence[MobileGraph]
) -> Calibration:
    found: dict[Entry, list[Inputs]] = {
        (graph.name, function): [] for graph in graphs for function in graph.functions
    }
    for request, golden in runs:
        for name, entries in probes(golden).items():
            steps = golden["probe_steps"] if name == "denoiser" else range(len(entries))
            for step, inputs in zip(steps, entries, strict=True):
                low = [function for graph, function in found if graph == name]
                found[name, _function(low, int(step), request.schedule)].append(inputs)
    return Calibration({entry: tuple(inputs) for entry, inputs in found.items()})


def _function(functions: Sequence[str], step: int, schedule: Schedule) -> str:
    """Which of a graph's functions runs at a step."""
    if MAIN in functions:
        return MAIN
    return STEP_LOW if step < schedule.low_steps else STEP_FULL


def references(
    graph: MobileGraph, calibration: Calibration, *, keep: bool = True
) -> dict[str, tuple[Tensors, ...]]:
    """What each function of a graph answers in float32, entry by entry.

    With `keep`, its modules stay in memory meanwhile; without, it may be larger than memory.
    """
    found: dict[str, tuple[Tensors, ...]] = {}
    for name, function in graph.functions.items():
        run = torch_runner(function, keep=keep)
        found[name] = tuple(run(inputs) for inputs in calibration.inputs[graph.name, name])
    return found


def save(calibration: Calibration, path: Path) -> None:
    """Write a calibration as safetensors, arrays of equal content once.

    Keys are graph|function|entry|input, as in denoiser|step_full|12|latents.
    """
    kept: dict[str, str] = {}
    tensors: Tensors = {}
    same: dict[str, str] = {}
    for key, array in sorted(_named(calibration), key=itemgetter(0)):
        first = kept.setdefault(_digest(array), key)
        if first == key:
            tensors[key] = np.ascontiguousarray(array)
        else:
            same[key] = first
    # safetensors writes metadata in no fixed order, so there is one entry only.
    write_file(path, to_bytes(tensors, {_SAME: json.dumps(same, sort_keys=True)}))


def load(path: Path) -> Calibration:
    """A saved calibration; arrays of equal content are one array."""
    with safe_open(path, "numpy") as file:
        same: dict[str, str] = json.loads(file.metadata()[_SAME])
        tensors: Tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors |= {key: tensors[first] for key, first in same.items()}
    found: dict[Entry, dict[int, dict[str, np.ndarray]]] = {}
    for key, array in tensors.items():
        graph, function, entry, name = key.split("|")
        entries = found.setdefault((cast(ComponentName, graph), function), {})
        entries.setdefault(int(entry), {})[name] = array
    return Calibration(
        {key: tuple(entries[i] for i in sorted(entries)) for key, entries in found.items()}
    )


def _named(calibration: Calibration) -> Iterator[tuple[str, np.ndarray]]:
    for (graph, function), entries in calibration.inputs.items():
        for i, inputs in enumerate(entries):
            for name, array in inputs.items():
                yield f"{graph}|{function}|{i}|{name}", array


def _digest(array: np.ndarray) -> str:
    """Of type, shape and values."""
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return content_digest([str(array.dtype), list(array.shape), content])
