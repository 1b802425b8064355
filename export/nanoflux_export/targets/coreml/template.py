"""One segment of each kind, converted by coremltools: the form that all segments of it share.

A template is converted with random weights, no two tensors alike, and every constant of the result
is looked up by its bytes: it is one parameter of the module, or it does not depend on the weights.
No naming convention of the converter is relied on. A parameter that the converter changed (folded
into another, transposed) is missing afterwards, or else is a constant that other weights change:
both are errors.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nanoflux_export.targets.coreml.overflow_check import quick_overflow_check
from nanoflux_export.targets.coreml.program import TensorType, fixed, tensor_type
from nanoflux_export.targets.coreml.quiet import quiet
from nanoflux_export.targets.coreml.weights import find_entry, map_weights
from nanoflux_mobile.errors import NanofluxError
from nanoflux_mobile.spec import DType

Edge = tuple[DType, tuple[int, ...]]
"""Type and shape of a value that enters or leaves a segment."""
Data = tuple[str, bytes]
"""MIL type and bytes of a constant."""

OPSET = "CoreML8"
_NUMPY_TYPES = {"float32": np.float32, "float16": np.float16, "int32": np.int32}
_TORCH_TYPES = {"float32": torch.float32, "float16": torch.float32, "int32": torch.int32}
_WEIGHT_CHANGING_PASSES = ("common::fuse_conv_scale", "common::fuse_conv_batchnorm")
"""Left out, so that a file holds the module's own weights; fold such factors into the module."""


@dataclass(frozen=True)
class Template:
    """The operations of a kind of segment, in order.

    `inputs` and `outputs` are the program's names of what enters and leaves. `weights` maps the
    constants that are weights to the module's parameters; `constants` names the others, of which
    `blobs` holds those too large to be spelled out in the program.
    """

    operations: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, str]
    constants: frozenset[str]
    blobs: Mapping[str, Data]


def make_template(
    kind: str, module: nn.Module, inputs: tuple[Edge, ...], outputs: tuple[Edge, ...]
) -> Template:
    """The template of a float32 module; inside a file its edges are float16.

    Raises:
        NanofluxError: the module has other outputs than told, coremltools changed a weight of it,
            or it needs control flow; the message calls it `kind`.
    """
    made, others, tables = _converted(kind, module, inputs, outputs, seed=0)
    lost = sorted({name for name, _ in float_tensors(module)} - set(made.weights.values()))
    if not lost and tables:
        _, again, _ = _converted(kind, module, inputs, outputs, seed=1)
        lost = [f"behind {name}" for name in others if others[name] != again.get(name)]
    if lost:
        raise NanofluxError(
            f"coremltools changed the weight {lost[0]} of {kind}; "
            "write the module so that it is used as it is"
        )
    return made


def float_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What of a module is stored as its weights: floating parameters and buffers, by name."""
    named = chain(module.named_parameters(), module.named_buffers())
    return (
        (name, tensor) for name, tensor in named if tensor.is_floating_point() and tensor.numel()
    )


_Sorted = tuple[Template, Mapping[str, Data], bool]
"""A template, its constants that are no weights, and whether some of them are arrays of different
numbers, which may have been computed from weights."""


def _converted(
    kind: str, module: nn.Module, inputs: tuple[Edge, ...], outputs: tuple[Edge, ...], seed: int
) -> _Sorted:
    marked, parameter_of = _marked(module, seed)
    with quiet(), quick_overflow_check(), _frozen_heap(), TemporaryDirectory() as folder:
        traced = _traced(marked, inputs)
        _check_outputs(kind, traced, outputs)
        package = Path(folder) / "template.mlpackage"
        function = _convert(traced, inputs, outputs, package)
        return _sorted_out(kind, function, next(package.rglob("weight.bin"), None), parameter_of)


def _marked(module: nn.Module, seed: int) -> tuple[nn.Module, dict[bytes, str]]:
    """A copy with random weights that half precision holds exactly, and whose bytes are whose."""
    marked = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    names: dict[bytes, str] = {}
    for name, tensor in float_tensors(marked):
        values = _random_halves(tensor, generator)
        while values.numpy().tobytes() in names:
            values = _random_halves(tensor, generator)
        names[values.numpy().tobytes()] = name
        tensor.data = values.float()
    return marked.eval().requires_grad_(False), names


def _random_halves(like: Tensor, generator: torch.Generator) -> Tensor:
    # Well inside half precision: coremltools mends small values that would round to zero. The last
    # bit is set, so that no weight of one value looks like a 1 or a 0.5 of the module's own.
    values = torch.rand(like.shape, generator=generator)
    halves = (0.5 + values).half() * torch.where(values > 0.75, -1, 1).half()
    return halves.view(torch.int16).bitwise_or(1).view(torch.float16)


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Spare the collection of garbage that ends every conversion what was there before it.

    That search through a million objects takes four times as long as converting a small segment.
    """
    ours = not gc.get_freeze_count()
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


