"""LiteRT's GPU accelerator on this machine: what a phone's GPU would refuse or get wrong.

ai-edge-litert for Linux holds the accelerator that phones have (ML Drift), speaking WebGPU to a
Vulkan driver, and a driver in software will do. It reads graphs as a phone's does, so it refuses
what a phone refuses, computes in true half precision, and shows where its shaders are wrong. It
says nothing of a phone's speed, nor of what its other backends alone get wrong.

It may end its process, crash or hang on a graph that it does not like, so it always runs in a
process of its own.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoflux_export.graph import MAIN
from nanoflux_export.targets.litert import gpu_child
from nanoflux_export.targets.litert.model_file import Graph, read_model
from nanoflux_mobile.errors import CheckFailed, InputError

GET_DRIVER = (
    "run tests/toolchains/vulkan.sh of a checkout of nanoflux-mobile, or name the .json file of a "
    "driver in NANOFLUX_VULKAN_ICD"
)

_NAMED = ("NANOFLUX_VULKAN_ICD", "VK_ICD_FILENAMES")
_DEVICE = re.compile(r"Selected adapter: (.*?), arch=")
_OFF_GPU = re.compile(
    r"not supported by GPU delegate:\s*\n(.*?)\n((?:No|\d+) operations will run[^\n]*)", re.S
)
_ERROR = re.compile(r"^(?:E\d{4} .*?\] |ERROR: (?:\[[^\]]*\] )?)(.+)$", re.M)
_RAISED = re.compile(r"^(\w+Error: .+(?:\n└ .+)*)", re.M)
_CREATING = re.compile(r"^Failed to create \S*DelegateKernel\S*: ")
_SAY_NOTHING = ("Failed to initialize kernel", "Restored original execution plan")
_NO_DEVICE = "No adapters found"
_GAVE_UP = "Failed to lock custom tensor buffer"  # after about two minutes
_TOO_SLOW = (
    "LiteRT gave up waiting for the GPU; a driver in software on a busy machine can be that slow, "
    "so run it again with nothing beside it"
)
_LONGEST_WORDS = 200

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Driver:
    """A Vulkan driver: the .json file that names it, and folders that its libraries lie in."""

    icd: str
    libraries: tuple[str, ...] = ()

    def environment(self, folder: Path) -> dict[str, str]:
        """The variables of a process that is to use it and keeps its own files in `folder`."""
        inherited = os.environ.get("LD_LIBRARY_PATH", "")
        return dict(os.environ) | {
            "VK_ICD_FILENAMES": self.icd,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (*self.libraries, inherited))),
            "XDG_RUNTIME_DIR": str(folder),
            "MESA_SHADER_CACHE_DISABLE": "true",  # else Mesa writes into the user's home
            # Mesa's driver in software compiles a shader for each op, which takes longer than
            # running it unoptimised. The same numbers come out.
            "GALLIVM_PERF": os.environ.get("GALLIVM_PERF", "nopt"),
        }


@dataclass(frozen=True)
class GpuRun:
    """What a file gave on the GPU.

    seconds: of compiling the shaders and running once.
    device: what the driver calls itself.
    on_cpu: what the delegate says of ops that it left to the CPU; empty when all are accelerated.
    """

    outputs: dict[str, np.ndarray]
    fully_accelerated: bool
    seconds: float
    device: str
    on_cpu: tuple[str, ...] = ()


class GpuRefusal(CheckFailed):
    """The GPU delegate does not take a file; `words` are its own reasons.

    partly: it named single ops, and would take the others.
    """

    def __init__(self, path: Path, words: Sequence[str], *, partly: bool) -> None:
        super().__init__(f"{path} does not run on LiteRT's GPU delegate: {'; '.join(words)}")
        self.words, self.partly = tuple(words), partly


def driver() -> Driver | None:
    """The Vulkan driver that the environment names, or else the one that vulkan.sh unpacked."""
    for variable in _NAMED:
        if named := os.environ.get(variable):
            return Driver(named)
    home = os.environ.get("NANOFLUX_TOOLCHAINS", "~/.cache/nanoflux-toolchains")
    place = Path(home).expanduser() / "vulkan"
    if not (place / "icd.json").exists():
        return None
    libraries = sorted((place / "root" / "usr" / "lib").glob("*-linux-gnu"))
    return Driver(str(place / "icd.json"), tuple(map(str, libraries)))


def required_driver() -> Driver:
    """The driver; InputError says how to get one where there is none."""
    if (found := driver()) is None:
        raise InputError(f"there is no Vulkan driver to run LiteRT's GPU delegate on: {GET_DRIVER}")
    return found


def run_on_gpu(
    path: Path,
    inputs: Tensors,
    *,
    function: str = MAIN,
    half: bool = False,
    timeout: float = 600.0,
    rest_on_cpu: bool = False,
) -> GpuRun:
    """Compile a .tflite file for the GPU and run one of its functions, within `timeout` seconds.

    `half` computes in half precision. `rest_on_cpu` leaves ops that the GPU does not take to the
    CPU; without it they make the delegate refuse the file, and so do those of other functions.

    Raises:
        GpuRefusal: the delegate does not take the file, or crashed or hung over it.
        InputError: no driver, one that does not answer, a damaged file, a function that it does not
            have, or inputs of another name, shape or type.
    """
    found = required_driver()
    _check_inputs(path, _graph(path, function), inputs)
    with tempfile.TemporaryDirectory(prefix="nanoflux-gpu-") as name:
        folder = Path(name)  # made with mode 0700, as a runtime directory must be
        ask = {"function": function, "half": half, "rest_on_cpu": rest_on_cpu}
        gpu_child.put(folder, {**ask, "path": str(path.resolve())}, inputs)
        log = _child(path, folder, found, timeout)
        told, outputs = gpu_child.answer(folder)
    device = _DEVICE.search(log)
    return GpuRun(
        outputs,
        told["fully_accelerated"],
        told["seconds"],
        device[1] if device else "unknown",
        () if told["fully_accelerated"] else off_gpu(log),
    )


def _graph(path: Path, function: str) -> Graph:
    graphs = {graph.signature: graph for graph in read_model(path).graphs if graph.signature}
    if function not in graphs:
        known = ", ".join(graphs) or "none"
        raise InputError(f"{path} has no function {function}; it has {known}")
    return graphs[function]


def _check_inputs(path: Path, graph: Graph, inputs: Tensors) -> None:
    wanted = {name: (line.dtype.lower(), line.shape) for name, line in graph.inputs.items()}
    found = {name: (value.dtype.name, value.shape) for name, value in inputs.items()}
    if wanted != found:
        raise InputError(f"{path} takes {wanted}; it was given {found}")


def _child(path: Path, folder: Path, found: Driver, timeout: float) -> str:
    """What the child logged, when it ended well."""
    command = [sys.executable, "-P", gpu_child.__file__, str(folder)]
    try:
        ended = subprocess.run(
            command,
            env=found.environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        words = (f"it did not answer within {timeout:g} s",)
        raise GpuRefusal(path, words, partly=False) from late
    log = ended.stderr.decode(errors="replace")
    if ended.returncode:
        raise _refusal(path, found, log, ended.returncode)
    return log


def _refusal(path: Path, found: Driver, log: str, code: int) -> Exception:
    if _NO_DEVICE in log:
        return InputError(f"the Vulkan driver {found.icd} does not serve LiteRT: {GET_DRIVER}")
    if _GAVE_UP in log:
        return GpuRefusal(path, (_TOO_SLOW,), partly=False)
    if words := off_gpu(log):
        return GpuRefusal(path, words, partly=not words[-1].startswith("No "))
    said = [_CREATING.sub("", line) for line in _ERROR.findall(log)]
    said = [line for line in said if not line.startswith(_SAY_NOTHING)]
    said = said or [" ".join(raised.split()) for raised in _RAISED.findall(log)]
    said = said or log.strip().splitlines()[-1:] or ["without a word"]
    if code < 0:
        said.insert(0, f"its process was ended by {signal.Signals(-code).name}")
    return GpuRefusal(path, [line[:_LONGEST_WORDS].strip() for line in said], partly=False)


def off_gpu(log: str) -> tuple[str, ...]:
    """What a log says of ops that the GPU does not take: each with the reason, then the count."""
    words: list[str] = []
    for ops, count in _OFF_GPU.findall(log):
        words += [line.removesuffix(": ").strip() for line in ops.splitlines()]
        words.append(count)
    return tuple(dict.fromkeys(words))
