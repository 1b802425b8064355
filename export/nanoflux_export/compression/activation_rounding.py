"""Layers that compute on 8-bit inputs: the grid of each input, and PyTorch rounding to it alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from nanoflux_export.compression.plan import Plan
from nanoflux_mobile.errors import NanofluxError

ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layers whose input is rounded; lookups and transposed convolutions take theirs as it is."""

LEAST, MOST = -128, 127


def activation_scale(plan: Plan, layer: str) -> np.float16:
    """The step of the symmetric 8-bit grid over the range that enters a layer.

    As coremltools lays it: the largest magnitude is step 127, and a step that half precision
    cannot tell from zero is 1.

    Raises:
        NanofluxError: the plan has no range of the layer.
    """
    if layer not in plan.ranges:
        raise NanofluxError(
            f"{layer} is to take 8-bit inputs, but nothing says in what range they lie; "
            "calibrate it, or store it as int8"
        )
    least, most = plan.ranges[layer]
    return np.float16(max(abs(least), abs(most)) / MOST) or np.float16(1)


def with_rounded_inputs(module: nn.Module, weights: str, plan: Plan) -> nn.Module:
    """The module itself, whose layers of `Scheme.activations` 8 now round what enters them.

    `weights` is the `Segment.weights` that the plan calls its layers by.

    Raises:
        NanofluxError: the plan has no range of such a layer.
    """
    names = {id(tensor): name for name, tensor in module.named_parameters()}
    for part in module.modules():
        if isinstance(part, ROUNDED):
            layer = f"{weights}/{names[id(part.weight)]}"
            if plan.of(layer).activations == 8:
                part.register_forward_pre_hook(_rounding(float(activation_scale(plan, layer))))
    return module


def _rounding(scale: float) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def rounded(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ((given[0] / scale).round().clamp(LEAST, MOST) * scale, *given[1:])

    return rounded
