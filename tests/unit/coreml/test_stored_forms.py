"""Every form of a stored weight: the same numbers to coremltools, to our reader and to the twin."""

from __future__ import annotations

import inspect
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coremltools")

import coremltools as ct
from coremltools.converters.mil.frontend.milproto import load as milproto

from nanoflux_export.compression.coding import code, coded_bytes
from nanoflux_export.compression.plan import Plan
from nanoflux_export.compression.rounding import output_axes, rounded
from nanoflux_export.graph import one_segment
from nanoflux_export.targets.coreml import executor, target
from nanoflux_export.targets.coreml.package import open_package
from nanoflux_export.targets.coreml.program import read_function
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, Scheme, TensorSpec, parse_scheme

# float32 on both sides, the same weights: only the order of summation differs.
SAME_WEIGHTS_DB = 110.0

PALETTES, SCALE = "lut_to_dense", "blockwise_shift_scale"
SPARSE, SPARSE_SCALE = "lut_to_sparse + sparse_to_dense", "sparse_blockwise_shift_scale"
FORMS: Mapping[str, str] = {
    "palette3-g16": PALETTES,
    "palette4-v2": PALETTES,
    "palette4-g16-v4": PALETTES,
    "palette6-lut8": f"{SCALE} + {PALETTES}",
    "palette4-g16-scaled": f"{PALETTES} + {SCALE}",
    "palette2-v2-scaled-lut8": f"{SCALE} + {PALETTES} + {SCALE}",
    "int8": SCALE,
    "int8-b16": SCALE,
    "int4": SCALE,
    "int4-b16": SCALE,
    "sparse50-fp16": "sparse_to_dense",
    "sparse50-palette4-g16": SPARSE,
    "sparse40-palette2-g16-scaled-lut8": f"{SCALE} + {SPARSE} + {SCALE}",
    "sparse50-palette4-g16-v2": SPARSE,
    "sparse30-int8": f"{SPARSE_SCALE} + sparse_to_dense",
    "sparse60-int4-b16": f"{SPARSE_SCALE} + sparse_to_dense",
}


class Layers(nn.Module):
    """Every kind of layer whose weight is compressed, each weight of a size of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(80, 32)
        self.conv = nn.Conv2d(32, 48, (1, 3), padding=(0, 1))
        self.split = nn.Conv2d(48, 48, (1, 3), padding=(0, 1), groups=3)
        self.grow = nn.ConvTranspose2d(48, 32, 2, 2)
        self.linear = nn.Linear(32, 96)

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 32, 8, 8) floats and (1, 4) ids to (1, 32, 16, 16) and (1, 4, 96)."""
        x = self.split(torch.relu(self.conv(image)))
        return self.grow(torch.relu(x)), self.linear(self.words(tokens))


COMPONENT = Component(
    "decoder",
    (
        TensorSpec("image", ("batch", "channels", "height", "width"), (1, 32, 8, 8), "float32"),
        TensorSpec("tokens", ("batch", "tokens"), (1, 4), "int32"),
    ),
    (
        TensorSpec("picture", ("batch", "channels", "height", "width"), (1, 32, 16, 16), "float32"),
        TensorSpec("states", ("batch", "tokens", "channels"), (1, 4, 96), "float32"),
    ),
)
WEIGHTS = ("words", "conv", "split", "grow", "linear")
MIXED = Plan(
    parse_scheme("palette4-g16"),
    {
        "decoder/conv.weight": parse_scheme("sparse50-int8"),
        "decoder/linear.weight": parse_scheme("fp16"),
        "decoder/words.weight": parse_scheme("palette2-v2-weighted"),
    },
    importance={"decoder/words.weight": np.linspace(0.1, 2, 32)},
)
PLANS = {name: Plan(parse_scheme(name)) for name in FORMS} | {"mixed": MIXED}


def inputs() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "image": draw.normal(size=(1, 32, 8, 8)).astype(np.float32),
        "tokens": draw.integers(0, 80, (1, 4)).astype(np.int32),
    }


