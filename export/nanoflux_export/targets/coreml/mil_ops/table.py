"""The op table: MIL's op names and the torch function each one runs.

A function's parameters are the op's own. Those before the `*` are tensors; those after it are
settings, which arrive as Python numbers, strings and lists. Adding an op is adding one public
function to one of the modules below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import isfunction
from types import ModuleType
from typing import Any

from nanoflux_export.targets.coreml.mil_ops import (
    convolution,
    elementwise,
    matrix,
    movement,
    quantization,
    reduction,
)

MilOp = Callable[..., Any]


def _ops_of(module: ModuleType) -> dict[str, MilOp]:
    return {
        name: value
        for name, value in vars(module).items()
        if isfunction(value) and value.__module__ == module.__name__ and name[0] != "_"
    }


# These pick, repeat or reorder values, so their results are already rounded.
MOVEMENT: Mapping[str, MilOp] = _ops_of(movement)
OPS: Mapping[str, MilOp] = {
    **MOVEMENT,
    **elementwise.ONE_LINERS,
    **_ops_of(elementwise),
    **_ops_of(reduction),
    **_ops_of(convolution),
    **_ops_of(matrix),
    **_ops_of(quantization),
}
