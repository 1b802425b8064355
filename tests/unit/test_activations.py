"""Measured ranges and means against torch's own layers run by hand, and numpy.

Shapes: C channels, S positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.fitting.activations import (
    importance,
    input_ranges,
    layer_stats,
    wire_ranges,
)
from nanoflux_export.fitting.calibration import Calibration
from nanoflux_export.graph import STEP_FULL, STEP_LOW, MobileGraph
from nanoflux_export.layers import layers_of
from nanoflux_export.tape import Lazy, Tape
from nanoflux_mobile.spec import TensorSpec

C, S, WORDS = 8, 5, 11
ROUNDING = 1e-6  # Sums of a few dozen float32 squares in float64, against numpy's.


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(WORDS, C)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).transpose(1, 2)[:, :, None]


class Feed(nn.Module):
    """A gated layer of two: `up` sees groups of channels, `gate` rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(C, C, 1, groups=2)
        self.gate = nn.Linear(C, C)
        self.unused = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x[:, :, 0].transpose(1, 2)).transpose(1, 2)[:, :, None]
        return torch.cat((self.up(x) * F.relu(gate), 3.0 * x * x), 1)


class Block(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.feed = Feed()
        self.down = nn.ConvTranspose2d(2 * C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.feed(x).square().sqrt())


SHAPE = (1, C, 1, S)
IDS = TensorSpec("ids", ("batch", "tokens"), (1, S), "int32")
LATENTS = TensorSpec("latents", ("batch", "channels", "one", "tokens"), SHAPE, "float32")


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def graph() -> MobileGraph:
    """Two functions; both run block 0, only one runs block 1."""
    functions = {}
    for name in (STEP_LOW, STEP_FULL):
        tape = Tape()
        tape.put("words", Lazy(Words, 1), ("ids",), y=SHAPE)
        tape.put("sum", Lazy(Sum), ("latents", "y"), x_0=SHAPE)
        tape.put("blocks.0", Lazy(lambda: Block(0), 1), ("x_0",), x_1=SHAPE)
        value = "x_1"
        if name == STEP_FULL:
            tape.put("blocks.1", Lazy(lambda: Block(1), 1), ("x_1",), x_2=SHAPE)
            value = "x_2"
        out = TensorSpec(value, LATENTS.axes, SHAPE, "float32")
        functions[name] = tape.function((IDS, LATENTS), (out,))
    return MobileGraph("denoiser", functions)


def drawn(seed: int, spread: float = 1.0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    latents = (spread * draw.standard_normal(SHAPE)).astype(np.float32)
    return {"ids": draw.integers(0, WORDS, (1, S)).astype(np.int32), "latents": latents}


CALIBRATION = Calibration(
    {("denoiser", STEP_LOW): (drawn(0),), ("denoiser", STEP_FULL): (drawn(1, 3.0), drawn(2))}
)


def entering(block: int) -> Iterator[Tensor]:
    """What enters a block, by hand, in the order of the calibration."""
    for entries in CALIBRATION.inputs.values():
        for inputs in entries:
            if block and inputs is CALIBRATION.inputs["denoiser", STEP_LOW][0]:
                continue
            x = torch.from_numpy(inputs["latents"]) + Words()(torch.from_numpy(inputs["ids"]))
            yield x if block == 0 else Block(0)(x)


@pytest.mark.parametrize("keep", [True, False])
@torch.no_grad()
def test_layers_are_measured_as_torch_runs_them(keep: bool) -> None:
    heard: list[tuple[int, int]] = []
    stats = layer_stats(graph(), CALIBRATION, keep=keep, on_entry=lambda *x: heard.append(x))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    unnumbered = {"words/table.weight", *(f"blocks.{i}/feed.unused.weight" for i in (0, 1))}
    assert stats.keys() == {layer.name for layer in layers_of(graph())} - unnumbered
    for i in (0, 1):
        block, given = Block(i), list(entering(i))
        x = torch.cat(given, 3).numpy()[0, :, 0]
        gate, up, down = (stats[f"blocks.{i}/{n}.weight"] for n in ("feed.gate", "feed.up", "down"))
        for one in (gate, up):
            assert (one.low, one.high) == (x.min(), x.max())
        np.testing.assert_allclose(gate.mean_square, np.square(x).mean(1), rtol=ROUNDING)
        # Both groups of four channels see the same columns of the weight, (8, 4, 1, 1).
        both = np.square(x).mean(1).reshape(2, 4).mean(0)
        np.testing.assert_allclose(up.mean_square, both, rtol=ROUNDING)
        taken = torch.cat([block.feed(y).abs() for y in given], 3)
        expected = taken.square().mean((0, 2, 3))
        np.testing.assert_allclose(down.mean_square, expected, rtol=1e-5)  # through a root
        # A convolution of other lengths may sum in another order.
        assert down.most_out == pytest.approx(block.down(taken).abs().max().item(), rel=1e-5)
    assert importance(stats)["blocks.0/down.weight"] is stats["blocks.0/down.weight"].mean_square
    low, high = input_ranges(stats)["blocks.1/down.weight"]
    assert 0.0 <= low < high


@torch.no_grad()
def test_every_wire_module_and_operation_has_its_greatest_magnitude() -> None:
    ranges = wire_ranges(graph(), CALIBRATION)
    latents = max(float(np.abs(x["latents"]).max()) for x in (drawn(0), drawn(1, 3.0), drawn(2)))
    assert (ranges["latents"].entering, ranges["latents"].most) == (0.0, latents)
    assert "ids" not in ranges
    for i in (0, 1):
        given, block = list(entering(i)), Block(i)
        x, feeds = torch.cat(given, 3), [block.feed(y) for y in given]
        most = x.abs().max().item()
        squares = torch.cat(feeds, 3).square().max().item()
        made = max(block(y).abs().max().item() for y in given)
        found = {
            f"x_{i}": (most, most),
            f"blocks.{i}/feed.up": (most, max(block.feed.up(y).abs().max().item() for y in given)),
            f"blocks.{i}/:square": (math.sqrt(squares), squares),
            f"blocks.{i}/": (most, made),
            f"blocks.{i}/feed:mul.3": (3 * most, 3 * most**2),
            f"x_{i + 1}": (made, made),
        }
        for name, (low, high) in found.items():
            # float32 on both sides, summed in another order at most.
            assert ranges[name].entering == pytest.approx(low, rel=1e-5), name
            assert ranges[name].most == pytest.approx(high, rel=1e-5), name
        own = [
            name.removeprefix(f"blocks.{i}/") for name in ranges if name.startswith(f"blocks.{i}/")
        ]
        # Slices and transposes show values that were there before.
        feed = {"gate:linear", "up:conv2d", ":relu", ":mul", ":mul.2", ":mul.3", ":cat"}
        outer = {":square", ":sqrt", "down:conv_transpose2d", ":add"}
        expected = outer | {f"feed{name}" if name[0] == ":" else f"feed.{name}" for name in feed}
        assert {name for name in own if ":" in name} == expected


def test_what_is_no_number_is_infinite_and_hooks_are_gone_afterwards() -> None:
    bad = drawn(0)
    bad["latents"][0, 0, 0, 0] = np.nan
    one = Block(0)
    tape = Tape()
    tape.put("block", Lazy(lambda: one, 1), ("latents",), velocity=SHAPE)
    out = TensorSpec("velocity", LATENTS.axes, SHAPE, "float32")
    small = MobileGraph("denoiser", {STEP_FULL: tape.function((LATENTS,), (out,))})
    inputs = Calibration({("denoiser", STEP_FULL): ({"latents": bad["latents"]},)})
    ranges = wire_ranges(small, inputs)
    layer_stats(small, inputs)
    assert ranges["velocity"].most == ranges["block/"].most == math.inf
    parts = list(one.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
