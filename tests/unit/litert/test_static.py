"""Layers that compute on 8-bit activations, in ranges taken from samples.

References: torch in float32, torch's own ranges of what flows, and the memory of this process.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.compression.plan import Plan
from nanoflux_export.graph import MobileGraph, one_segment
from nanoflux_export.targets.litert import target
from nanoflux_export.targets.litert.dense import make_dense
from nanoflux_export.targets.litert.flatbuffer import TYPES, op_kind, unpacked
from nanoflux_export.targets.litert.quantised import make_static
from nanoflux_mobile.errors import NanofluxError
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme

STATIC, FP16 = parse_scheme("int8-a8"), parse_scheme("fp16")
AXES = ("batch", "channels", "y", "x")

# Every value is one of 256: 59 dB for one layer of a picture that fills its range, less for
# several. Measured 43 dB; ranges of another sample's size leave under 20 dB.
STATIC_DB = 38.0
# Ranges come from float32 sums in another order than torch's.
RANGE_RTOL = 1e-4


class Plain(nn.Module):
    """A decoder of convolutions and SiLU alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(F.silu(F.interpolate(self.first(z), scale_factor=2.0, mode="nearest")))


class Normed(nn.Module):
    """A decoder with a norm, which 8 bits would ruin."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 3, 1)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 16).reshape(1, 16, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(F.interpolate(z, scale_factor=2.0, mode="nearest"))
        h = h - h.mean(1, keepdim=True)
        return self.last(h * torch.rsqrt(h.square().mean(1, keepdim=True) + 1e-6) * self.gain)


COMPONENT = Component(
    "decoder",
    (TensorSpec("latents", AXES, (1, 4, 8, 8), "float32"),),
    (TensorSpec("image", AXES, (1, 3, 16, 16), "float32"),),
)
MODULES = {"plain": Plain, "normed": Normed}


def draws() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [size * rng.standard_normal((1, 4, 8, 8)).astype(np.float32) for size in (1.0, 0.2)]


def samples(function, segment) -> Iterator[tuple[np.ndarray, ...]]:
    assert [spec.name for spec in function.inputs] == ["latents"]
    assert segment.weights == "decoder"
    return ((z,) for z in draws())


@pytest.fixture(scope="module")
def graphs() -> Mapping[str, tuple[nn.Module, MobileGraph]]:
    """Both decoders, each converted once."""
    torch.manual_seed(3)
    modules = {name: make() for name, make in MODULES.items()}
    return {name: (module, one_segment(COMPONENT, module)) for name, module in modules.items()}


@pytest.fixture(scope="module", params=[(m, p) for m in MODULES for p in ("gpu", "cpu")])
def saved(request, graphs, tmp_path_factory: pytest.TempPathFactory):
    """The name of a decoder, itself, and its file of a profile."""
    name, profile = request.param
    (module, graph), path = graphs[name], tmp_path_factory.mktemp("static") / "decoder.tflite"
    target.write(graph, Plan(STATIC, {}, profile, samples=samples), path)
    return name, module, path


def test_it_computes_in_integers_what_torch_computes(saved):
    name, module, path = saved
    model, _ = unpacked(path)
    (graph,) = model.subgraphs
    layers = [op for op in graph.operators if op_kind(model, op) in ("CONV_2D", "FULLY_CONNECTED")]
    types = [[target_type(graph, at) for at in (*op.inputs, *op.outputs)] for op in layers]
    assert types == [["INT8", "INT8", "INT32", "INT8"]] * 2
    norms = [op for op in graph.operators if op_kind(model, op) in ("MEAN", "RSQRT")]
    assert {target_type(graph, op.outputs[0]) for op in norms} <= {"FLOAT32"}
    assert bool(norms) == (name == "normed")
    z = draws()[0]
    with torch.no_grad():
        expected = module(torch.from_numpy(z)).numpy()
    made = target.load(path, COMPONENT)({"latents": z})["image"]
    assert psnr_db(made, expected) >= STATIC_DB


def target_type(graph, at: int) -> str:
    return TYPES[graph.tensors[at].type]


def test_weights_and_biases_are_those_of_the_module(saved):
    _, module, path = saved
    read = target.stored(path)
    for name, parameter in module.named_parameters():
        value, found = parameter.detach().numpy(), read(f"decoder/{name}")
        steps = np.abs(value).reshape(len(value), -1).max(1) / 127
        if name == "gain":
            np.testing.assert_array_equal(found, value)
        elif name.endswith("weight"):
            wide = steps.reshape(-1, 1, 1, 1)
            np.testing.assert_allclose(found, np.rint(value / wide) * wide, rtol=1e-6)
        else:  # steps of what enters times those of the weight: far finer than the weight's
            np.testing.assert_allclose(found, value, atol=1e-3)


def test_what_enters_a_layer_lies_in_the_range_that_torch_sees(saved):
    _, module, path = saved
    seen: list[np.ndarray] = []
    module.last.register_forward_pre_hook(lambda _, given: seen.append(given[0].numpy()))
    with torch.no_grad():
        for z in draws():
            module(torch.from_numpy(z))
    least, most = min(x.min() for x in seen), max(x.max() for x in seen)
    model, _ = unpacked(path)
    (graph,) = model.subgraphs
    kinds = ("CONV_2D", "FULLY_CONNECTED")
    last = [op for op in graph.operators if op_kind(model, op) in kinds][-1]
    (scale,) = graph.tensors[last.inputs[0]].quantization.scale
    np.testing.assert_allclose(scale, (most - least) / 255, rtol=RANGE_RTOL)


@pytest.mark.parametrize("samples", [None, lambda function, segment: iter(())])
def test_no_samples_are_refused_by_name(graphs, tmp_path, samples):
    (_, graph), plan = graphs["plain"], Plan(STATIC, samples=samples)
    with pytest.raises(NanofluxError, match=r"decoder has layers stored as int8-a8.*no samples"):
        target.write(graph, plan, tmp_path / "x.tflite")
    assert not list(tmp_path.iterdir())


def test_single_layers_compute_on_8_bit_activations_beside_others(graphs, tmp_path):
    (module, made_of), path = graphs["plain"], tmp_path / "x.tflite"
    target.write(made_of, Plan(FP16, {"decoder/first.weight": STATIC}, samples=samples), path)
    model, _ = unpacked(path)
    (graph,) = model.subgraphs
    layers = [op for op in graph.operators if op_kind(model, op) == "CONV_2D"]
    assert [target_type(graph, op.inputs[0]) for op in layers] == ["INT8", "FLOAT32"]
    with torch.no_grad():
        expected = module(torch.from_numpy(draws()[0])).numpy()
    made = target.load(path, COMPONENT)({"latents": draws()[0]})["image"]
    assert psnr_db(made, expected) >= STATIC_DB


def test_a_table_of_embeddings_has_no_activations(tmp_path):
    ids = TensorSpec("ids", ("batch", "tokens"), (1, 4), "int32")
    rows = TensorSpec("rows", ("batch", "tokens", "channels"), (1, 4, 8), "float32")
    graph = one_segment(Component("text_encoder", (ids,), (rows,)), nn.Embedding(6, 8))
    target.write(graph, STATIC, tmp_path / "x.tflite")  # asks for no samples
    assert target.summarize(tmp_path / "x.tflite").storage["int8"] == 1


class Deep(nn.Module):
    """Many large tensors, each needed for a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(LAYERS)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


LAYERS, SIDE = 12, 512
TENSOR_BYTES = 4 * 8 * SIDE * SIDE


def test_ranges_are_taken_without_holding_all_tensors_at_once():
    """Each of 24 tensors takes 8 MiB; a plain run needs a few at a time."""
    edge = (("float32", (1, 8, SIDE, SIDE)),)
    module = Deep()
    dense = make_dense(module, edge, edge)
    x = np.random.default_rng(0).standard_normal((1, 8, SIDE, SIDE)).astype(np.float32)
    schemes = dict.fromkeys(dense.layers, STATIC)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _kilobytes("VmRSS")
    with warnings.catch_warnings():
        # The quantiser's interpreters warn when they are to hold all tensors.
        warnings.simplefilter("error", UserWarning)
        make_static(dense, schemes, dict(module.named_parameters()), "deep", [(x,)])
    grown = (_kilobytes("VmHWM") - before) * 1024
    assert grown < LAYERS * TENSOR_BYTES  # half of them


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])
