"""What a saved package costs, against torch's own counter and the records of its weight file.

Shapes: B batch, C channels, H heads, S tokens, E width of a head.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ct = pytest.importorskip("coremltools")

from nanoflux_export.graph import MobileGraph, one_segment  # noqa: E402
from nanoflux_export.targets.coreml import target  # noqa: E402
from nanoflux_export.targets.coreml.cost import cost, part_of  # noqa: E402
from nanoflux_mobile.cost import BlockCost, Cost, read_cost  # noqa: E402
from nanoflux_mobile.errors import InputError  # noqa: E402
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme  # noqa: E402


class Function(nn.Module):
    """A torch function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def graph_of(module: nn.Module, shape: tuple[int, ...]) -> MobileGraph:
    """The module as a graph of one input and one output."""
    made = tuple(module(torch.zeros(shape)).shape)
    x, y = (
        TensorSpec(name, tuple(f"axis {i}" for i in range(len(size))), size, "float32")
        for name, size in (("x", shape), ("y", made))
    )
    return one_segment(Component("denoiser", (x,), (y,)), module)


def package(module: nn.Module, shape: tuple[int, ...], path: Path) -> Path:
    target.write(graph_of(module, shape), parse_scheme("fp16"), path)
    return path


def macs_by_torch(module: nn.Module, shape: tuple[int, ...]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(shape))
    return counter.get_total_flops() // 2


