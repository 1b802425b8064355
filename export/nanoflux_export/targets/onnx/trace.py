"""One segment of each kind as ONNX nodes: the form that all segments of it share.

Torch's TorchScript exporter does it: it needs no package but `onnx`, and on graphs with static
shapes and no branches it leaves no arithmetic on shapes behind (`chunk` is the exception: `split`).
The weights are arguments of what is traced, so every one keeps its name, and none is folded, merged
with an equal one or built in. They are zeros that take no memory.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from nanoflux_mobile.errors import NanofluxError
from nanoflux_mobile.spec import DType

OPSET = 20
"""The first with a Gelu of its own, and the last that the exporter writes."""

_INPUT, _WEIGHT = "input:", "weight:"

Edge = tuple[DType, tuple[int, ...]]
"""Type and shape of a value that enters or leaves a segment."""


@dataclass(frozen=True)
class Form:
    """The nodes of a kind of segment, in order; `weights` maps their names to parameters.

    An input that no node reads is in `inputs` all the same.
    """

    nodes: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, str]


def make_form(module: nn.Module, inputs: tuple[Edge, ...]) -> Form:
    """The form of a float32 module, which is put into evaluation mode.

    Raises:
        NanofluxError: the module has a weight that its result does not depend on.
    """
    paths = _paths(module.eval())
    samples = [torch.zeros(shape, dtype=getattr(torch, dtype)) for dtype, shape in inputs]
    weights = [_no_values(module, names[0]) for names in paths]
    graph = _exported(_Open(module, paths), samples, weights).graph
    used = {name for node in graph.node for name in node.input}
    parameters = {f"{_WEIGHT}{i}": names[0] for i, names in enumerate(paths)}
    if idle := [parameter for name, parameter in parameters.items() if name not in used]:
        raise NanofluxError(
            f"{type(module).__name__} does not use its weight {idle[0]}; leave it out"
        )
    return Form(
        tuple(graph.node),
        tuple(f"{_INPUT}{i}" for i in range(len(inputs))),
        tuple(value.name for value in graph.output),
        parameters,
    )


class _Open(nn.Module):
    """A module with its weights among its arguments, after its inputs."""

    def __init__(self, module: nn.Module, paths: list[list[str]]) -> None:
        super().__init__()
        tensors = chain(module.parameters(), module.buffers())
        # Copied without its weights, and held where nn.Module does not look for more of them.
        self.inner = (copy.deepcopy(module, {id(t): t for t in tensors}),)
        self.paths = paths

    def forward(self, *values: Tensor) -> Any:
        count = len(values) - len(self.paths)
        for names, value in zip(self.paths, values[count:], strict=True):
            for name in names:
                _put(self.inner[0], name, value)
        return self.inner[0](*values[:count])


def _put(module: nn.Module, path: str, value: Any) -> None:
    place, _, leaf = path.rpartition(".")
    owner = module.get_submodule(place)
    if leaf in owner._parameters:
        value._is_param = True  # what torch tells parameters from other tensors by
        owner._parameters[leaf] = value
    else:
        owner._buffers[leaf] = value


def _paths(module: nn.Module) -> list[list[str]]:
    """The names of every weight: more than one where the module uses it in several places."""
    found: dict[int, list[str]] = {}
    for name, tensor in chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    ):
        found.setdefault(id(tensor), []).append(name)
    return list(found.values())


def _no_values(module: nn.Module, path: str) -> Tensor:
    place, _, leaf = path.rpartition(".")
    weight: Tensor = getattr(module.get_submodule(place), leaf)
    return torch.zeros((), dtype=weight.dtype).expand(weight.shape)


@torch.no_grad()
def _exported(module: nn.Module, samples: list[Tensor], weights: list[Tensor]) -> Any:
    import onnx

    names = [f"{_INPUT}{i}" for i in range(len(samples))]
    names += [f"{_WEIGHT}{i}" for i in range(len(weights))]
    values = (*samples, *weights)
    data: Any = io.BytesIO()  # the old exporter takes one, whatever the signature says
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the old one
        torch.onnx.export(
            module, values, data, input_names=names, dynamo=False, opset_version=OPSET
        )
    return onnx.load_from_string(data.getvalue())
