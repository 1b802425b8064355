"""Layers of one file stored in different ways, 4-bit integers, and the form for CPUs.

The rules are written out here once more in numpy; torch on the weights they give is the other
reference. Shapes: D channels, S tokens; activations are (1, D, 1, S).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.compression.plan import Plan
from nanoflux_export.compression.rounding import rounded
from nanoflux_export.graph import Function, MobileGraph, Segment, one_segment
from nanoflux_export.targets.litert import dense, quantised, target
from nanoflux_export.targets.litert.encoding import Encoded, Form, Layout, decode, encode
from nanoflux_export.targets.litert.flatbuffer import content, op_kind, unpacked
from nanoflux_export.targets.litert.schemes import check_scheme
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme

D, S, VOCABULARY = 64, 10, 20

# Weights alone are rounded, and float32 sums come in another order: measured 140 dB and more.
SAME_DB = 120.0
# What enters a layer is rounded to 8 bits as it runs: measured 47 to 62 dB against the same
# weights, where a layer taken for another leaves 10 dB.
INT_DB = 40.0


def weight_bytes(values: np.ndarray, scheme: str) -> tuple[np.ndarray, np.ndarray]:
    """The rule: what is stored of a weight (outputs, inputs), and what it stands for."""
    if scheme == "fp16":
        halves = values.astype(np.float16)
        return halves.view(np.uint8), halves.astype(np.float32)
    most = 127 if scheme == "int8" else 7
    rows = values.reshape(-1, 32) if scheme == "int4-b32" else values
    scales = np.maximum(np.abs(rows).max(1, keepdims=True), np.float32(1e-9)) / np.float32(most)
    if scheme == "int4-b32":
        scales = scales.astype(ml_dtypes.bfloat16).astype(np.float16).astype(np.float32)
        scales = np.maximum(scales, np.float32(2.0**-24))
    steps = np.clip(np.rint(rows / scales), -most, most).astype(np.int8)
    dense = (steps * scales).reshape(values.shape)
    if scheme == "int8":
        return steps.view(np.uint8), dense
    low, high = steps.reshape(-1, 2).view(np.uint8).T
    return (low & 15) | (high << 4), dense


class Network(nn.Module):
    """An embedding and 1x1 convolutions around a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up = nn.Embedding(VOCABULARY, D), nn.Conv2d(D, 2 * D, 1)
        self.down, self.last = nn.Conv2d(2 * D, D, 1), nn.Conv2d(D, 32, 1, bias=False)
        with torch.no_grad():
            self.up.weight[3] = 0.0  # a channel without a largest value
            self.up.weight[4, :32] = 0.0  # a block without one
            self.up.weight[5, :32] *= 1e-7  # a block below what half precision can hold

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        h = x + self.table(ids).transpose(1, 2).unsqueeze(2)
        return self.last(h + self.down(F.gelu(self.up(h), approximate="tanh")))


LAYERS = ("table", "up", "down", "last")
COMPONENT = Component(
    "denoiser",
    (
        TensorSpec("ids", ("batch", "tokens"), (1, S), "int32"),
        TensorSpec("x", ("batch", "channels", "one", "tokens"), (1, D, 1, S), "float32"),
    ),
    (TensorSpec("y", ("batch", "channels", "one", "tokens"), (1, 32, 1, S), "float32"),),
)
PLANS = {
    "mixed": ("int8", "fp16", "int4", "int8"),
    "blocks": ("int4-b32", "int4-b32", "int4", "fp16"),
    "int4": ("int4",) * 4,
    "fp16": ("fp16",) * 4,
}
SAVED = [("mixed", "gpu"), ("mixed", "cpu"), ("int4", "gpu"), ("int4", "cpu"), ("blocks", "cpu")]
SAVED += [("fp16", "gpu"), ("fp16", "cpu")]


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    ids = rng.integers(0, VOCABULARY, (1, S)).astype(np.int32)
    return {"ids": ids, "x": rng.standard_normal((1, D, 1, S)).astype(np.float32)}


def plan_of(name: str, profile: str) -> Plan:
    schemes = zip(LAYERS, PLANS[name], strict=True)
    layers = {f"denoiser/{layer}.weight": parse_scheme(scheme) for layer, scheme in schemes}
    return Plan(parse_scheme("fp16"), layers, profile)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(5)
    return Network()


