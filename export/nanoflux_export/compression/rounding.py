"""The eager twin of a saved file: the module with its weights as the file decodes them."""

from __future__ import annotations

import copy
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nanoflux_export.compression.coding import code, decode
from nanoflux_export.compression.integers import in_runs, litert_integers
from nanoflux_export.compression.plan import Storage, plan_of
from nanoflux_export.compression.selection import OUTPUT_AXES, check_palette, input_blocks
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Scheme


@torch.no_grad()
def rounded(
    module: nn.Module, storage: Storage, weights: str = "", *, half_constants: bool = True
) -> nn.Module:
    """A copy of a float32 module that holds the values a file stored as told decodes to.

    `weights` is the `Segment.weights` that a plan calls the module's layers by.

    All floating parameters and buffers are rounded to half precision, then the weights of
    `selection.OUTPUT_AXES` layers are what `coding` makes of them as the plan says, with the
    plan's importance; those it leaves dense stay. Layers must use their weights as they are: one
    that a graph scales or adds up before use is stored after that arithmetic.

    Without `half_constants`, as LiteRT stores them, norms, biases and tables stay float32, and
    integers lie on the symmetric grid of ai-edge-quantizer's recipes for dynamic ranges: a scale
    per output channel, or for each block of input channels of a matrix. It has no blocks in other
    kernels and leaves them as they are, and so does this.

    Ranks and 8-bit activations change what a layer computes; this changes its weights alone.

    Raises:
        InputError: a value beyond the range of half precision, or a palette Core ML cannot store.
    """
    plan = plan_of(storage)
    twin = copy.deepcopy(module)
    axes = output_axes(twin)
    for name, tensor in chain(twin.named_parameters(), twin.named_buffers()):
        axis, layer = axes.get(id(tensor)), f"{weights}/{name}"
        if not tensor.is_floating_point() or (axis is None and not half_constants):
            continue
        scheme = plan.of(layer)
        if scheme.kind == "palette":
            check_palette(scheme)
        if scheme.kind == "int" and axis is not None and not half_constants:
            tensor.copy_(_on_litert_grid(tensor, scheme, axis))
        else:
            tensor.copy_(_stored(name, tensor, scheme, axis, plan.importance.get(layer)))
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


def _stored(
    name: str,
    tensor: Tensor,
    scheme: Scheme,
    axis: int | None,
    importance: NDArray[np.float64] | None,
) -> Tensor:
    nearest = half(name, tensor)
    coded = None
    if axis is not None:
        coded = code(nearest.float().numpy(), axis, scheme, importance)
    return nearest if coded is None else torch.from_numpy(decode(coded))


def _on_litert_grid(weight: Tensor, scheme: Scheme, axis: int) -> Tensor:
    shape = tuple(weight.shape)
    matrix = axis == 0 and weight[0, 0].numel() == 1
    blocks = input_blocks(scheme, shape, axis) if matrix or not scheme.group else 0
    if not blocks:
        return weight
    values_OBN = in_runs(weight.float().numpy(), axis, blocks)
    codes_OBN, scales_OB = litert_integers(values_OBN, scheme.bits, blocks=bool(scheme.group))
    dense = torch.from_numpy(codes_OBN * scales_OB[..., None])
    ahead = (shape[axis], *(length for at, length in enumerate(shape) if at != axis))
    return dense.reshape(ahead).movedim(0, axis)
