"""Runs one function of a .tflite file on LiteRT's GPU accelerator, as a program of its own.

    python gpu_child.py FOLDER

FOLDER holds what `put` left there; `answer` reads what the program made of it. It imports nothing
of this package, so it runs wherever LiteRT does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

_ASK, _TOLD = "ask.json", "told.json"
_INPUTS, _OUTPUTS = "inputs.safetensors", "outputs.safetensors"


def put(folder: Path, ask: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> None:
    """Leave what to run in a folder: path, function, half, rest_on_cpu; and its inputs."""
    save_file({name: np.ascontiguousarray(x) for name, x in inputs.items()}, folder / _INPUTS)
    (folder / _ASK).write_text(json.dumps(ask), "utf-8")


def answer(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a run told, fully_accelerated and seconds, and its outputs."""
    told = json.loads((folder / _TOLD).read_text("utf-8"))
    return told, dict(load_file(folder / _OUTPUTS))


def main(folder: Path) -> None:
    """Compile, run, and write what came out."""
    ask, start = json.loads((folder / _ASK).read_text("utf-8")), time.perf_counter()
    model = _compiled(ask)
    outputs = _run(model, ask["function"], load_file(folder / _INPUTS))
    seconds = time.perf_counter() - start
    told = {"fully_accelerated": model.is_fully_accelerated(), "seconds": seconds}
    save_file(outputs, folder / _OUTPUTS)
    (folder / _TOLD).write_text(json.dumps(told), "utf-8")


def _compiled(ask: Mapping[str, Any]) -> Any:
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator
    from ai_edge_litert.options import GpuOptions, Options

    places = HardwareAccelerator.GPU
    if ask["rest_on_cpu"]:
        places |= HardwareAccelerator.CPU
    precision = GpuOptions(enforce_f32=not ask["half"])
    options = Options(hardware_accelerators=places, gpu_options=precision)
    return CompiledModel.from_file(ask["path"], options=options)


def _run(model: Any, function: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    details = model.get_output_tensor_details(function)
    taken = {name: model.create_input_buffer_by_name(function, name) for name in inputs}
    given = {name: model.create_output_buffer_by_name(function, name) for name in details}
    for name, value in inputs.items():
        taken[name].write(value)
    model.run_by_name(function, taken, given)
    outputs = {}
    for name, buffer in given.items():
        shape, dtype = details[name]["shape"], np.dtype(details[name]["dtype"])
        outputs[name] = np.array(buffer.read(int(np.prod(shape)), dtype)).reshape(shape)
    return outputs


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # all is answered; taking a driver down may crash, and says nothing
