"""A function's operations bound to torch calls and numbered slots, once, before any run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanoflux_export.targets.coreml.constexpr import DECODERS
from nanoflux_export.targets.coreml.mil_ops.elementwise import TORCH_TYPES
from nanoflux_export.targets.coreml.mil_ops.table import MOVEMENT, OPS
from nanoflux_export.targets.coreml.program import Function, Literal, Operation, TensorType
from nanoflux_mobile.errors import NanofluxError

NOTHING = 0  # the slot of an optional tensor that an op was not given


class UnsupportedOp(NanofluxError):
    """The program uses ops, or settings of ops, that the executor does not know."""


@dataclass(frozen=True)
class Step:
    """One call: tensors in by slot, tensors out by slot, and the slots not needed afterwards."""

    operation: Operation
    call: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    frees: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The whole run: how many slots there are, what fills them, and the steps in order."""

    slots: int
    literals: Mapping[int, Literal]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    steps: tuple[Step, ...]


def refuse_unknown(kinds: Iterable[str]) -> None:
    """Raise UnsupportedOp with every op of `kinds` that has no entry in the op table."""
    missing = sorted(set(kinds) - OPS.keys() - DECODERS.keys())
    if missing:
        raise UnsupportedOp(
            f"the program uses ops the executor does not know: {', '.join(missing)}; "
            "add each one to targets/coreml/mil_ops, or change the model"
        )


def make_plan(function: Function, *, rounds: bool) -> Plan:
    """Bind `function`; with `rounds`, results declared fp16 are rounded to it after each op.

    Raises:
        UnsupportedOp: an op is given a parameter that its entry in the op table lacks.
        ValueError: the program is not whole: a value or a parameter is missing.
    """
    binder = _Binder(function, rounds)
    unknown = {declared.dtype for declared in function.inputs.values()} - TORCH_TYPES.keys()
    if unknown:
        raise ValueError(f"inputs of type {', '.join(sorted(unknown))}")
    inputs = {name: binder.slot(name) for name in function.inputs}
    bound = [binder.bind(operation) for operation in function.operations]
    outputs = {name: binder.known(name) for name in function.outputs}
    kept = {NOTHING, *binder.literals, *outputs.values()}
    return Plan(len(binder.slots) + 1, binder.literals, inputs, outputs, _with_frees(bound, kept))


def to_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A constant or an input as the executor computes with it: floats in float32."""
    if array.dtype in (np.uint16, np.uint32):
        array = array.astype(np.int32 if array.dtype == np.uint16 else np.int64)
    tensor = torch.from_numpy(np.array(array, order="C"))  # a copy: weights are mapped read-only
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def round_to_fp16(x: Tensor) -> Tensor:
    """The nearest half-precision values, kept in float32."""
    return x.to(torch.float16).to(torch.float32)


@dataclass
class _Binder:
    function: Function
    rounds: bool
    slots: dict[str, int] = field(default_factory=dict)
    literals: dict[int, Literal] = field(default_factory=dict)

    def slot(self, name: str) -> int:
        """The slot of a value that an input or an op makes."""
        return self.slots.setdefault(name, len(self.slots) + 1)

    def known(self, name: str) -> int:
        """The slot of a value made before; literals get theirs when a tensor parameter asks."""
        if name in self.function.literals:
            self.literals[self.slot(name)] = self.function.literals[name]
        elif name not in self.slots:
            raise ValueError(f"the program uses {name!r}, which nothing makes")
        return self.slot(name)

    def bind(self, operation: Operation) -> Step:
        run, parameters = OPS[operation.kind], _parameters(operation)
        inputs: list[int] = []
        settings: dict[str, Any] = {}
        late: dict[str, int] = {}
        for name, parameter in parameters.items():
            values = operation.arguments.get(name, ())
            if parameter.kind is not parameter.KEYWORD_ONLY:
                inputs += [self.known(value) for value in values] or [NOTHING]
            elif values and values[0] in self.function.literals:
                settings[name] = _python(self.function.literals[values[0]].read())
            elif values:
                late[name] = self.known(values[0])
        call = partial(run, **settings) if settings else run
        call = partial(_with_settings, call, tuple(late)) if late else call
        outputs = tuple(self.slot(name) for name in operation.outputs)
        return Step(
            operation, self.rounded(call, operation), (*inputs, *late.values()), outputs, ()
        )

    def rounded(self, call: Callable[..., Any], operation: Operation) -> Callable[..., Any]:
        half = any(declared.dtype == "fp16" for declared in operation.outputs.values())
        if not self.rounds or not half or operation.kind in MOVEMENT:
            return call
        return lambda *tensors: round_to_fp16(call(*tensors))


def fits(tensor: Tensor, declared: TensorType) -> bool:
    """Whether a tensor has the type and the known sizes that the program declares."""
    sizes = zip(tensor.shape, declared.shape, strict=False)
    return (
        tensor.dtype == TORCH_TYPES.get(declared.dtype)
        and tensor.ndim == len(declared.shape)
        and all(wanted in (None, size) for size, wanted in sizes)
    )


def _parameters(operation: Operation) -> Mapping[str, inspect.Parameter]:
    """The op's parameters, after checking that the program gives all it needs and no others."""
    parameters = inspect.signature(OPS[operation.kind]).parameters
    extra = operation.arguments.keys() - parameters.keys()
    if extra:
        raise UnsupportedOp(
            f"the executor does not know {', '.join(sorted(extra))} of {operation.kind} "
            f"{operation.name!r}"
        )
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and not operation.arguments.get(name):
            raise ValueError(f"{operation.kind} {operation.name!r} lacks {name}")
    return parameters


def _with_settings(call: Callable[..., Any], names: tuple[str, ...], *tensors: Tensor) -> Any:
    """Run an op some of whose settings (a shape, a slice's bounds) the program computes."""
    split = len(tensors) - len(names)
    late = (tensor.tolist() for tensor in tensors[split:])
    return call(*tensors[:split], **dict(zip(names, late, strict=True)))


def _python(value: Any) -> Any:
    return value if isinstance(value, str) else value.tolist()


def _with_frees(steps: list[Step], kept: set[int]) -> tuple[Step, ...]:
    """The steps, each with the slots that no later step reads."""
    freed: list[Step] = []
    needed = set(kept)
    for step in reversed(steps):
        touched = dict.fromkeys((*step.inputs, *step.outputs))
        frees = tuple(slot for slot in touched if slot not in needed)
        needed.update(frees)
        freed.append(Step(step.operation, step.call, step.inputs, step.outputs, frees))
    return tuple(reversed(freed))
