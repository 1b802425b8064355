"""Running a saved .tflite file on this machine's CPU.

The runtime is LiteRT's Interpreter with its XNNPACK kernels, the ones CompiledModel uses on a CPU
too. It maps the file instead of reading it, so a file of several gigabytes costs no second copy,
and it answers by tensor name.

What a damaged file can do: one cut short never gets past `model_file`. One whose bytes were
overwritten may pass every reader (a weight) or even kill the process inside a kernel (an op given
another kind or number of tensors). Only the sha256 in the manifest protects from that, so a file
from outside is hashed before it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanoflux_export.graph import MAIN, Runner
from nanoflux_export.targets.litert.model_file import check_signature, read_model
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Component


def load(path: Path, component: Component, function: str = MAIN) -> Runner:
    """A function of the saved graph at `path`, with as many threads as torch would use.

    `component` says what the function takes and returns. The runner takes every input by name and
    returns every output by name; it keeps the file mapped, and two threads must not call it at
    once.

    Raises:
        InputError: no .tflite file, a damaged one, or one whose tensors are not the component's.
            The runner raises it on inputs of another name, shape or type.
    """
    check_signature(read_model(path), component, function)
    signature = _signature(path, function)

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        _check_inputs(component, inputs)
        try:
            values = signature(**inputs)
        except RuntimeError as error:
            raise InputError(f"{path} cannot compute these inputs ({_reason(error)})") from error
        return {spec.name: values[spec.name] for spec in component.outputs}

    return run


def _signature(path: Path, function: str) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    try:
        model = Interpreter(str(path), num_threads=torch.get_num_threads())
        return model.get_signature_runner(function)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} cannot be loaded ({_reason(error)}); copy it again whole, or export it again"
        ) from error


def _check_inputs(component: Component, inputs: Mapping[str, np.ndarray]) -> None:
    names = [spec.name for spec in component.inputs]
    if set(inputs) != set(names):
        raise InputError(
            f"{component.name} takes {', '.join(names)}; it was given {', '.join(inputs) or 'none'}"
        )
    for spec in component.inputs:
        value = inputs[spec.name]
        if value.shape != spec.shape or value.dtype != np.dtype(spec.dtype):
            raise InputError(
                f"{component.name}.{spec.name} is {value.dtype} {value.shape}; "
                f"it must be {spec.dtype} {spec.shape} ({', '.join(spec.axes)})"
            )


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
