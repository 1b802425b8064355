"""A saved .mlpackage with its weights stored in fewer bits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from nanoflux_export.compression.selection import check_palette, is_palettized
from nanoflux_export.targets.coreml.package import Package, open_package
from nanoflux_export.targets.coreml.program import fixed, tensor_type
from nanoflux_export.targets.coreml.quiet import quiet
from nanoflux_export.targets.coreml.saving import copy_package, save
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Scheme

_WEIGHTS = {
    "conv": ("weight", 0),
    "conv_transpose": ("weight", 1),
    "linear": ("weight", 0),
    "gather": ("x", 0),
}
"""The ops that `selection.OUTPUT_AXES` layers become: where their weight is, and its axis of
output channels."""


def compress(source: Path, scheme: Scheme, out: Path) -> None:
    """Write the fp16 package `source` with its weights stored as `scheme` to `out`.

    Which weights get palettes is for `compression.selection` to say; all others stay fp16.

    Raises:
        InputError: a scheme Core ML files are not made with, or an unreadable `source`.
    """
    if scheme.kind not in ("fp16", "palette"):
        raise InputError(f"{scheme} is not stored in Core ML packages; use fp16 or palette4-g16")
    names = sorted(set(_palettized(open_package(source), scheme)))
    if not names:
        return copy_package(source, out)
    with quiet():
        save(_with_palettes(source, scheme, names), out)


def _with_palettes(source: Path, scheme: Scheme, names: list[str]) -> Any:
    import coremltools as ct

    from nanoflux_export.compression.palettes import palette

    optimize = ct.optimize.coreml
    how = optimize.OpPalettizerConfig(
        mode="custom",
        lut_function=partial(palette, bits=scheme.bits),
        granularity="per_grouped_channel" if scheme.group else "per_tensor",
        group_size=scheme.group or 1,
        weight_threshold=0,  # the names say which
    )
    config = optimize.OptimizationConfig(op_name_configs=dict.fromkeys(names, how))
    model = ct.models.MLModel(str(source), skip_model_load=True)
    return optimize.palettize_weights(model, config)


def _palettized(package: Package, scheme: Scheme) -> Iterator[str]:
    """The names of the constants that get palettes."""
    if scheme.kind == "fp16":
        return
    check_palette(scheme)
    for function in package.model.mlProgram.functions.values():
        operations = function.block_specializations[function.opset].operations
        shapes = {
            op.outputs[0].name: fixed(tensor_type(op.outputs[0].type))
            for op in operations
            if op.type == "const" and op.outputs[0].type.WhichOneof("type") == "tensorType"
        }
        for op in operations:
            parameter, axis = _WEIGHTS.get(op.type, ("", 0))
            for binding in op.inputs[parameter].arguments if parameter else ():
                shape = shapes.get(binding.name)
                if shape is not None and is_palettized(scheme, shape, axis):
                    yield binding.name
