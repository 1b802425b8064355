"""MIL ops that compute each element on its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# MIL's integers as torch computes with them: unsigned ones in the next wider signed type.
TORCH_TYPES = {
    **dict.fromkeys(("fp16", "fp32"), torch.float32),
    **dict.fromkeys(("int32", "uint16"), torch.int32),
    **dict.fromkeys(("int64", "uint32"), torch.int64),
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


def cast(x: Tensor, *, dtype: str) -> Tensor:
    """Another type: floats lose their fraction towards zero, integers wrap."""
    if dtype == "uint16":
        return x.to(torch.int32) & 0xFFFF
    return x.to(TORCH_TYPES[dtype])


def clip(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Clamp to [alpha, beta]."""
    return x.clamp(alpha, beta)


def gelu(x: Tensor, *, mode: str = "EXACT") -> Tensor:
    """GELU in one of MIL's three forms."""
    return _GELU[mode](x)


def inverse(x: Tensor, *, epsilon: float = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return (x + epsilon).reciprocal()


def leaky_relu(x: Tensor, *, alpha: float) -> Tensor:
    """Negative values times alpha."""
    return F.leaky_relu(x, alpha)


def log(x: Tensor, *, epsilon: float = 1e-45) -> Tensor:
    """Natural logarithm of x + epsilon."""
    return (x + epsilon).log()


def pow(x: Tensor, y: Tensor) -> Tensor:
    """x to the power y."""
    # A plain number lets torch square or take the root instead of calling a general power.
    return x.pow(y.item()) if y.ndim == 0 else x.pow(y)


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """x / y; integers are divided towards zero, since MIL keeps their type."""
    return x / y if x.is_floating_point() else x.div(y, rounding_mode="trunc")


def rsqrt(x: Tensor, *, epsilon: float = 1e-12) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return (x + epsilon).rsqrt()


_GELU: dict[str, Callable[[Tensor], Tensor]] = {
    "EXACT": F.gelu,
    "TANH_APPROXIMATION": lambda x: F.gelu(x, approximate="tanh"),
    "SIGMOID_APPROXIMATION": lambda x: x * torch.sigmoid(1.702 * x),
}

ONE_LINERS: dict[str, Callable[..., Tensor]] = {
    "abs": lambda x: x.abs(),
    "ceil": lambda x: x.ceil(),
    "cos": lambda x: x.cos(),
    "erf": lambda x: x.erf(),
    "exp": lambda x: x.exp(),
    "exp2": lambda x: x.exp2(),
    "floor": lambda x: x.floor(),
    "logical_not": lambda x: ~x,
    "relu": lambda x: x.relu(),
    "relu6": lambda x: F.relu6(x),
    "round": lambda x: x.round(),
    "sigmoid": lambda x: x.sigmoid(),
    "sign": lambda x: x.sign(),
    "silu": lambda x: F.silu(x),
    "sin": lambda x: x.sin(),
    "softplus": lambda x: F.softplus(x),
    "sqrt": lambda x: x.sqrt(),
    "square": lambda x: x.square(),
    "tanh": lambda x: x.tanh(),
    "add": lambda x, y: x + y,
    "equal": lambda x, y: x == y,
    "floor_div": lambda x, y: x.floor_divide(y),
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "logical_and": lambda x, y: x & y,
    "logical_or": lambda x, y: x | y,
    "logical_xor": lambda x, y: x ^ y,
    "maximum": lambda x, y: x.maximum(y),
    "minimum": lambda x, y: x.minimum(y),
    "mod": lambda x, y: x.remainder(y),
    "mul": lambda x, y: x * y,
    "not_equal": lambda x, y: x != y,
    "sub": lambda x, y: x - y,
}
