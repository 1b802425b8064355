"""The golden run of a bundle: one prompt drawn by PyTorch, and what every graph must answer to it.

Two references, so that two questions stay apart. `rounded` is the mobile module holding exactly
the weights that were shipped: a difference means the graph is wrong. `fp32` is the student as
trained: a difference is what compression cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from nanoflux_export.graph import MobileGraph
from nanoflux_mobile.drawing import Canvas, Drawing, Graphs, Runner, draw
from nanoflux_mobile.sampler import Schedule

Tensors = dict[str, np.ndarray]
REFERENCES = ("rounded", "fp32")


@dataclass(frozen=True)
class Request:
    """What to draw: everything the host feeds into the graphs."""

    token_ids: np.ndarray
    step_tables: np.ndarray
    schedule: Schedule
    canvas: Canvas
    seed: int


def torch_runner(graph: MobileGraph) -> Runner:
    """A mobile module behind the interface of saved files."""

    @torch.inference_mode()
    def run(inputs: Mapping[str, np.ndarray]) -> Tensors:
        tensors = [torch.from_numpy(inputs[spec.name]) for spec in graph.component.inputs]
        return {graph.component.outputs[0].name: graph.module(*tensors).numpy()}

    return run


def draw_request(
    graphs: Graphs, request: Request, on_step: Callable[[int], None] = lambda step: None
) -> Drawing:
    """The drawing of a request; `on_step` hears of every finished step."""
    return draw(
        graphs,
        request.token_ids,
        request.step_tables,
        request.schedule,
        request.canvas,
        request.seed,
        on_step,
    )


def probe_steps(steps: int) -> tuple[int, ...]:
    """The steps at which the denoiser is compared: first, middle, last."""
    return tuple(sorted({0, steps // 2, steps - 1}))


def probes(golden: Tensors, steps: int) -> dict[str, list[Tensors]]:
    """Inputs of every component in the golden run."""
    denoiser = [
        {
            "latents": golden[f"latents.{i}"],
            "text_states": golden["fp32.text_encoder.0"],
            "step_table": golden["step_tables"][i],
        }
        for i in probe_steps(steps)
    ]
    return {
        "text_encoder": [{"token_ids": golden["token_ids"]}],
        "denoiser": denoiser,
        "decoder": [{"latents": golden["final_latents"]}],
    }


def answers(name: str, graphs: Graphs, inputs: list[Tensors]) -> list[np.ndarray]:
    """The single output of component `name` for each probe."""
    return [next(iter(getattr(graphs, name)(one).values())) for one in inputs]


def record(request: Request, fp32: Graphs, rounded: Graphs) -> Tensors:
    """Every tensor of the golden run, by the names `probes` and `verify` read."""
    drawing = draw_request(fp32, request)
    golden: Tensors = {
        "token_ids": request.token_ids,
        "step_tables": request.step_tables,
        "final_latents": drawing.final_latents,
        "fp32.text_encoder.0": drawing.text_states,
        "fp32.image": drawing.image,
        "rounded.image": draw_request(rounded, request).image,
    }
    golden |= {f"latents.{i}": latents for i, latents in enumerate(drawing.latents)}
    for name, inputs in probes(golden, request.schedule.steps).items():
        for reference, graphs in (("fp32", fp32), ("rounded", rounded)):
            for i, answer in enumerate(answers(name, graphs, inputs)):
                golden[f"{reference}.{name}.{i}"] = answer
    return {key: np.ascontiguousarray(value) for key, value in golden.items()}


def save_golden(golden: Tensors, path: Path) -> None:
    """Write the golden tensors; the caller stages the folder."""
    save_file(golden, path)


def load_golden(path: Path) -> Tensors:
    """The golden tensors of a bundle whose hashes were checked."""
    return dict(load_file(path))
