"""A mobile graph as an .mlpackage: traced, converted to an iOS 18 ML Program in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nanoflux_export.compression.rounding import half
from nanoflux_export.graph import MobileGraph
from nanoflux_export.targets.coreml.quiet import quiet
from nanoflux_export.targets.coreml.saving import save
from nanoflux_mobile.errors import NanofluxError
from nanoflux_mobile.spec import Component, TensorSpec

_TORCH_TYPES = {"float32": torch.float32, "float16": torch.float16, "int32": torch.int32}
_NUMPY_TYPES = {"float32": np.float32, "float16": np.float16, "int32": np.int32}

_WEIGHT_CHANGING_PASSES = ("common::fuse_conv_scale", "common::fuse_conv_batchnorm")
"""Left out, so that a file holds the module's own weights; fold such factors into the module."""

_MENDED_VALUES = 400
"""coremltools lifts values that round to zero in tensors smaller than this, weights included."""


def convert(graph: MobileGraph, out: Path) -> None:
    """Write `graph` to `out` in half precision, its inputs and outputs as the component says.

    A float32 input or output stays float32 in the file's interface: the casts run on the phone,
    and the app needs no half-precision buffers. The module is left in evaluation mode.

    Raises:
        InputError: a weight beyond the range of half precision, or `out` cannot be written.
        NanofluxError: the converted graph has not the inputs and outputs of the component.
    """
    with quiet(), _representable(graph.module):
        model = _converted(graph)
        _check_interface(model.get_spec().description, graph.component)
        save(model, out)


def _converted(graph: MobileGraph) -> Any:
    import coremltools as ct

    component = graph.component
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(_WEIGHT_CHANGING_PASSES)
    return ct.convert(
        _traced(graph.module, component.inputs),
        inputs=[
            ct.TensorType(spec.name, spec.shape, _NUMPY_TYPES[spec.dtype])
            for spec in component.inputs
        ],
        outputs=[
            ct.TensorType(spec.name, None, _NUMPY_TYPES[spec.dtype]) for spec in component.outputs
        ],
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        compute_units=ct.ComputeUnit.CPU_AND_NE,
        pass_pipeline=pipeline,
        skip_model_load=True,
    )


@torch.no_grad()
def _traced(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> Any:
    examples = tuple(torch.zeros(spec.shape, dtype=_TORCH_TYPES[spec.dtype]) for spec in inputs)
    return torch.jit.trace(module.eval(), examples, check_trace=False)


@contextmanager
def _representable(module: nn.Module) -> Iterator[None]:
    """Check every weight, and for the time of the block hold small ones at half precision.

    Otherwise coremltools lifts what rounds to zero to the least half-precision number; rounded
    before, it stays zero.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            if tensor.is_floating_point():
                nearest = half(name, tensor.detach())
                if tensor.numel() < _MENDED_VALUES:
                    kept.append((tensor, tensor.data))
                    tensor.data = nearest
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


def _check_interface(description: Any, component: Component) -> None:
    made = [
        (feature.name, tuple(feature.type.multiArrayType.shape))
        for feature in (*description.input, *description.output)
    ]
    wanted = [(spec.name, spec.shape) for spec in (*component.inputs, *component.outputs)]
    if made != wanted:
        raise NanofluxError(f"{component.name} became {made}, but its component says {wanted}")
