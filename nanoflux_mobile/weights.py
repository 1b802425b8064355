"""Weights that stay on disk until asked for: what every checkpoint layout becomes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from nanoflux_mobile.errors import InputError

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: `read` maps, slices or decodes it anew at each call.

    `dtype` is what the file stores ("float32", "bfloat16", "float8_e4m3fn", "q4_k"), `nbytes` what
    it takes there; `read` gives a floating-point tensor of `shape`.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    read: Callable[[], Tensor]


Weights = Mapping[str, Stored]
"""Tensors by the parameter names of the module they belong to."""


def dtype_name(dtype: torch.dtype) -> str:
    """What `Stored` calls a dtype of torch."""
    return str(dtype).removeprefix("torch.")


def rows(stored: Stored, start: int, stop: int) -> Stored:
    """Rows [start, stop) of a tensor's first axis: a view of what is read."""
    shape = (stop - start, *stored.shape[1:])
    nbytes = stored.nbytes * (stop - start) // max(stored.shape[0], 1)
    return Stored(shape, stored.dtype, nbytes, lambda: stored.read()[start:stop])


def stacked(parts: Sequence[Stored]) -> Stored:
    """Tensors below each other along their first axis, float32 where their dtypes differ."""
    first, alike = parts[0], len({part.dtype for part in parts}) == 1
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    nbytes = sum(part.nbytes for part in parts)

    def read() -> Tensor:
        tensors = [part.read() for part in parts]
        return torch.cat(tensors if alike else [tensor.float() for tensor in tensors])

    return Stored(shape, first.dtype if alike else "float32", nbytes, read)


def held(module: nn.Module) -> Weights:
    """The weights of a module in memory, in the same form."""
    return {name: in_memory(tensor.detach()) for name, tensor in module.state_dict().items()}


def in_memory(tensor: Tensor) -> Stored:
    """A tensor as if it were stored; `read` gives the tensor itself."""
    return Stored(tuple(tensor.shape), dtype_name(tensor.dtype), tensor.nbytes, lambda: tensor)


def check_finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself; InputError names one that holds NaN or infinities."""
    # A sum is finite only if every term is, and it needs no mask as large as the tensor.
    if tensor.sum().isfinite() or tensor.isfinite().all():
        return tensor
    count = int((~tensor.isfinite()).sum())
    raise InputError(
        f"{name} holds {count} values that are NaN or infinite; "
        "the checkpoint is damaged or its training diverged: use another one, or have zeros put "
        "in their place with --set non_finite=zero"
    )


def with_zeros(weights: Weights) -> Weights:
    """The same tensors with zeros where they hold NaN or infinities."""
    return {name: replace(stored, read=_zeroed(stored)) for name, stored in weights.items()}


def _zeroed(stored: Stored) -> Callable[[], Tensor]:
    return lambda: stored.read().float().nan_to_num(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Network(Generic[M]):
    """A network of any size: its form on the meta device, its weights wherever they are."""

    skeleton: M
    weights: Weights

    @cached_property
    def module(self) -> M:
        """`whole()`, made at the first use and kept."""
        return self.whole()

    def whole(self) -> M:
        """The module with all weights, float32, in evaluation mode, without gradients."""
        return self.piece("")

    def piece(self, path: str) -> Any:
        """The submodule at a dotted `path` ("" for all) with its weights, float32.

        Only its own tensors are read, so the pieces of a network far larger than memory can be
        had one by one. InputError names a tensor with NaN or infinities.
        """
        prefix = f"{path}." if path else ""
        piece = copy.deepcopy(self.skeleton.get_submodule(path))
        state = {name: self.tensor(prefix + name) for name in piece.state_dict()}
        piece.load_state_dict(state, strict=True, assign=True)
        return piece.eval().requires_grad_(False)

    def count(self, path: str = "") -> int:
        """How many numbers the submodule at `path` consists of; the whole network without one."""
        prefix = f"{path}." if path else ""
        own = (stored for name, stored in self.weights.items() if name.startswith(prefix))
        return sum(math.prod(stored.shape) for stored in own)

    def tensor(self, name: str) -> Tensor:
        """One tensor, float32; InputError if it holds NaN or infinities."""
        return check_finite(name, self.weights[name].read().float())


def network(module: M) -> Network[M]:
    """A module in memory as a network; `piece` shares its tensors where they are float32."""
    weights = held(module)
    return Network(copy.deepcopy(module).to("meta"), weights)
