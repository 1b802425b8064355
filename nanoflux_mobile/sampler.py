"""Rectified-flow sampling as FLUX does it: the noise schedule, Euler steps and latent packing.

Everything takes numpy arrays and torch tensors alike, and computes in the type it is given.
The Swift and Kotlin twins copy these numbers, so each is a float32 value written as a double.

Shapes: B batch, Z latent channels, h w latent cells, p patch side, S = (h/p)(w/p) image tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from nanoflux_mobile.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")

_NUMBERS: dict[str, float] = {
    "shift": 1.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
"""Numbers read from scheduler_config.json, with the defaults of diffusers."""
_FIXED: dict[str, object] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "time_shift_type": "exponential",
    "shift_terminal": None,
    "invert_sigmas": False,
    "stochastic_sampling": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
"""Settings that FLUX leaves alone; any other value is another sampler than this one."""


@dataclass(frozen=True)
class Schedule:
    """Noise levels of a run: one before each step, then 0.0; 1.0 is pure noise.

    The first `low_steps` run the denoiser at low resolution, where it has one.
    """

    sigmas: tuple[float, ...]
    low_steps: int = 0

    def __post_init__(self) -> None:
        """Refuse levels that do not fall from at most 1.0 all the way to 0.0."""
        if not 0 <= self.low_steps < max(1, len(self.sigmas)):
            raise InputError(
                f"low_steps is {self.low_steps} of {len(self.sigmas) - 1} steps; give 0 to all"
            )
        falling = all(here > below for here, below in pairwise(self.sigmas))
        if len(self.sigmas) < 2 or not falling or self.sigmas[0] > 1.0 or self.sigmas[-1] != 0.0:
            raise InputError(
                f"the noise levels {self.sigmas} are no schedule; "
                "give at least two that fall from at most 1.0 and end with 0.0"
            )

    @property
    def steps(self) -> int:
        """How often the denoiser runs."""
        return len(self.sigmas) - 1


def _number(config: Mapping[str, object], name: str) -> float:
    value = config.get(name, _NUMBERS[name])
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(f"scheduler setting {name} is {value!r}; give a positive number")
    return float(value)


def _check(config: Mapping[str, object]) -> None:
    known = {*_NUMBERS, *_FIXED, "use_dynamic_shifting"}
    for name, value in config.items():
        if name in _FIXED and value != _FIXED[name]:
            raise InputError(
                f"scheduler setting {name} is {value!r}; only {_FIXED[name]!r} is supported, "
                "which is what FLUX uses"
            )
        if name not in known and not name.startswith("_"):
            raise InputError(
                f"scheduler setting {name} is not known; remove it if it has its default value, "
                f"known are {', '.join(sorted(known))}"
            )


def _log_shift(config: Mapping[str, object], image_tokens: int) -> float:
    """The shift's logarithm: a line through (base tokens, base shift) and (max, max)."""
    low, high = _number(config, "base_image_seq_len"), _number(config, "max_image_seq_len")
    base, top = _number(config, "base_shift"), _number(config, "max_shift")
    if low == high:
        raise InputError(f"base_image_seq_len and max_image_seq_len are both {low:g}; they differ")
    return base + (top - base) * (image_tokens - low) / (high - low)


def schedule(steps: int, config: Mapping[str, object], *, image_tokens: int) -> Schedule:
    """The noise levels FluxPipeline would use, to within float32 rounding.

    Even levels from 1 to 1/steps are moved towards noise by a factor: `shift`, or, with
    `use_dynamic_shifting`, one that grows with the number of image tokens.

    Args:
        steps: how often the denoiser runs, from 1.
        config: the contents of diffusers' scheduler_config.json; missing keys have its defaults.
        image_tokens: the S of the picture, from 1.

    Raises:
        InputError: a count below 1, or a setting that asks for another sampler.
    """
    _check(config)
    for name, count in (("steps", steps), ("image_tokens", image_tokens)):
        if count < 1:
            raise InputError(f"{name} is {count}; give a whole number from 1")
    dynamic = config.get("use_dynamic_shifting", False)
    if not isinstance(dynamic, bool):
        raise InputError(
            f"scheduler setting use_dynamic_shifting is {dynamic!r}; give true or false"
        )
    shift = math.exp(_log_shift(config, image_tokens)) if dynamic else _number(config, "shift")
    even = np.linspace(1.0, 1.0 / steps, steps)
    moved = (shift * even / (1.0 + (shift - 1.0) * even)).astype(np.float32)
    return Schedule((*map(float, moved), 0.0))


def euler(
    velocity: Callable[[Array, int], Array],
    latents: Array,
    schedule: Schedule,
    on_step: Callable[[int, Array], None] | None = None,
) -> Array:
    """Latents carried from noise to a picture, one step per noise level.

    Args:
        velocity: what the denoiser predicts for (latents, step), noise minus picture; step
            counts from 0, and `schedule.sigmas[step]` is the noise level.
        latents: float32 noise of any shape; it is not changed.
        schedule: the noise levels.
        on_step: called with (step, latents after it), for progress or golden records.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(schedule.sigmas)):
        latents = latents + (sigma_next - sigma) * velocity(latents, step)
        if on_step is not None:
            on_step(step, latents)
    return latents


def pack(latents_BZhw: Array, patch: int) -> Array:
    """Latents as tokens (B, S, Z*p*p): patches row by row, in each channel, row, column.

    Raises:
        InputError: the patch does not divide the height and the width.
    """
    batch, channels, height, width = latents_BZhw.shape
    if patch < 1 or height % patch or width % patch:
        raise InputError(
            f"patches of side {patch} do not tile latents of {height} x {width}; "
            "give a divisor of both"
        )
    rows, columns = height // patch, width // patch
    cells = latents_BZhw.reshape(batch, channels, rows, patch, columns, patch)
    ordered = cells.swapaxes(1, 2).swapaxes(2, 4).swapaxes(3, 4)
    return ordered.reshape(batch, rows * columns, channels * patch * patch)


def unpack(tokens_BSC: Array, height: int, width: int, patch: int) -> Array:
    """Tokens as latents (B, Z, height, width), in cells: what `pack` was given.

    Raises:
        InputError: the tokens are not those of such latents.
    """
    batch, count, features = tokens_BSC.shape
    fits = patch > 0 and count * patch * patch == height * width
    if not fits or height % patch or width % patch or features % (patch * patch):
        raise InputError(
            f"{count} tokens of {features} numbers in patches of side {patch} do not make latents "
            f"of {height} x {width}; give what pack was given"
        )
    rows, columns, channels = height // patch, width // patch, features // (patch * patch)
    cells = tokens_BSC.reshape(batch, rows, columns, channels, patch, patch)
    ordered = cells.swapaxes(3, 4).swapaxes(2, 4).swapaxes(1, 2)
    return ordered.reshape(batch, channels, height, width)


def image_ids(rows: int, columns: int) -> np.ndarray:
    """Positions of image tokens, float32 (rows * columns, 3): 0, row, column."""
    grid = np.zeros((rows, columns, 3), np.float32)
    grid[..., 1] = np.arange(rows)[:, None]
    grid[..., 2] = np.arange(columns)
    return grid.reshape(-1, 3)


def text_ids(tokens: int) -> np.ndarray:
    """Positions of text tokens, float32 (tokens, 3): all zero, as words have no place."""
    return np.zeros((tokens, 3), np.float32)
