"""Segments as they are written down, and the function between given inputs and outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nanoflux_export.tape import Lazy, Tape
from nanoflux_mobile.spec import TensorSpec

SHAPE = (1, 4, 1, 8)
AXES = ("batch", "channels", "one", "tokens")
LATENTS, VELOCITY = (TensorSpec(name, AXES, SHAPE, "float32") for name in ("latents", "velocity"))


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        ("doubles.3", "doubles"),
        ("up.1.blocks.12", "up.1.blocks"),
        ("embed", "embed"),
        ("t5.xxl", "t5.xxl"),
        ("proj_2", "proj_2"),
    ],
)
def test_a_kind_is_the_name_without_its_number(weights: str, kind: str) -> None:
    tape = Tape()
    tape.put(weights, Lazy(nn.Identity), ("latents",), x_0=SHAPE)
    assert tape.segments[0].kind == kind
    assert tape.segments[0].weights == weights


def test_a_kind_that_is_told_is_kept() -> None:
    tape = Tape()
    tape.put("singles.3", Lazy(nn.Identity), ("latents",), "singles_low", x_0=SHAPE)
    assert tape.segments[0].kind == "singles_low"


def test_a_function_has_the_segments_in_order_and_a_wire_for_each_value_between() -> None:
    tape = Tape()
    tape.put("embed", Lazy(nn.Identity, 12), ("latents",), x_0=(1, 6, 1, 8))
    tape.put("halves", Lazy(nn.Identity), ("x_0",), **{"rows.0": SHAPE, "rows.1": SHAPE})
    tape.put("out", Lazy(nn.Identity, 3), ("rows.0", "rows.1"), velocity=SHAPE)
    function = tape.function((LATENTS,), (VELOCITY,))
    assert [s.weights for s in function.segments] == ["embed", "halves", "out"]
    assert [s.parameters for s in function.segments] == [12, 0, 3]
    assert [s.inputs for s in function.segments] == [("latents",), ("x_0",), ("rows.0", "rows.1")]
    assert [s.outputs for s in function.segments] == [("x_0",), ("rows.0", "rows.1"), ("velocity",)]
    assert function.wires == {"x_0": (1, 6, 1, 8), "rows.0": SHAPE, "rows.1": SHAPE}
    assert [function.shape(name) for name in ("latents", "x_0", "velocity")] == [
        SHAPE,
        (1, 6, 1, 8),
        SHAPE,
    ]


def test_a_module_is_built_when_asked_and_for_evaluation() -> None:
    built = []

    def build() -> nn.Module:
        built.append(nn.Dropout(0.5))
        return built[-1]

    tape = Tape()
    tape.put("noise", Lazy(build), ("latents",), velocity=SHAPE)
    (segment,) = tape.function((LATENTS,), (VELOCITY,)).segments
    assert built == []
    x = torch.ones(SHAPE)
    assert torch.equal(segment.build()(x), x)
    segment.build()
    assert len(built) == 2  # nothing keeps one
