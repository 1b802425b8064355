"""One measured agreement between two runs of the same graph, and the floor it must hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

CEILING_DB = 200.0
"""PSNR of equal arrays, so that reports stay finite."""

Reference = Literal["rounded", "fp32", "half"]


@dataclass(frozen=True)
class Parity:
    """PSNR of one component (or `image`) against one reference.

    `rounded`: PyTorch on the same rounded weights. `fp32`: PyTorch on the weights as trained.
    `half`: as `rounded`, the saved file computing in half precision, as a phone's accelerator does.
    """

    component: str
    reference: Reference
    psnr_db: float
    floor_db: float

    @property
    def holds(self) -> bool:
        """Whether the figure reaches its floor; not-a-number never does."""
        return self.psnr_db >= self.floor_db


def psnr_db(actual: np.ndarray, expected: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB; the peak is the range of `expected`.

    Shapes must agree. Values that are not finite give -inf, equal arrays give 200.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"shapes differ: {actual.shape} and {expected.shape}")
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return -math.inf
    mse = float(np.square(actual - expected).mean())
    peak = float(np.ptp(expected)) or 1.0
    return CEILING_DB if mse == 0.0 else min(CEILING_DB, 10.0 * math.log10(peak**2 / mse))