@pytest.fixture(scope="module")
def files(network, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The network in every plan and profile; converted once."""
    folder, graph = tmp_path_factory.mktemp("schemes"), one_segment(COMPONENT, network)
    found = {}
    for name, profile in SAVED:
        found[name, profile] = folder / f"{name}-{profile}.tflite"
        target.write(graph, plan_of(name, profile), found[name, profile])
    return found


def stored_bytes(path: Path) -> dict[str, np.ndarray]:
    model, data = unpacked(path)
    (graph,) = model.subgraphs
    return {t.name.decode(): content(model.buffers[t.buffer], data) for t in graph.tensors}


@pytest.mark.parametrize(("name", "profile"), SAVED)
def test_every_layer_is_stored_by_the_rule_of_its_scheme(network, files, name, profile):
    held, read = stored_bytes(files[name, profile]), target.stored(files[name, profile])
    for layer, scheme in zip(LAYERS, PLANS[name], strict=True):
        weight = getattr(network, layer).weight.detach().numpy()
        values, dense_values = weight_bytes(weight.reshape(len(weight), -1), scheme)
        np.testing.assert_array_equal(held[f"denoiser/{layer}.weight"], values.ravel())
        found = read(f"denoiser/{layer}.weight")
        np.testing.assert_array_equal(found, dense_values.reshape(weight.shape))
    np.testing.assert_array_equal(read("denoiser/up.bias"), network.up.bias.detach().numpy())


@pytest.mark.parametrize(("name", "profile"), SAVED)
def test_the_eager_twin_holds_what_is_stored(network, files, name, profile):
    read = target.stored(files[name, profile])
    twin = rounded(network, plan_of(name, profile), "denoiser", half_constants=False)
    for key, value in twin.state_dict().items():
        np.testing.assert_array_equal(read(f"denoiser/{key}"), value.numpy())


@pytest.mark.parametrize(("name", "profile"), SAVED)
def test_it_computes_what_torch_computes_on_what_is_stored(network, files, name, profile):
    given, twin, read = inputs(), Network(), target.stored(files[name, profile])
    state = {key: torch.from_numpy(read(f"denoiser/{key}").copy()) for key in twin.state_dict()}
    twin.load_state_dict(state)
    with torch.no_grad():
        expected = twin(*(torch.from_numpy(value) for value in given.values())).numpy()
    made = target.load(files[name, profile], COMPONENT)(given)["y"]
    assert psnr_db(made, expected) >= (SAME_DB if name == "fp16" else INT_DB)


def test_profiles_are_the_same_network_in_other_ops(files):
    gpu, cpu = (files["fp16", profile] for profile in ("gpu", "cpu"))
    made = [target.load(path, COMPONENT)(inputs())["y"] for path in (gpu, cpu)]
    assert psnr_db(*made) >= SAME_DB
    kinds = [target.summarize(path).ops for path in (gpu, cpu)]
    assert (kinds[0]["CONV_2D"], "FULLY_CONNECTED" in kinds[0]) == (3, False)
    assert (kinds[1]["FULLY_CONNECTED"], "CONV_2D" in kinds[1]) == (3, False)
    weights = [stored_bytes(path)["denoiser/up.weight"] for path in (gpu, cpu)]
    np.testing.assert_array_equal(*weights)


def test_four_bits_take_half_the_bytes_of_eight_and_blocks_their_scales(files):
    storage = {key: target.summarize(path).storage for key, path in files.items()}
    assert storage["int4", "gpu"]["int4"] == 4
    assert storage["mixed", "cpu"] == {**storage["mixed", "cpu"], "int8": 2, "int4": 1}
    held = stored_bytes(files["blocks", "cpu"])
    assert held["denoiser/up.weight"].nbytes == 2 * D * D // 2
    assert held["denoiser/up.weight.scales"].nbytes == 2 * D * D // 32 * 2


def test_costs_count_the_scales_of_blocks(network, files):
    """int4-b32 table and up, int4 down, fp16 last; the converter gives each layer a bias."""
    blocks = target.cost(files["blocks", "cpu"], "denoiser").blocks
    counts = {name: getattr(network, name).weight.numel() for name in LAYERS}
    expected = counts["table"] // 2 + counts["table"] // 16
    expected += counts["up"] // 2 + counts["up"] // 16
    expected += counts["down"] // 2 + 4 * D + 2 * counts["last"]
    expected += 4 * (2 * D + D + 32)
    found = sum(block.weight_bytes for block in blocks)
    assert expected <= found <= expected + 32  # factors of a GELU


class Spatial(nn.Module):
    """Convolutions that a FULLY_CONNECTED could not stand for, and one that it can."""

    def __init__(self) -> None:
        super().__init__()
        self.three, self.strided = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1, stride=2)
        self.grouped, self.one = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.one(self.grouped(self.strided(self.three(x)))))


SPATIAL = Component(
    "decoder",
    (TensorSpec("z", ("batch", "channels", "y", "x"), (1, 8, 6, 8), "float32"),),
    (TensorSpec("image", ("batch", "channels", "y", "x"), (1, 6, 3, 4), "float32"),),
)


def test_only_layers_over_channels_become_fully_connected(tmp_path):
    torch.manual_seed(6)
    module, path = Spatial(), tmp_path / "x.tflite"
    target.write(one_segment(SPATIAL, module), Plan(parse_scheme("fp16"), {}, "cpu"), path)
    model, _ = unpacked(path)
    kinds = Counter(op_kind(model, op) for op in model.subgraphs[0].operators)
    assert (kinds["CONV_2D"], kinds["FULLY_CONNECTED"]) == (3, 1)
    z = np.random.default_rng(0).standard_normal((1, 8, 6, 8)).astype(np.float32)
    with torch.no_grad():
        for part in module.children():
            part.weight.copy_(part.weight.half().float())
        expected = module(torch.from_numpy(z)).numpy()
    assert psnr_db(target.load(path, SPATIAL)({"z": z})["image"], expected) >= SAME_DB


@pytest.mark.parametrize(
    ("layer", "scheme"),
    [
        (nn.Conv2d(32, 32, 3, padding=1, groups=32), "int4"),
        (nn.Conv2d(32, 32, 3, padding=1), "int4-b32"),
        (nn.Conv2d(32, 32, 1), "int4-b64"),
    ],
)
def test_a_layer_that_cannot_be_stored_so_is_refused(tmp_path, layer, scheme):
    ends = [
        (TensorSpec(name, ("batch", "channels", "y", "x"), (1, 32, 4, 4), "float32"),)
        for name in "xy"
    ]
    graph = one_segment(Component("denoiser", *ends), layer)
    with pytest.raises(InputError, match=f"a layer such as weight, of shape .* as {scheme}"):
        target.write(graph, Plan(parse_scheme(scheme), {}, "cpu"), tmp_path / "x.tflite")
    assert not list(tmp_path.iterdir())


class Half(nn.Module):
    """One of several segments of a kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def test_a_kind_is_converted_once_and_stored_once_in_each_combination(tmp_path, monkeypatch):
    seen: Counter[str] = Counter()

    def counted(module, name):
        original = getattr(module, name)

        def call(*given):
            seen[name] += 1
            return original(*given)

        monkeypatch.setattr(module, name, call)

    counted(dense, "convert")
    counted(quantised, "quantise")
    stream = [TensorSpec(f"x{i}", ("b", "c", "y", "x"), (1, 32, 1, 4), "float32") for i in range(4)]
    segments = tuple(
        Segment("half", f"halves.{i}", Half, (f"x{i}",), (f"x{i + 1}",)) for i in range(3)
    )
    wires = {f"x{i}": (1, 32, 1, 4) for i in (1, 2)}
    function = Function((stream[0],), (stream[3],), segments, wires)
    graph = MobileGraph("denoiser", {"main": function})
    layers = {"halves.1/first.weight": parse_scheme("int4")}
    target.write(graph, Plan(parse_scheme("int8"), layers), tmp_path / "a.tflite")
    assert seen == {"convert": 1, "quantise": 2}
    target.write(graph, Plan(parse_scheme("int8"), layers, "cpu"), tmp_path / "b.tflite")
    assert seen == {"convert": 1, "quantise": 4}
    model, _ = unpacked(tmp_path / "a.tflite")
    types = {t.name.decode(): t.type for t in model.subgraphs[0].tensors}
    first = {name: kind for name, kind in types.items() if name.endswith("first.weight")}
    assert len(first) == 3
    assert first["halves.0/first.weight"] == first["halves.2/first.weight"]
    assert first["halves.0/first.weight"] != first["halves.1/first.weight"]


@pytest.mark.parametrize("count", [1, 6, 7])
def test_four_bit_integers_of_any_count_come_back(count):
    form = Form("w", Layout((1, count), (0, 1)), (1, count), "INT4", 0, 1)
    values = torch.arange(count, dtype=torch.float32)[None] - 3.0
    values[0, 0] = -7.0
    found = encode(form, values)
    assert found.values.nbytes == form.bytes == (count + 1) // 2
    np.testing.assert_array_equal(decode(form, found), values.numpy())


def test_scales_of_blocks_beyond_half_precision_are_refused():
    form = Form("w", Layout((1, 32), (0, 1)), (1, 32), "INT4", block=32)
    with pytest.raises(InputError, match="a scale of w holds"):
        encode(form, torch.full((1, 32), 1e6))
    fits = encode(form, torch.full((1, 32), 7.0))
    np.testing.assert_array_equal(
        decode(form, Encoded(fits.values, np.ones(1, np.float32))), np.full((1, 32), 7.0)
    )


def test_an_unknown_profile_is_refused(network, tmp_path):
    with pytest.raises(InputError, match="no profile npu; accepted: gpu, cpu"):
        target.write(
            one_segment(COMPONENT, network),
            Plan(parse_scheme("fp16"), {}, "npu"),
            tmp_path / "x.tflite",
        )


@pytest.mark.parametrize(
    ("wish", "profile", "found", "why"),
    [
        ("fp16", "gpu", "fp16", ""),
        ("int8", "cpu", "int8", ""),
        ("int8-a8", "gpu", "int8-a8", ""),
        ("int4", "gpu", "int4", ""),
        ("int4-b32", "cpu", "int4-b32", ""),
        ("8-bit", "gpu", "int8", ""),
        ("4-bit", "cpu", "int4", ""),
        ("5-bit", "gpu", "int8", "integers of 4 and 8 bits"),
        ("2-bit", "gpu", "int4", "integers of 4 and 8 bits"),
        ("palette6", "gpu", "int8", "no palettes"),
        ("palette2-v2-scaled-lut8-weighted", "cpu", "int8", "no palettes"),
        ("palette4-g16", "gpu", "int8", "no palettes"),
        ("sparse50-palette4", "gpu", "int8", "no sparse weights; LiteRT has no palettes"),
        ("sparse50-fp16", "gpu", "fp16", "no sparse weights"),
        ("svd16-palette4", "gpu", "svd16-int8", "no palettes"),
        ("svd16-fp16", "gpu", "svd16-fp16", ""),
        ("int4-b32", "gpu", "int8", "abort the GPU delegate"),
        ("int4-b48", "cpu", "int4-b32", "blocks have 32"),
        ("int4-b16", "cpu", "int4-b32", "blocks have 32"),
        ("int8-b32", "cpu", "int8", "one scale per output channel"),
        ("int8-b32", "gpu", "int8", "one scale per output channel"),
        ("int4-a8", "gpu", "int8-a8", "meet 8-bit weights"),
        ("int4-b32-a8", "cpu", "int8-a8", "meet 8-bit weights"),
    ],
)
def test_a_wish_becomes_what_can_be_written_and_the_reason_is_told(wish, profile, found, why):
    scheme, reason = target.nearest(parse_scheme(wish), profile, "denoiser")
    assert str(scheme) == found
    assert bool(reason) == bool(why)
    assert why in reason
    check_scheme(scheme)


@pytest.mark.parametrize("wish", ["int8", "4-bit", "palette6-g16"])
def test_a_decoder_is_not_rounded_as_it_runs(wish):
    scheme, reason = target.nearest(parse_scheme(wish), "gpu", "decoder")
    assert (str(scheme), "slower than in float" in reason) == ("fp16", True)
    assert target.nearest(parse_scheme("int8-a8"), "gpu", "decoder") == (
        parse_scheme("int8-a8"),
        "",
    )