HEADS_BHES = (1, 4, 8, 32)
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "grouped": (nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4), (1, 8, 12, 16)),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 12, 16)),
    "transposed": (nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1), (1, 8, 12, 16)),
    "linear": (nn.Linear(24, 40), (1, 12, 24)),
    "scores": (Function(lambda x: x.transpose(2, 3) @ x), HEADS_BHES),
    "outer": (Function(lambda x: x @ x.transpose(2, 3)), HEADS_BHES),
    "einsum": (Function(lambda x: torch.einsum("bchq,bkhc->bkhq", x, x)), (1, 32, 4, 32)),
    "attention": (
        Function(lambda x: F.scaled_dot_product_attention(x, x, x[..., :16])),
        HEADS_BHES,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_macs_of_a_layer_are_those_that_torch_counts(tmp_path: Path, name: str) -> None:
    module, shape = LAYERS[name]
    found = cost(package(module, shape, tmp_path / "x.mlpackage"), "denoiser")
    assert sum(block.macs for block in found.blocks) == macs_by_torch(module, shape) > 0


class Layer(nn.Module):
    """One projection and its activation on 32 tokens of 64 channels, then split into heads."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(64, 96, 1)

    def forward(self, x_BC1S: Tensor) -> Tensor:
        return torch.relu(self.up(x_BC1S)).reshape(1, 4, 24, 32)


def test_one_layer_by_hand(tmp_path: Path) -> None:
    path = package(Layer(), (1, 64, 1, 32), tmp_path / "x.mlpackage")
    narrow, wide = 64 * 32 * 2, 96 * 32 * 2  # bytes in half precision
    cast_in, conv, relu, cast_out = 3 * narrow, narrow + wide, 2 * wide, 3 * wide
    assert cost(path, "denoiser") == Cost(
        "cost/1",
        "coreml",
        (
            BlockCost(
                component="denoiser",
                function="main",
                block="up",
                macs=64 * 96 * 32,
                weight_bytes=(64 * 96 + 96) * 2,
                activation_bytes=cast_in + conv + relu + cast_out,
                working_set_bytes=cast_out,
                ops=4,  # heads are another view of the same rows
            ),
        ),
        crossings=0,
    )


def test_a_reshape_of_the_last_axis_is_work(tmp_path: Path) -> None:
    module = Function(lambda x: torch.relu(x).reshape(1, 32, 1, 64))
    (block,) = cost(package(module, (1, 64, 1, 32), tmp_path / "x.mlpackage"), "denoiser").blocks
    assert block.ops == 4


class Lookup(nn.Module):
    """Rows of a table between two activations; the ids come from inside the graph or outside."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.words((torch.relu(x) * 8).to(torch.int32)))


def test_leaving_the_engine_and_coming_back_are_two_crossings(tmp_path: Path) -> None:
    found = cost(package(Lookup(), (1, 32), tmp_path / "x.mlpackage"), "denoiser")
    assert found.crossings == 2
    assert sum(block.weight_bytes for block in found.blocks) == 32 * 64 * 2


def stored_bytes(path: Path) -> int:
    """Bytes of all tensors in a package's weight file, by its records."""
    (file,) = path.rglob("weight.bin")
    data = file.read_bytes()
    (count,), at, total = struct.unpack_from("<I", data), 64, 0
    for _ in range(count):
        sentinel, _, size, start, _ = struct.unpack_from("<IIQQQ", data, at)
        assert sentinel == 0xDEADBEEF
        total, at = total + size, -(-(start + size) // 64) * 64
    return total


@pytest.mark.parametrize("component", ["text_encoder", "denoiser", "decoder"])
def test_weights_are_counted_as_stored(micro: Any, component: str) -> None:
    """The denoiser's are 6-bit palettes; a table that several blocks read is there once."""
    blocks = read_cost(micro.bundles["coreml"]).blocks
    mine = [block for block in blocks if block.component == component]
    path = micro.bundles["coreml"] / "components" / f"{component}.mlpackage"
    assert sum(block.weight_bytes for block in mine) == stored_bytes(path)


def test_palettes_weigh_their_indices_and_entries(tmp_path: Path) -> None:
    graph = graph_of(nn.Conv2d(64, 64, 1, bias=False), (1, 64, 1, 32))
    for scheme in map(parse_scheme, ("palette4", "palette4-g16", "palette8")):
        target.write(graph, scheme, tmp_path / "x.mlpackage")
        (block,) = cost(tmp_path / "x.mlpackage", "denoiser").blocks
        palettes = 64 // scheme.group if scheme.group else 1
        indices = 64 * 64 * scheme.bits // 8
        assert block.weight_bytes == indices + palettes * 2**scheme.bits * 2


def test_every_function_is_counted_with_its_own_shapes(tmp_path: Path) -> None:
    """Two functions of one set of weights, the second on twice as many tokens."""
    layer = nn.Conv2d(64, 64, 1)
    ends = {"step_low": (1, 64, 1, 32), "step_full": (1, 64, 1, 64)}
    functions = {name: graph_of(layer, shape).functions["main"] for name, shape in ends.items()}
    path = tmp_path / "both.mlpackage"
    target.write(MobileGraph("denoiser", functions), parse_scheme("fp16"), path)
    full, low = cost(path, "denoiser").blocks
    assert (full.function, low.function) == ("step_full", "step_low")
    assert full.macs == 2 * low.macs == 64 * 64 * 64
    assert full.activation_bytes == 2 * low.activation_bytes
    assert full.weight_bytes == low.weight_bytes == (64 * 64 + 64) * 2 == stored_bytes(path)


class Pair(nn.Module):
    """Two layers of equal values, each with a sum behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Conv2d(64, 64, 1) for _ in range(2))
        with torch.no_grad():
            self.layers[1].bias.copy_(self.layers[0].bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layers[0](x)
        return x + self.layers[1](x)


def test_a_stored_value_under_two_names_is_there_once_and_tells_no_block(tmp_path: Path) -> None:
    path = package(Pair(), (1, 64, 1, 32), tmp_path / "x.mlpackage")
    blocks = cost(path, "denoiser").blocks
    assert [(block.block, block.macs) for block in blocks] == [
        ("layers_0", 64 * 64 * 32),
        ("layers_1", 64 * 64 * 32),
    ]
    assert sum(block.weight_bytes for block in blocks) == stored_bytes(path)
    assert stored_bytes(path) == (2 * 64 * 64 + 64) * 2


@pytest.mark.parametrize(
    ("weight", "part"),
    [
        ("doubles_3__block_image_q_weight", "doubles_3"),
        ("singles_11__block_out_weight", "singles_11"),
        ("embed__x_embedder_weight", "embed"),
        ("blocks_3__block_feed_wi_0_weight", "blocks_3"),
        ("decoder__decoder_up_blocks_1_resnets_0_conv1_weight", "decoder_up_blocks_1"),
        ("decoder__decoder_conv_in_weight", "decoder_conv_in"),
        ("decoder__weight", ""),
        ("doubles0_var_69_to_fp16", ""),
        ("doubles_3_5_op_5_0", ""),
        ("", ""),
    ],
)
def test_the_name_of_a_weight_tells_its_part(weight: str, part: str) -> None:
    assert part_of(weight, "decoder") == part


def test_refuses_what_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a Core ML package"):
        target.cost(tmp_path, "denoiser")