@torch.no_grad()
def _traced(module: nn.Module, inputs: tuple[Edge, ...]) -> Any:
    examples = tuple(torch.zeros(shape, dtype=_TORCH_TYPES[dtype]) for dtype, shape in inputs)
    return torch.jit.trace(module, examples, check_trace=False)


def _check_outputs(kind: str, traced: Any, outputs: tuple[Edge, ...]) -> None:
    (returned,) = traced.inlined_graph.outputs()
    single = returned.type().kind() == "TensorType"
    values = [returned] if single else list(returned.node().inputs())
    made = [tuple(value.type().sizes() or ()) for value in values]
    wanted = [shape for _, shape in outputs]
    if made != wanted:
        raise NanofluxError(f"{kind} became {made}, but its graph says {wanted}")
    known = [value.debugName() for value in (*traced.inlined_graph.inputs(), *values)]
    if len(set(known)) < len(known):
        raise NanofluxError(f"{kind} returns an input or another output again; name it once")


def _convert(
    traced: Any, inputs: tuple[Edge, ...], outputs: tuple[Edge, ...], package: Path
) -> Any:
    """The main function of what coremltools makes and leaves at `package`."""
    import coremltools as ct

    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(_WEIGHT_CHANGING_PASSES)
    model = ct.convert(
        traced,
        inputs=[
            ct.TensorType(f"in_{i}", shape, _NUMPY_TYPES[dtype])
            for i, (dtype, shape) in enumerate(inputs)
        ],
        outputs=[
            ct.TensorType(f"out_{i}", None, _NUMPY_TYPES[dtype])
            for i, (dtype, _) in enumerate(outputs)
        ],
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        compute_units=ct.ComputeUnit.CPU_AND_NE,
        pass_pipeline=pipeline,
        package_dir=str(package),
        skip_model_load=True,
    )
    return model.get_spec().mlProgram.functions["main"]


def _sorted_out(
    kind: str, function: Any, file: Path | None, parameter_of: Mapping[bytes, str]
) -> _Sorted:
    body = function.block_specializations[function.opset]
    if nested := next((op.type for op in body.operations if op.blocks), ""):
        raise NanofluxError(f"{kind} holds the control flow op {nested}; write it without")
    stored = None if file is None else map_weights(file)
    weights: dict[str, str] = {}
    others: dict[str, Data] = {}
    in_file, tables = set(), False
    for op in body.operations:
        if op.type != "const":
            continue
        name, value = op.outputs[0].name, op.attributes["val"]
        declared = tensor_type(value.type)
        data = _constant(value, declared, stored)
        if declared.dtype == "fp16" and data in parameter_of:
            weights[name] = parameter_of[data]
            continue
        others[name] = declared.dtype, data
        tables |= _is_table(declared, data)
        if value.HasField("blobFileValue"):
            in_file.add(name)
    made = Template(
        operations=tuple(body.operations),
        inputs=tuple(value.name for value in function.inputs),
        outputs=tuple(body.outputs),
        weights=weights,
        constants=frozenset(others),
        blobs={name: others[name] for name in others if name in in_file},
    )
    return made, others, tables


def _is_table(declared: TensorType, data: bytes) -> bool:
    if not declared.dtype.startswith("fp") or math.prod(fixed(declared)) == 1:
        return False
    return declared.dtype != "fp16" or bool(np.ptp(np.frombuffer(data, np.int16)))


def _constant(value: Any, declared: TensorType, weights: Any) -> bytes:
    if value.HasField("blobFileValue"):
        offset = value.blobFileValue.offset
        return find_entry(weights, offset, declared.dtype, fixed(declared)).tobytes()
    tensor = value.immediateValue.tensor
    data: bytes = tensor.bytes.values if tensor.HasField("bytes") else tensor.SerializeToString()
    return data
