"""Run a saved Core ML package here, without a Mac: its program, its weights, nothing else.

    run = load(Path("denoiser.mlpackage"))
    outputs = run(latent=latent, text=text)

It proves the graph and the stored weights right. It does not place ops on an accelerator and is
not bit-equal to one: order of accumulation and the inside of fused ops differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanoflux_export.targets.coreml.mil_ops.elementwise import TORCH_TYPES
from nanoflux_export.targets.coreml.package import open_package, reading
from nanoflux_export.targets.coreml.plan import (
    Plan,
    Step,
    UnsupportedOp,
    fits,
    make_plan,
    refuse_unknown,
    round_to_fp16,
    to_tensor,
)
from nanoflux_export.targets.coreml.program import (
    Function,
    TensorType,
    fixed,
    op_kinds,
    read_function,
)
from nanoflux_mobile.errors import InputError, NanofluxError

__all__ = ["Executor", "OpFailed", "ShapeMismatch", "UnsupportedOp", "load"]

Precision = Literal["fp32", "fp16"]
_KEPT_BYTES = 1 << 30
"""Of dense constants an executor keeps between calls. Where there are more, those of a megabyte
and up are decoded when an op needs them and dropped, so that any package runs in little memory."""
_SMALL_BYTES = 1 << 20
_KINDS = {"fp16": "f", "fp32": "f", "bool": "b"}  # numpy kinds an input may have; else integers


class ShapeMismatch(NanofluxError):
    """An op's result has not the shape or type that the program declares for it."""


class OpFailed(NanofluxError):
    """An op cannot compute on what it was given."""


