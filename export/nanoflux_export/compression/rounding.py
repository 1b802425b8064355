"""The eager twin of a saved file: the module with its weights as the file decodes them."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn

from nanoflux_export.compression.selection import (
    OUTPUT_AXES,
    check_palette,
    is_palettized,
    palette_groups,
)
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Scheme

_INT8_MAX = 127
_LEAST_BOUND = 1e-9  # what ai-edge-quantizer takes for a channel of zeros


@torch.no_grad()
def rounded(module: nn.Module, scheme: Scheme, *, half_constants: bool = True) -> nn.Module:
    """A copy of a float32 module that holds the values a file stored as `scheme` decodes to.

    fp16, palette: all floating parameters and buffers at half precision, then the weights of
    `selection.OUTPUT_AXES` layers replaced by their palette entries. int: those weights on a
    symmetric grid per output channel, as ai-edge-quantizer's dynamic_wi8_afp32 lays it, and the
    rest as it is. Without `half_constants`, as LiteRT stores them, norms, biases and tables stay
    float32 under fp16 too. Layers must use their weights as they are: one that a graph scales or
    adds up before use is stored after that arithmetic.

    Raises:
        InputError: a value beyond the range of half precision, or a palette Core ML cannot store.
    """
    if scheme.kind == "palette":
        check_palette(scheme)
    twin = copy.deepcopy(module)
    axes = output_axes(twin)
    for name, tensor in chain(twin.named_parameters(), twin.named_buffers()):
        if tensor.is_floating_point() and (half_constants or id(tensor) in axes):
            tensor.copy_(_stored(name, tensor, scheme, axes.get(id(tensor))))
    return twin


def half(name: str, tensor: Tensor) -> Tensor:
    """The nearest half-precision values, in the type of `tensor`; infinities stay.

    Raises:
        InputError: a finite value that half precision cannot hold; the message calls it `name`.
    """
    nearest = tensor.half().to(tensor.dtype)
    if bool((nearest.isinf() & tensor.isfinite()).any()):
        most = tensor[tensor.isfinite()].abs().max().item()
        raise InputError(
            f"{name} holds {most:g}, but half precision ends at 65504; "
            "clamp or rescale it before exporting"
        )
    return nearest


def output_axes(module: nn.Module) -> dict[int, int]:
    """The axis of output channels of every compressible weight, by the tensor's identity."""
    return {
        id(layer.weight): axis
        for layer in module.modules()
        for kind, axis in OUTPUT_AXES.items()
        if isinstance(layer, kind)
    }


def _stored(name: str, tensor: Tensor, scheme: Scheme, axis: int | None) -> Tensor:
    if scheme.kind == "int":
        return tensor if axis is None else _on_int8_grid(tensor, axis)
    nearest = half(name, tensor)
    shape = tuple(tensor.shape)
    if scheme.kind == "fp16" or axis is None or not is_palettized(scheme, shape, axis):
        return nearest
    return _on_palette(nearest, scheme, axis)


def _on_palette(nearest: Tensor, scheme: Scheme, axis: int) -> Tensor:
    from nanoflux_export.compression.palettes import snapped  # brings numba

    groups = palette_groups(scheme, tuple(nearest.shape), axis)
    values = snapped(nearest.half().numpy(), scheme.bits, groups=groups, axis=axis)
    return torch.from_numpy(values)


def _on_int8_grid(weight: Tensor, axis: int) -> Tensor:
    others = [at for at in range(weight.ndim) if at != axis]
    step = weight.abs().amax(others, keepdim=True).clamp(min=_LEAST_BOUND) / _INT8_MAX
    return (weight / step).round().clamp(-_INT8_MAX, _INT8_MAX) * step
