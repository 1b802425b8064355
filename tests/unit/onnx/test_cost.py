"""What saved models cost, against torch's own count of operations and the sizes of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanoflux_export.targets.onnx import target
from nanoflux_export.targets.onnx.cost import part_of
from nanoflux_mobile.spec import parse_scheme
from tests.unit.onnx.conftest import SCHEMES, D, Small

PARTS = (
    ("doubles.0/image.q.weight:stored", "doubles.0"),
    ("denoiser/doubles.11.image.q.weight", "doubles.11"),
    ("denoiser/proj_out.weight:stored", "proj_out"),
    ("embed/x_embedder.weight", "embed.x_embedder"),
    ("cut_2/cos_low", "cut_2"),
)


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_a_weights_name_tells_its_part(name: str, part: str) -> None:
    assert part_of(name, "denoiser") == part


@pytest.mark.parametrize("scheme", SCHEMES)
def test_multiplications_are_torchs(small: Small, saved: Mapping[str, Path], scheme: str) -> None:
    blocks = target.cost(saved[scheme], "denoiser").blocks
    for function in small.graph.functions:
        with FlopCounterMode(display=False) as counter:
            small.expected(function, parse_scheme("fp16"))
        macs = sum(block.macs for block in blocks if block.function == function)
        assert 2 * macs == counter.get_total_flops()


@pytest.mark.parametrize(("scheme", "bytes_each", "per_channel"), [("fp16", 2, 0), ("int8", 1, 4)])
def test_weight_bytes_are_what_is_stored(
    saved: Mapping[str, Path], scheme: str, bytes_each: int, per_channel: int
) -> None:
    blocks = target.cost(saved[scheme], "denoiser").blocks
    found = {b.block: b.weight_bytes for b in blocks if b.function == "step_full"}
    names = ["embed.first", "embed.table", *(f"blocks.{i}" for i in range(3)), "head.spread"]
    assert sorted(found) == sorted(names)
    layers = bytes_each * (1 + 2 + 2 + 2) * D * D + per_channel * (1 + 2 + 2 + 1) * D
    biases, gain_and_shift, epsilon_and_one = 4 * (1 + 2 + 1) * D, 4 * 2 * D, 4 * 2
    assert found["blocks.1"] == layers + biases + gain_and_shift + epsilon_and_one


def test_activations_are_torch_sized(small: Small, saved: Mapping[str, Path]) -> None:
    """The head reads one value and writes another: (1, D, 1, S) and the velocity, float32."""
    blocks = target.cost(saved["fp16"], "denoiser").blocks
    head = next(b for b in blocks if (b.function, b.block) == ("step_full", "head.spread"))
    sizes = [torch.Size((1, D, 1, 12)).numel(), torch.Size((1, 4, 1, 24)).numel()]
    assert (head.ops, head.activation_bytes) == (1, 4 * sum(sizes))
