"""The quick overflow check says what coremltools' own says, and is gone after its block."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("coremltools")

from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

from nanoflux_export.targets.coreml.overflow_check import quick_overflow_check

INFINITE = np.float32(1e38)
BORDERS = (
    *(0.0, -0.0, 1.0, 65504.0, 65505.0, 65519.0, 65520.0, 1e10, np.nan, np.inf),
    *(float(INFINITE), float(np.nextafter(INFINITE, np.float32(0))), 2e38, 1e-45),
)
values = st.one_of(
    st.sampled_from([sign * value for value in BORDERS for sign in (1, -1)]),
    st.floats(width=32),
)
constants = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), elements=values
)


def constant(array: np.ndarray, kind: str = "fp32") -> Any:
    """What the check asks of a variable that a constant makes."""
    op = SimpleNamespace(op_type="const", val=SimpleNamespace(val=array))
    return SimpleNamespace(op=op, is_tensor_or_scalar_of=lambda dtype: dtype == kind)


COMPUTED = SimpleNamespace(
    op=SimpleNamespace(op_type="mul"), is_tensor_or_scalar_of=lambda dtype: True
)
INPUT = SimpleNamespace(op=None, is_tensor_or_scalar_of=lambda dtype: True)


@pytest.fixture(scope="module")
def checks() -> Iterator[tuple[Any, Any]]:
    """coremltools' check and ours."""
    original = FP16ComputePrecision.fp16_overflow
    with quick_overflow_check():
        yield original, FP16ComputePrecision.fp16_overflow


@given(given_=st.lists(constants, max_size=4), listed=st.booleans())
@example(given_=[np.float32([1e6]), np.float32([np.nan])], listed=False)
@example(given_=[np.float32([np.nan]), np.float32([1e6])], listed=True)
@example(given_=[np.float32([np.inf, 7e4])], listed=False)
@example(given_=[np.float32([INFINITE])], listed=False)
def test_it_says_what_the_original_says(
    checks: tuple[Any, Any], given_: list[np.ndarray], listed: bool
) -> None:
    original, quick = checks
    made = [constant(array) for array in given_]
    inputs: dict[str, Any] = {"x": INPUT, "y": COMPUTED, "i": constant(np.float32([1e9]), "int32")}
    inputs |= {"values": made} if listed else {f"c{i}": c for i, c in enumerate(made)}
    op = SimpleNamespace(inputs=inputs)
    assert bool(quick(op)) == bool(original(op))


def test_both_answers_occur(checks: tuple[Any, Any]) -> None:
    for check in checks:
        for array, answer in (([65504.0, np.inf], False), ([65505.0], True), ([-7e4, 2e38], True)):
            op = SimpleNamespace(inputs={"x": constant(np.float32(array))})
            assert bool(check(op)) is answer


def test_it_is_gone_after_the_block_even_if_that_raises() -> None:
    before = FP16ComputePrecision.fp16_overflow

    def fail() -> None:
        with quick_overflow_check():
            assert FP16ComputePrecision.fp16_overflow is not before
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert FP16ComputePrecision.fp16_overflow is before
    # Also on an instance, as the pass calls it.
    with quick_overflow_check():
        overflow = FP16ComputePrecision().fp16_overflow
        assert overflow(SimpleNamespace(inputs={"x": constant(np.float32([7e4]))}))
