"""What a saved .tflite file costs, against torch's own counter and the sizes of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nanoflux_export.graph import one_segment
from nanoflux_export.targets.litert import target
from nanoflux_export.targets.litert.convert import convert
from nanoflux_export.targets.litert.cost import cost, part_of
from nanoflux_mobile.cost import BlockCost, Cost
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme

SCHEMES = ("fp16", "int8")
WEIGHT_BYTES = {"fp16": 2, "int8": 1}

# The converter adds numbers of its own: epsilons, and factors of each kind of op.
SCALAR_BYTES = 32


class Function(nn.Module):
    """A torch function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def macs_by_torch(module: nn.Module, *inputs: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "grouped": (nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4), (1, 8, 12, 16)),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 12, 16)),
    "transposed": (nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1), (1, 8, 12, 16)),
    "linear": (nn.Linear(24, 40), (1, 12, 24)),
}
PRODUCTS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "scores": (Function(lambda x: x.transpose(2, 3) @ x), (1, 4, 8, 32)),
    "outer": (Function(lambda x: x @ x.transpose(2, 3)), (1, 4, 8, 16)),
}


class SideBySide(nn.Module):
    """Layers that have nothing to do with each other."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(f(x) for f, x in zip(self.layers.values(), inputs, strict=True))


def test_macs_of_layers_are_those_that_torch_counts(tmp_path: Path) -> None:
    modules = {name: module for name, (module, _) in LAYERS.items()}
    inputs = {name: torch.zeros(shape) for name, (_, shape) in LAYERS.items()}
    made = {f"{name}_out": module(inputs[name]) for name, module in modules.items()}
    takes, gives = (
        tuple(
            TensorSpec(name, tuple("BCHW"[: value.ndim]), tuple(value.shape), "float32")
            for name, value in side.items()
        )
        for side in (inputs, made)
    )
    graph = one_segment(Component("denoiser", takes, gives), SideBySide(modules))
    target.write(graph, parse_scheme("fp16"), tmp_path / "x.tflite")
    found = cost(tmp_path / "x.tflite", "denoiser").blocks
    assert {block.block: block.macs for block in found} == {
        f"layers.{name}": macs_by_torch(module, inputs[name]) for name, module in modules.items()
    }


def test_macs_of_products_are_those_that_torch_counts(tmp_path: Path) -> None:
    modules = {name: module for name, (module, _) in PRODUCTS.items()}
    inputs = {name: torch.zeros(shape) for name, (_, shape) in PRODUCTS.items()}
    outputs = [f"{name}_out" for name in PRODUCTS]
    convert(SideBySide(modules), inputs, outputs, tmp_path / "x.tflite")
    counted = macs_by_torch(SideBySide(modules), *inputs.values())
    found = cost(tmp_path / "x.tflite", "denoiser")
    assert sum(block.macs for block in found.blocks) == counted > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_macs_do_not_depend_on_how_weights_are_stored(block, decoder, scheme: str) -> None:
    for saved in (block, decoder):
        inputs = (torch.from_numpy(value) for value in saved.inputs.values())
        found = cost(saved.files[scheme], "denoiser")
        assert sum(b.macs for b in found.blocks) == macs_by_torch(saved.module, *inputs)


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
        assert 0 <= found - stored_bytes(saved.module, scheme) <= SCALAR_BYTES
        assert found < saved.files[scheme].stat().st_size


class Layer(nn.Module):
    """One projection and its activation on 32 tokens of 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(64, 96, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.up(x))


def test_one_layer_by_hand(tmp_path: Path) -> None:
    x, y = (
        TensorSpec(name, ("batch", "channels", "one", "tokens"), shape, "float32")
        for name, shape in (("x", (1, 64, 1, 32)), ("y", (1, 96, 1, 32)))
    )
    path, component = tmp_path / "x.tflite", Component("text_encoder", (x,), (y,))
    target.write(one_segment(component, Layer()), parse_scheme("int8"), path)
    narrow, wide = 64 * 32 * 4, 96 * 32 * 4
    transposes, conv, tanh = 2 * narrow + 2 * wide, narrow + wide, 2 * wide
    assert cost(path, "text_encoder") == Cost(
        "cost/1",
        "litert",
        (
            BlockCost(
                component="text_encoder",
                function="main",
                block="up",
                macs=64 * 96 * 32,
                weight_bytes=64 * 96 + 96 * (4 + 4),
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
    assert ops["fp16"] == ops["int8"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_token_lookup_alone_leaves_the_gpu(block, decoder, scheme: str) -> None:
    found = cost(block.files[scheme], "denoiser")
    assert found.crossings == 1
    assert found.blocks[0].block == "embedding"
    assert cost(decoder.files[scheme], "decoder").crossings == 0


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        ("transformer_blocks.3/image.q.weight", "transformer_blocks.3"),
        ("x_embedder/weight", "x_embedder"),
        ("denoiser/doubles.11.image.q.weight", "doubles.11"),
        ("denoiser/stack.blocks.2.norm1.weight", "stack.blocks.2"),
        ("denoiser/decoder.conv1.weight", "decoder.conv1"),
        ("denoiser/bias", ""),
        ("doubles.11:7", ""),
        ("", ""),
    ],
)
def test_the_name_of_a_tensor_tells_its_part(tensor: str, part: str) -> None:
    assert part_of(tensor, "denoiser") == part


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.tflite").write_bytes(b"TFL3" * 8)
    with pytest.raises(InputError, match=r"x\.tflite is damaged or not a \.tflite file"):
        target.cost(tmp_path / "x.tflite", "denoiser")
