"""coremltools' overflow check, without four copies of every weight.

Its half-precision pass gathers all values below 1e38 of each constant into new arrays before it
takes their maximum, which is up to half of a conversion's time. Where the plain maximum is below
1e38 nothing would have been left out, so that maximum already is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_MOST_HALF = 65504.0
_INFINITE = float(np.float32(1e38))  # from here on coremltools takes a value for an infinity


@contextmanager
def quick_overflow_check() -> Iterator[None]:
    """Inside the block, conversions to half precision look at each constant once."""
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

    original = FP16ComputePrecision.fp16_overflow
    FP16ComputePrecision.fp16_overflow = staticmethod(_quick(original))
    try:
        yield
    finally:
        FP16ComputePrecision.fp16_overflow = staticmethod(original)


def _quick(original: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def fp16_overflow(op: Any) -> bool:
        most = [_most(values) for values in _float_constants(op)]
        if all(value < _INFINITE for value in most):  # NaN is not below anything
            return any(value > _MOST_HALF for value in most)
        return original(op)

    return fp16_overflow


def _float_constants(op: Any) -> Iterator[np.ndarray]:
    for given in op.inputs.values():
        for var in given if isinstance(given, (list, tuple)) else [given]:
            constant = var.op is not None and var.op.op_type == "const"
            if constant and var.is_tensor_or_scalar_of(dtype="fp32"):
                yield np.asarray(var.op.val.val)


def _most(values: np.ndarray) -> float:
    """The greatest magnitude, in two passes without a copy; NaN where there is one."""
    return float(max(values.max(initial=0.0), -values.min(initial=0.0)))
