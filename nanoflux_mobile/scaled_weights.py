"""8-bit weights that come with a scale, as ComfyUI writes them."""

from __future__ import annotations

from torch import Tensor

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.safetensors_file import NOT_WEIGHTS
from nanoflux_mobile.weights import Stored, Weights

WEIGHT_SCALES = (".scale_weight", ".weight_scale")
"""What stands for `.weight` in the name of a tensor's scale."""
ASIDE = (".scale_input", ".input_scale", ".comfy_quant")
"""What such files say about arithmetic on 8-bit activations, which nothing here does."""
MARKER = "scaled_fp8"
"""The empty tensor that says that there are scales."""


def unscaled(stored: Weights) -> Weights:
    """The weights without their scales, each multiplied by its own when it is read.

    InputError for a scale that is neither one number nor one per row.
    """
    scales = {weight: name for name in stored if (weight := _scaled_by(name)) in stored}
    left_out = {*scales.values(), *(name for name in stored if _is_aside(name, stored))}
    return {
        name: _times(name, tensor, stored[scales[name]]) if name in scales else tensor
        for name, tensor in stored.items()
        if name not in left_out
    }


def _scaled_by(name: str) -> str | None:
    for suffix in WEIGHT_SCALES:
        if name.endswith(suffix):
            return f"{name.removesuffix(suffix)}.weight"
    return None


def _is_aside(name: str, stored: Weights) -> bool:
    owners = (f"{name.removesuffix(end)}.weight" for end in ASIDE if name.endswith(end))
    return name.rpartition(".")[2] == MARKER or any(owner in stored for owner in owners)


def _times(name: str, tensor: Stored, scale: Stored) -> Stored:
    one = all(size == 1 for size in scale.shape)
    per_row = bool(tensor.shape) and scale.shape in (tensor.shape[:1], (tensor.shape[0], 1))
    if scale.dtype in NOT_WEIGHTS or not (one or per_row):
        raise InputError(
            f"the scale of {name} is {scale.dtype} {scale.shape} for {tensor.shape}; "
            "only one number, or one per row, is supported: take a bf16 or plain fp8 file"
        )

    def read() -> Tensor:
        factor = scale.read().float().reshape(-1, *[1] * (len(tensor.shape) - 1))
        return tensor.read().float() * (factor.reshape(()) if one else factor)

    return Stored(tensor.shape, tensor.dtype, tensor.nbytes + scale.nbytes, read)
