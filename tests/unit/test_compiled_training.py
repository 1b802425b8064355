"""Students trained by torch.compile: equal numbers, and one sentence without a compiler."""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch

from nanoflux_mobile.distill.learning import check_compiler
from nanoflux_mobile.distill.teaching import compile_blocks
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.nanoflux import NanoFlux
from tests.unit.micro_flux import FLOAT32, FORMS, make, velocity

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler"
)


def gradients(model: NanoFlux) -> dict[str, torch.Tensor]:
    """What every parameter is told by one loss."""
    model.requires_grad_(True).zero_grad()
    velocity(model).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@needs_compiler
def test_compiled_blocks_say_and_learn_the_same() -> None:
    plain = make(FORMS["AdaLN"]).whole()
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled)
    ours, theirs = gradients(compiled), gradients(plain)
    with torch.no_grad():
        torch.testing.assert_close(velocity(compiled), velocity(plain), rtol=0, atol=FLOAT32)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        # Sums of some hundred terms in another order, of the order of the largest.
        bound = FLOAT32 * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=bound)


@needs_compiler
def test_a_copy_of_compiled_blocks_is_an_ordinary_network() -> None:
    student = make(FORMS["AdaLN"]).whole()
    compile_blocks(student)
    assert student.state_dict().keys() == NanoFlux(student.cfg).state_dict().keys()
    assert torch.equal(velocity(copy.deepcopy(student)), velocity(make(FORMS["AdaLN"]).module))


def test_without_a_compiler_training_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler and 'no-such-compiler'"):
        check_compiler("cpu")
    check_compiler("cuda")