class Executor:
    """One function of a package of any size, ready to be called with its inputs by name.

    `inputs` and `outputs` map names to what the program declares (`TensorType`: dtype, shape).
    """

    def __init__(self, path: Path, function: Function, plan: Plan, *, rounds: bool) -> None:
        """Use `load`; the weights stay on disk until the first call."""
        self.inputs: Mapping[str, TensorType] = function.inputs
        self.outputs: Mapping[str, TensorType] = function.outputs
        self._path = path
        self._plan = plan
        self._rounds = rounds
        self._constants: list[Tensor | None] = []
        self._streamed = _streamed(plan)
        self._checked = False

    def __call__(self, /, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run once; float results are float32 (fp16 precision: with half-precision values).

        Raises:
            InputError: a missing, unknown or ill-shaped input, named with what is expected.
            ShapeMismatch: on the first run, a result that differs from its declared type.
            OpFailed: an op that cannot compute, such as a gather beyond its table.
        """
        slots = self._start(inputs)
        with torch.inference_mode():
            for step in self._plan.steps:
                result = self._run(step, [self._value(slots, slot) for slot in step.inputs])
                results = result if isinstance(result, tuple) else (result,)
                if not self._checked:
                    _check(step, results)
                for slot, tensor in zip(step.outputs, results, strict=True):
                    slots[slot] = tensor
                for slot in step.frees:
                    slots[slot] = None
        self._checked = True
        return {name: _to_numpy(slots[slot]) for name, slot in self._plan.outputs.items()}

    def _value(self, slots: list[Tensor | None], slot: int) -> Tensor | None:
        if slot not in self._streamed:
            return slots[slot]
        with reading(self._path):
            return to_tensor(self._plan.literals[slot].read())

    def _start(self, inputs: Mapping[str, NDArray[Any]]) -> list[Tensor | None]:
        tensors = _prepare(inputs, self.inputs)
        if not self._constants:
            with reading(self._path):
                self._constants = _constants(self._plan, self._streamed)
        slots = self._constants.copy()
        for name, slot in self._plan.inputs.items():
            half = self._rounds and self.inputs[name].dtype == "fp16"
            slots[slot] = round_to_fp16(tensors[name]) if half else tensors[name]
        return slots

    def _run(self, step: Step, tensors: list[Tensor | None]) -> Any:
        try:
            return step.call(*tensors)
        except Exception as error:  # torch's and Python's own, whatever a bad program provokes
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors if tensor is not None)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OpFailed(
                f"{step.operation.kind} {step.operation.name!r} of {self._path} failed on tensors "
                f"of shape {shapes or 'none'}: {reason}"
            ) from error


def load(path: Path, *, precision: Precision = "fp32", function: str = "main") -> Executor:
    """An executor for one function of the .mlpackage at `path`.

    Args:
        path: the package's folder; nothing but its manifest, program and weights is read.
        precision: "fp32" computes every float op in float32 and ignores fp16 declarations (the
            weights are the stored ones); "fp16" also rounds each result that the program declares
            fp16, which predicts a half-precision device.
        function: which function of a multifunction package.

    Raises:
        InputError: no such package or function, a damaged one, or not an ML Program.
        UnsupportedOp: ops the executor does not know; the message names all of them.
    """
    if precision not in ("fp32", "fp16"):
        raise InputError(f"precision {precision!r} is not known; use 'fp32' or 'fp16'")
    package = open_package(path)
    refuse_unknown(op_kinds(package))
    graph = read_function(package, function)
    rounds = precision == "fp16"
    with reading(path):
        plan = make_plan(graph, rounds=rounds)
    return Executor(path, graph, plan, rounds=rounds)


def _streamed(plan: Plan) -> frozenset[int]:
    """The constants that are decoded anew for each op: the large ones, if there are many."""
    floats = np.dtype(np.float32).itemsize
    sizes = {slot: floats * math.prod(fixed(c.type)) for slot, c in plan.literals.items()}
    if sum(sizes.values()) <= _KEPT_BYTES:
        return frozenset()
    outputs = plan.outputs.values()
    large = (slot for slot, size in sizes.items() if size >= _SMALL_BYTES)
    return frozenset(slot for slot in large if slot not in outputs)


def _constants(plan: Plan, streamed: frozenset[int]) -> list[Tensor | None]:
    slots: list[Tensor | None] = [None] * plan.slots
    for slot, literal in plan.literals.items():
        if slot not in streamed:
            slots[slot] = to_tensor(literal.read())
    return slots


def _check(step: Step, results: tuple[Tensor, ...]) -> None:
    operation = step.operation
    made = [f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in results]
    wanted = list(operation.outputs.values())
    if len(results) != len(wanted) or not all(map(fits, results, wanted)):
        declared = ", ".join(f"{kind.shape} {kind.dtype}" for kind in wanted)
        raise ShapeMismatch(
            f"{operation.kind} {operation.name!r} makes {', '.join(made)}, "
            f"but the program declares {declared}"
        )


def _prepare(
    given: Mapping[str, NDArray[Any]], declared: Mapping[str, TensorType]
) -> dict[str, Tensor]:
    if given.keys() != declared.keys():
        raise InputError(
            f"the inputs are {', '.join(sorted(given)) or 'none'}; the program takes "
            + ", ".join(f"{name} {kind.shape} {kind.dtype}" for name, kind in declared.items())
        )
    return {name: _input(name, np.asarray(given[name]), kind) for name, kind in declared.items()}


def _input(name: str, array: NDArray[Any], declared: TensorType) -> Tensor:
    kinds = _KINDS.get(declared.dtype, "iu")
    if array.dtype.kind in kinds:
        tensor = to_tensor(array).to(TORCH_TYPES[declared.dtype])
        if fits(tensor, declared):
            return tensor
    raise InputError(
        f"input {name!r} is {array.dtype} of shape {array.shape}; "
        f"the program takes {declared.dtype} of shape {declared.shape}"
    )


def _to_numpy(tensor: Tensor | None) -> NDArray[Any]:
    """A copy, so that a caller who writes to a result cannot change a weight or an input."""
    assert tensor is not None
    return np.array(tensor.numpy(), order="C")