@pytest.fixture(scope="module")
def module() -> Layers:
    """The module that all tests of this file compress; one channel is all zeros, one is large."""
    layers = Layers()
    with torch.no_grad():
        layers.conv.weight[3] = 0
        layers.conv.weight[5] *= 50
    return layers


@pytest.fixture(scope="module")
def twins(module: Layers) -> dict[str, nn.Module]:
    """Its eager twins, by the name of the scheme."""
    return {name: rounded(module, plan, "decoder") for name, plan in PLANS.items()}


@pytest.fixture(scope="module")
def packages(module: Layers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """It, by the name of its scheme."""
    folder = tmp_path_factory.mktemp("forms")
    graph = one_segment(COMPONENT, module)  # which keeps its template for all schemes
    paths = {name: folder / f"{name}.mlpackage" for name in PLANS}
    for name, path in paths.items():
        target.write(graph, PLANS[name], path)
    return paths


def program_of(path: Path) -> Any:
    """A package as coremltools' own loader builds it anew, which checks every op of it."""
    model = ct.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    return milproto.load(spec, spec.specificationVersion, model.weights_dir)


def decompressed(value: Any) -> Any:
    """What coremltools' implementation of the ops behind a constant makes of it."""
    if value.op.op_type == "const":
        return value.val
    decompress = type(value.op).decompress
    given = {name: value.op.inputs.get(name) for name in inspect.signature(decompress).parameters}
    made = decompress(**{name: each and decompressed(each) for name, each in given.items()})
    return made[value.op.outputs.index(value)] if isinstance(made, tuple) else made


@pytest.mark.parametrize("name", PLANS)
def test_coremltools_decodes_every_weight_as_we_and_the_twin_do(
    twins: dict[str, nn.Module], packages: dict[str, Path], name: str
) -> None:
    values = {v.name: v for op in program_of(packages[name])["main"].operations for v in op.outputs}
    stored, twin = target.stored(packages[name]), twins[name]
    for layer in WEIGHTS:
        ours = stored(f"decoder/{layer}.weight")
        theirs = decompressed(values[f"decoder__{layer}_weight"])
        assert theirs.dtype == np.float16
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(ours, twin.get_parameter(f"{layer}.weight").detach().numpy())


@pytest.mark.parametrize("name", PLANS)
def test_the_saved_file_answers_like_the_twin(
    twins: dict[str, nn.Module], packages: dict[str, Path], name: str
) -> None:
    outputs = target.load(packages[name], COMPONENT)(inputs())
    with torch.no_grad():
        expected = twins[name](*map(torch.from_numpy, inputs().values()))
    for array, tensor in zip(outputs.values(), expected, strict=True):
        assert psnr_db(array, tensor.numpy()) >= SAME_WEIGHTS_DB


@pytest.mark.parametrize("name", PLANS)
def test_a_file_takes_what_its_codes_take(
    module: Layers, packages: dict[str, Path], name: str
) -> None:
    """Nothing is stored twice, and no dense copy stays behind."""
    plan, axes, total = PLANS[name], output_axes(module), 0
    for key, tensor in module.named_parameters():
        layer, axis = f"decoder/{key}", axes.get(id(tensor))
        scheme, dense = plan.of(layer), 2 * tensor.numel()
        if axis is None or scheme == parse_scheme("fp16"):
            total += dense
            continue
        coded = code(tensor.detach().numpy(), axis, scheme, plan.importance.get(layer))
        total += dense if coded is None else coded_bytes(coded)
    (file,) = packages[name].rglob("weight.bin")
    # The room of 4 KiB is for records of 64 bytes and lines of 64 that are not full.
    assert abs(file.stat().st_size - total) <= 0.05 * total + 4096
    summary = target.summarize(packages[name])
    assert file.stat().st_size < summary.bytes <= file.stat().st_size + 50_000


@pytest.mark.parametrize("name", FORMS)
def test_a_summary_names_the_form(packages: dict[str, Path], name: str) -> None:
    assert target.summarize(packages[name]).storage == {FORMS[name]: 5, "dense": 4}


def test_a_summary_counts_every_form_of_a_plan(packages: dict[str, Path]) -> None:
    ways = {PALETTES: 3, f"{SPARSE_SCALE} + sparse_to_dense": 1, "dense": 4 + 1}
    assert target.summarize(packages["mixed"]).storage == ways


@pytest.mark.parametrize("name", PLANS)
def test_cost_counts_the_bytes_of_every_weight_once(packages: dict[str, Path], name: str) -> None:
    literals = read_function(open_package(packages[name]), "main").literals
    weights = [literals[f"decoder__{layer}_weight"] for layer in WEIGHTS]
    biases = [literals[f"decoder__{layer}_bias"] for layer in WEIGHTS[1:]]
    blocks = target.cost(packages[name], "decoder").blocks
    assert [block.block for block in blocks] == ["conv", "split", "grow", "words", "linear"]
    assert sum(b.weight_bytes for b in blocks) == sum(x.stored_bytes for x in weights + biases)
    (file,) = packages[name].rglob("weight.bin")
    (tensors,) = struct.unpack("<I", file.read_bytes()[:4])
    # Each has a record of 64 bytes and begins a line of 64.
    assert 0 < file.stat().st_size - sum(b.weight_bytes for b in blocks) <= 64 + 128 * tensors


@pytest.mark.parametrize("name", ["palette2-v2-scaled-lut8", "sparse60-int4-b16", "mixed"])
def test_weights_decoded_anew_for_each_op_are_the_same(
    packages: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a package whose weights do not fit in memory all at once."""
    kept = executor.load(packages[name])(**inputs())
    monkeypatch.setattr(executor, "_KEPT_BYTES", 0)
    monkeypatch.setattr(executor, "_SMALL_BYTES", 0)
    streamed = executor.load(packages[name])(**inputs())
    for key, array in kept.items():
        np.testing.assert_array_equal(streamed[key], array)


WISHES = {
    "fp16": ("fp16", ""),
    "palette5": ("palette6", "palette indices of 1, 2, 3, 4, 6, 8 bits"),
    "palette7-g16-lut8": ("palette8-g16-lut8", "palette indices"),
    "palette4-g2-v4": ("palette4-g2", "vectors of 4 do not fill groups of 2 channels"),
    "palette5-g2-v4": ("palette6-g2", "bits; vectors of 4 do not fill"),
    "palette4-g16-v8-scaled": ("palette4-g16-v8-scaled", ""),
    "svd16-palette4-g16": ("svd16-palette4-g16", ""),
    "svd16-palette5": ("svd16-palette6", "palette indices"),
    "int4": ("int4", ""),
    "int4-b32-a8": ("int4-b32-a8", ""),
    "1-bit": ("palette1-g16", ""),
    "5-bit": ("palette6-g16", ""),
    "7-bit": ("palette8", ""),
    **{name: (name, "") for name in FORMS},
}


@pytest.mark.parametrize("wish", WISHES)
def test_nearest_says_how_a_wish_is_stored_and_why(wish: str) -> None:
    best, reason = target.nearest(parse_scheme(wish), "ane", "denoiser")
    assert str(best) == WISHES[wish][0]
    assert WISHES[wish][1] in reason
    assert bool(reason) == bool(WISHES[wish][1])
    assert target.nearest(best, "ane", "denoiser") == (best, "")
    assert best.bits_per_weight >= parse_scheme(wish).bits_per_weight


def test_nearest_of_integers_that_have_no_type() -> None:
    best, reason = target.nearest(Scheme("int", 6, 32), "ane", "denoiser")
    assert (best, reason) == (Scheme("int", 8, 32), "Core ML has integers of 4, 8 bits")


@pytest.mark.parametrize("wish", ["palette5", "4-bit", "palette4-g2-v4"])
def test_refuses_what_nearest_would_change(tmp_path: Path, wish: str) -> None:
    """Before any work: the module is not even built."""
    graph = one_segment(COMPONENT, nn.Identity())
    plan = Plan(parse_scheme("fp16"), {"decoder/conv.weight": parse_scheme(wish)})
    with pytest.raises(InputError, match=f"^{wish} is not stored in Core ML packages.*; use "):
        target.write(graph, plan, tmp_path / "out.mlpackage")
    assert list(tmp_path.iterdir()) == []
