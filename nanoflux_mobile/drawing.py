"""From a prompt to pixels with any three graphs: PyTorch modules or saved phone files.

The host's whole share of the work is here: tokens in, noise, the step table, Euler, unpacking.

Shapes of the graphs, in the layout phones want: token_ids (1, T), text_states (1, J, 1, T),
latents of the denoiser (1, C, 1, S), step_table (1, D, 1, N), velocity as latents; latents of the
decoder (1, Z, h, w), image (1, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.noise import gaussian
from nanoflux_mobile.sampler import Schedule, euler, pack, unpack

Runner = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
"""Runs a graph: every input by name to every output by name."""


@dataclass(frozen=True)
class Graphs:
    """The three graphs of a text-to-image system.

    `low_denoiser` is the denoiser at low resolution, for the first `Schedule.low_steps`.
    """

    text_encoder: Runner
    denoiser: Runner
    decoder: Runner
    low_denoiser: Runner | None = None

    def denoiser_at(self, step: int, schedule: Schedule) -> Runner:
        """The denoiser of a step; InputError where the schedule asks for one that is not there."""
        if step >= schedule.low_steps:
            return self.denoiser
        if self.low_denoiser is None:
            raise InputError(
                f"{schedule.low_steps} steps are to run at low resolution, but this denoiser has "
                "no such form; export it from a student with token downsampling"
            )
        return self.low_denoiser


@dataclass(frozen=True)
class Canvas:
    """What the host must know of the latents: channels, height, width, and the patch side."""

    channels: int
    height: int
    width: int
    patch: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the latents of one picture."""
        return (1, self.channels, self.height, self.width)

    @property
    def tokens(self) -> int:
        """Image tokens the denoiser sees."""
        return self.height * self.width // self.patch**2


@dataclass(frozen=True)
class Drawing:
    """A finished picture and what led to it; latents are float32 (1, C, 1, S)."""

    text_states: np.ndarray
    latents: tuple[np.ndarray, ...]
    final_latents: np.ndarray
    image: np.ndarray

    def pixels(self) -> np.ndarray:
        """uint8 (H, W, 3), RGB."""
        return to_uint8(self.image)


def to_uint8(image_BCHW: np.ndarray) -> np.ndarray:
    """Pixels in [-1, 1], (1, 3, H, W), as uint8 (H, W, 3); values outside are clipped."""
    scaled = np.rint((np.clip(image_BCHW[0], -1.0, 1.0) + 1.0) * 127.5)
    return scaled.astype(np.uint8).transpose(1, 2, 0)


def noise_tokens(seed: int, canvas: Canvas) -> np.ndarray:
    """The starting noise of a seed, packed as the denoiser takes it: (1, C, 1, S)."""
    return _columns(pack(gaussian(seed, canvas.shape), canvas.patch))


def _columns(tokens_BSC: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(tokens_BSC.transpose(0, 2, 1)[:, :, None])


def draw(
    graphs: Graphs,
    token_ids: np.ndarray,
    step_tables: np.ndarray,
    schedule: Schedule,
    canvas: Canvas,
    seed: int,
    on_step: Callable[[int], None] = lambda step: None,
) -> Drawing:
    """One picture; the same seed gives the same noise everywhere.

    Args:
        graphs: who computes.
        token_ids: int32 (1, T), padded.
        step_tables: modulation of every step, float32 (steps, 1, D, 1, N).
        schedule: noise levels, one more than there are steps.
        canvas: the latents' geometry.
        seed: 0 to 2**64 - 1.
        on_step: called after each step, for progress.
    """
    text_states = graphs.text_encoder({"token_ids": token_ids})["text_states"]
    seen: list[np.ndarray] = []

    def velocity(latents: np.ndarray, step: int) -> np.ndarray:
        seen.append(latents)
        inputs = {"latents": latents, "text_states": text_states, "step_table": step_tables[step]}
        return graphs.denoiser_at(step, schedule)(inputs)["velocity"]

    start = noise_tokens(seed, canvas)
    tokens = euler(velocity, start, schedule, lambda step, _: on_step(step))
    cells = unpack(tokens[:, :, 0].transpose(0, 2, 1), canvas.height, canvas.width, canvas.patch)
    final = np.ascontiguousarray(cells)
    return Drawing(text_states, tuple(seen), final, graphs.decoder({"latents": final})["image"])
