"""The golden run of a bundle: one prompt drawn by PyTorch, and what every graph must answer to it.

Two references, so that two questions stay apart. `rounded` is the mobile module holding exactly
the weights that were shipped: a difference means the graph is wrong. `fp32` is the student as
trained: a difference is what compression cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from nanoflux_mobile.drawing import Canvas, Drawing, Graphs, draw, noise_tokens
from nanoflux_mobile.noise import gaussian
from nanoflux_mobile.sampler import Schedule
from nanoflux_mobile.spec import ComponentName

Tensors = dict[str, np.ndarray]
REFERENCES = ("rounded", "fp32")
GOLDEN_SEED = 0


@dataclass(frozen=True)
class Request:
    """What to draw: everything the host feeds into the graphs."""

    token_ids: np.ndarray
    step_tables: np.ndarray
    schedule: Schedule
    canvas: Canvas
    seed: int


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


def probes(golden: Tensors) -> dict[ComponentName, list[Tensors]]:
    """Inputs of every component in the golden run; of the denoiser, at `probe_steps`."""
    denoiser = [
        {
            "latents": golden[f"latents.{i}"],
            "text_states": golden["fp32.text_encoder.0"],
            "step_table": golden["step_tables"][i],
        }
        for i in golden["probe_steps"]
    ]
    return {
        "text_encoder": [{"token_ids": golden["token_ids"]}],
        "denoiser": denoiser,
        "decoder": [{"latents": golden["final_latents"]}],
    }


def answers(
    name: ComponentName, graphs: Graphs, golden: Tensors, schedule: Schedule
) -> list[np.ndarray]:
    """The single output of component `name` for each of its probes."""
    inputs, runners = probes(golden)[name], [getattr(graphs, name)]
    if name == "denoiser":
        runners = [graphs.denoiser_at(int(i), schedule) for i in golden["probe_steps"]]
    pairs = zip(runners, inputs, strict=True)
    return [next(iter(run(one).values())) for run, one in pairs]


def record_image(request: Request, fp32: Graphs, rounded: Graphs) -> Tensors:
    """The golden run of a whole picture; the denoiser is compared at first, middle, last step."""
    steps = request.schedule.steps
    drawing = draw_request(fp32, request)
    golden: Tensors = {
        "token_ids": request.token_ids,
        "step_tables": request.step_tables,
        "probe_steps": np.array(sorted({0, steps // 2, steps - 1}), np.int32),
        "final_latents": drawing.final_latents,
        "fp32.text_encoder.0": drawing.text_states,
        "fp32.image": drawing.image,
        "rounded.image": draw_request(rounded, request).image,
    }
    golden |= {f"latents.{i}": latents for i, latents in enumerate(drawing.latents)}
    return _answered(golden, request.schedule, fp32, rounded)


def record_steps(request: Request, fp32: Graphs, rounded: Graphs) -> Tensors:
    """The golden run of one step of every form of the denoiser, on noise; no picture.

    For networks that would take many minutes to draw with. Latents of a step at noise level s are
    a mixture of s parts noise and 1 - s parts other noise, as far from zero as a picture's.
    """
    schedule, canvas = request.schedule, request.canvas
    noise, other = (noise_tokens(request.seed + i, canvas) for i in (0, 1))
    steps = sorted({0, schedule.low_steps % schedule.steps})
    golden: Tensors = {
        "token_ids": request.token_ids,
        "step_tables": request.step_tables,
        "probe_steps": np.array(steps, np.int32),
        "final_latents": gaussian(request.seed + 1, canvas.shape),
        "fp32.text_encoder.0": fp32.text_encoder({"token_ids": request.token_ids})["text_states"],
    }
    for i in steps:
        level = np.float32(schedule.sigmas[i])
        golden[f"latents.{i}"] = level * noise + (1 - level) * other
    return _answered(golden, schedule, fp32, rounded)


def _answered(golden: Tensors, schedule: Schedule, fp32: Graphs, rounded: Graphs) -> Tensors:
    """The golden tensors with what both references answer to every probe."""
    answered = dict(golden)
    for name in probes(golden):
        for reference, graphs in (("fp32", fp32), ("rounded", rounded)):
            for i, answer in enumerate(answers(name, graphs, golden, schedule)):
                answered[f"{reference}.{name}.{i}"] = answer
    return {key: np.ascontiguousarray(value) for key, value in answered.items()}


def save_golden(golden: Tensors, path: Path) -> None:
    """Write the golden tensors; the caller stages the folder."""
    save_file(golden, path)


def load_golden(path: Path) -> Tensors:
    """The golden tensors of a bundle whose hashes were checked."""
    return dict(load_file(path))
