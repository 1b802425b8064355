"""What a saved .tflite file costs, against torch's own counter and the sizes of the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nanoflux_export.graph import MobileGraph
from nanoflux_export.targets.litert import target
from nanoflux_export.targets.litert.convert import convert
from nanoflux_export.targets.litert.cost import cost, part_of
from nanoflux_mobile.cost import BlockCost, Cost
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Component, TensorSpec

SCHEMES = ("fp32", "fp16", "int8")
WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}

# The converter adds numbers of its own: epsilons, and factors of each kind of op.
SCALAR_BYTES = 32


class Function(nn.Module):
    """A torch function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def file(module: nn.Module, shape: tuple[int, ...], path: Path) -> Path:
    """The module as a float32 file of one input and one output."""
    made = tuple(module(torch.zeros(shape)).shape)
    x, y = (
        TensorSpec(name, tuple(f"axis {i}" for i in range(len(size))), size, "float32")
        for name, size in (("x", shape), ("y", made))
    )
    convert(MobileGraph(Component("denoiser", (x,), (y,)), module), path)
    return path


def macs_by_torch(module: nn.Module, *inputs: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "grouped": (nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4), (1, 8, 12, 16)),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 12, 16)),
    "transposed": (nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1), (1, 8, 12, 16)),
    "linear": (nn.Linear(24, 40), (1, 12, 24)),
    "scores": (Function(lambda x: x.transpose(2, 3) @ x), (1, 4, 8, 32)),
    "outer": (Function(lambda x: x @ x.transpose(2, 3)), (1, 4, 8, 32)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_macs_of_a_layer_are_those_that_torch_counts(tmp_path: Path, name: str) -> None:
    module, shape = LAYERS[name]
    found = cost(file(module, shape, tmp_path / "x.tflite"), "denoiser")
    counted = macs_by_torch(module, torch.zeros(shape))
    assert sum(block.macs for block in found.blocks) == counted > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_macs_do_not_depend_on_how_weights_are_stored(block, decoder, scheme: str) -> None:
    for saved in (block, decoder):
        inputs = (torch.from_numpy(value) for value in saved.inputs.values())
        found = cost(saved.files[scheme], "denoiser")
        assert sum(b.macs for b in found.blocks) == macs_by_torch(saved.graph.module, *inputs)


def stored_bytes(module: nn.Module, scheme: str) -> int:
    """Weights by scheme, a scale for each row of an int8 weight, and biases in float32."""
    total = 0
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Embedding):
            total += part.weight.numel() * WEIGHT_BYTES[scheme]
            total += 4 * len(part.weight) * (scheme == "int8")
        if isinstance(part, nn.Conv2d):
            total += 4 * len(part.bias)
    return total


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_are_counted_as_stored(block, decoder, scheme: str) -> None:
    for saved in (block, decoder):
        found = sum(b.weight_bytes for b in cost(saved.files[scheme], "denoiser").blocks)
        assert 0 <= found - stored_bytes(saved.graph.module, scheme) <= SCALAR_BYTES
        assert found < saved.files[scheme].stat().st_size


class Layer(nn.Module):
    """One projection and its activation on 32 tokens of 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(64, 96, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.up(x))


def test_one_layer_by_hand(tmp_path: Path) -> None:
    path = file(Layer(), (1, 64, 1, 32), tmp_path / "x.tflite")
    narrow, wide = 64 * 32 * 4, 96 * 32 * 4
    transposes, conv, tanh = 2 * narrow + 2 * wide, narrow + wide, 2 * wide
    assert cost(path, "text_encoder") == Cost(
        "cost/1",
        "litert",
        (
            BlockCost(
                component="text_encoder",
                function="serving_default",
                block="up",
                macs=64 * 96 * 32,
                weight_bytes=(64 * 96 + 96) * 4,
                activation_bytes=transposes + conv + tanh,
                working_set_bytes=2 * wide,
                ops=4,
            ),
        ),
        crossings=0,
    )


def test_unpacking_weights_and_reshaping_values_is_no_work(block) -> None:
    ops = {
        scheme: sum(b.ops for b in target.cost(block.files[scheme], "x").blocks)
        for scheme in SCHEMES
    }
    assert ops["fp16"] == ops["fp32"] == ops["int8"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_token_lookup_alone_leaves_the_gpu(block, decoder, scheme: str) -> None:
    found = cost(block.files[scheme], "denoiser")
    assert found.crossings == 1
    assert found.blocks[0].block == "embedding"
    assert cost(decoder.files[scheme], "decoder").crossings == 0


ROOT = "pkg.convert._Named/pkg.denoiser.MobileDenoiser_module"


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        (
            f"{ROOT}/pkg.denoiser.MobileDoubleBlock_0/pkg.QKV_image/torch.Conv2d_q;1",
            "MobileDoubleBlock.0",
        ),
        (
            f"{ROOT}/pkg.Decoder_decoder/pkg.Stage_11/pkg.ResnetBlock_1/torch.Conv2d_conv1",
            "decoder.Stage.11",
        ),
        (f"{ROOT}/torch.nn.modules.conv.Conv2d_x_embedder;", "x_embedder"),
        (f"{ROOT}/pkg.Decoder_decoder/torch.Conv2d_conv_in;1_dequant", "decoder.conv_in"),
        (f"{ROOT};7", ""),
        ("arith.constant12", ""),
        ("", ""),
    ],
)
def test_the_name_of_a_tensor_tells_its_part(tensor: str, part: str) -> None:
    assert part_of(tensor) == part


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.tflite").write_bytes(b"TFL3" * 8)
    with pytest.raises(InputError, match=r"x\.tflite is damaged or not a \.tflite file"):
        target.cost(tmp_path / "x.tflite", "denoiser")
