"""MIL ops that reduce, normalise, or make tensors from a shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nanoflux_export.targets.coreml.mil_ops.elementwise import TORCH_TYPES


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
) -> Tensor:
    """Per channel (axis 1): (x - mean) / sqrt(variance + epsilon) * gamma + beta."""
    return F.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


def cumsum(x: Tensor, *, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sum along `axis`; exclusive leaves each element itself out."""
    ordered = x.flip(axis) if reverse else x
    total = ordered.cumsum(axis, dtype=x.dtype)
    total = total - ordered if exclusive else total
    return total.flip(axis) if reverse else total


def fill(*, shape: list[int], value: float = 0.0) -> Tensor:
    """A tensor of one value; Python's bool, int or float decides its type."""
    return torch.full(shape, value, dtype=_OF_PYTHON[type(value)])


def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, *, epsilon: float = 1e-5
) -> Tensor:
    """Each channel of each sample to zero mean and unit variance over its spatial axes."""
    return F.instance_norm(x, weight=gamma, bias=beta, eps=epsilon)


def l2_norm(x: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """x / sqrt(sum of squares over the last three axes + epsilon)."""
    return x * (x.square().sum((-3, -2, -1), keepdim=True) + epsilon).rsqrt()


def layer_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axes: list[int] | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Zero mean and unit variance over `axes`, then gamma and beta of those axes' shape."""
    over = _axes(x, axes)
    sizes = [x.shape[axis] for axis in over]
    if list(over) == list(range(x.ndim - len(over), x.ndim)):
        return F.layer_norm(x, sizes, gamma, beta, epsilon)
    # Over leading axes this is many times faster than torch.var_mean.
    y = x - x.mean(over, keepdim=True)
    y.mul_(y.square().mean(over, keepdim=True).add_(epsilon).rsqrt_())
    aligned = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    y = y if gamma is None else y.mul_(gamma.reshape(aligned))
    return y if beta is None else y.add_(beta.reshape(aligned))


def range_1d(*, end: float, start: float, step: float) -> Tensor:
    """start, start + step, ... below end; integers stay integers."""
    return torch.arange(start, end, step, dtype=_OF_PYTHON[type(start)])


def reduce_argmax(
    x: Tensor, *, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    """Where the largest value along `axis` stands; the first of equals."""
    return x.argmax(axis, keep_dims).to(TORCH_TYPES[output_dtype])


def reduce_argmin(
    x: Tensor, *, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    """Where the smallest value along `axis` stands; the first of equals."""
    return x.argmin(axis, keep_dims).to(TORCH_TYPES[output_dtype])


def reduce_max(x: Tensor, *, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """Largest value over `axes`."""
    return x.amax(_axes(x, axes), keep_dims)


def reduce_mean(x: Tensor, *, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """Mean over `axes`."""
    return x.mean(_axes(x, axes), keep_dims)


def reduce_min(x: Tensor, *, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """Smallest value over `axes`."""
    return x.amin(_axes(x, axes), keep_dims)


def reduce_sum(x: Tensor, *, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """Sum over `axes`."""
    return x.sum(_axes(x, axes), keep_dims, dtype=x.dtype)


def reduce_l2_norm(x: Tensor, *, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    """Square root of the sum of squares over `axes`."""
    return x.square().sum(_axes(x, axes), keep_dims).sqrt()


def shape(x: Tensor) -> Tensor:
    """The sizes of x."""
    return torch.tensor(x.shape, dtype=torch.int32)


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """exp(x) over its sum along `axis`."""
    return x.softmax(axis)


_OF_PYTHON = {bool: torch.bool, int: torch.int32, float: torch.float32}


def _axes(x: Tensor, axes: Sequence[int] | None) -> tuple[int, ...]:
    if axes is None:
        return tuple(range(x.ndim))
    return tuple(sorted(axis % x.ndim for axis in axes))
