"""Stored weights: the blob file and bit packing, every compression, and damaged packages."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ct = pytest.importorskip("coremltools")

import coremltools.optimize.coreml as cto  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402
from coremltools.libmilstoragepython import _BlobStorageReader, _BlobStorageWriter  # noqa: E402

from nanoflux_export.targets.coreml.executor import load  # noqa: E402
from nanoflux_export.targets.coreml.package import open_package  # noqa: E402
from nanoflux_export.targets.coreml.program import op_kinds  # noqa: E402
from nanoflux_export.targets.coreml.weights import find_entry, map_weights, unpack  # noqa: E402
from nanoflux_mobile.errors import InputError, NanofluxError  # noqa: E402

# The same weights through the same torch kernels; only the order of float32 sums may differ.
SAME_WEIGHTS = 1e-5
X_NCHW = np.random.default_rng(0).normal(size=(1, 16, 6, 5)).astype(np.float32)
LAYERS = {"op_0": "0", "op_2": "2"}  # the converter's names of the two convolutions

Compress = Callable[[Any], Any]


def _lut_config(mode: str = "uniform", **config: Any) -> Any:
    return cto.OpPalettizerConfig(mode=mode, weight_threshold=0, **config)


def _palettize(mode: str = "uniform", **config: Any) -> Compress:
    op = _lut_config(mode, **config)
    return lambda model: cto.palettize_weights(model, cto.OptimizationConfig(op))


def _int_config(**config: Any) -> Any:
    return cto.OpLinearQuantizerConfig(weight_threshold=0, **config)


def _quantize(**config: Any) -> Compress:
    op = _int_config(**config)
    return lambda model: cto.linear_quantize_weights(model, cto.OptimizationConfig(op))


def _prune(model: Any) -> Any:
    op = cto.OpThresholdPrunerConfig(threshold=0.05, weight_threshold=0)
    return cto.prune_weights(model, cto.OptimizationConfig(op))


def _thinned(function: Any, config: Any) -> Compress:
    """`function` on what is left of every weight when the smaller half of it is zero."""
    half = cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=1000)
    config.weight_threshold = 1000  # biases are smaller and not thinned
    thin = cto.OptimizationConfig(half)
    both = cto.OptimizationConfig(config)
    return lambda model: function(cto.prune_weights(model, thin), both, joint_compression=True)


LUT, BLOCKS = "constexpr_lut_to_dense", "constexpr_blockwise_shift_scale"
AFFINE, SPARSE = "constexpr_affine_dequantize", "constexpr_sparse_to_dense"
SPARSE_LUT = "constexpr_lut_to_sparse"
SPARSE_BLOCKS = "constexpr_sparse_blockwise_shift_scale"
GROUPS = {"granularity": "per_grouped_channel", "group_size": 16}
BLOCK_8 = {"granularity": "per_block", "block_size": 8}
SCHEMES: dict[str, tuple[str, Compress, set[str]]] = {
    **{f"lut{n}/iOS17": ("iOS17", _palettize(nbits=n), {LUT}) for n in (1, 2, 4, 6, 8)},
    **{f"lut{n}/iOS18": ("iOS18", _palettize(nbits=n), {LUT}) for n in (1, 2, 3, 4, 6, 8)},
    "kmeans lut4/iOS17": ("iOS17", _palettize("kmeans", nbits=4), {LUT}),
    **{f"lut{n} groups": ("iOS18", _palettize(nbits=n, **GROUPS), {LUT}) for n in (2, 3, 4, 6)},
    "lut4 input groups": ("iOS18", _palettize(nbits=4, channel_axis=1, **GROUPS), {LUT}),
    "lut4 scaled": ("iOS18", _palettize(nbits=4, enable_per_channel_scale=True), {LUT, BLOCKS}),
    "lut4 vectors": ("iOS18", _palettize("kmeans", nbits=4, cluster_dim=2), {LUT}),
    "int8/iOS17": ("iOS17", _quantize(mode="linear_symmetric"), {AFFINE}),
    "uint8/iOS17": ("iOS17", _quantize(mode="linear", dtype=np.uint8), {AFFINE}),
    "int8 tensor/iOS17": ("iOS17", _quantize(mode="linear", granularity="per_tensor"), {AFFINE}),
    "int8/iOS18": ("iOS18", _quantize(mode="linear_symmetric"), {BLOCKS}),
    "int4 blocks": ("iOS18", _quantize(mode="linear_symmetric", dtype="int4", **BLOCK_8), {BLOCKS}),
    "uint4 blocks": ("iOS18", _quantize(mode="linear", dtype="uint4", **BLOCK_8), {BLOCKS}),
    "sparse lut4": (
        "iOS18",
        _thinned(cto.palettize_weights, _lut_config(nbits=4, **GROUPS)),
        {SPARSE_LUT, SPARSE},
    ),
    "sparse int8": (
        "iOS18",
        _thinned(cto.linear_quantize_weights, _int_config(mode="linear_symmetric")),
        {SPARSE_BLOCKS, SPARSE},
    ),
    "sparse uint4 blocks": (
        "iOS18",
        _thinned(
            cto.linear_quantize_weights,
            _int_config(mode="linear", dtype="uint4", **BLOCK_8),
        ),
        {SPARSE_BLOCKS, SPARSE},
    ),
    "sparse/iOS17": ("iOS17", _prune, {SPARSE}),
    "sparse/iOS18": ("iOS18", _prune, {SPARSE}),
}


def _network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(16, 64, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(64, 32, 1)
    ).eval()


@pytest.fixture(scope="module")
def dense_models() -> dict[str, Any]:
    traced = torch.jit.trace(_network(), torch.from_numpy(X_NCHW))
    return {
        target: ct.convert(
            traced,
            inputs=[ct.TensorType("x", X_NCHW.shape)],
            outputs=[ct.TensorType("y", dtype=np.float32)],
            minimum_deployment_target=getattr(ct.target, target),
        )
        for target in ("iOS17", "iOS18")
    }


@pytest.fixture(scope="module")
def palettized(dense_models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "palettized.mlpackage"
    _palettize(nbits=4, **GROUPS)(dense_models["iOS18"]).save(str(path))
    return path


def _torch_with_weights_of(model: Any) -> torch.nn.Module:
    """The network with the weights that coremltools itself decompresses."""
    stored = cto.get_weights_metadata(cto.decompress_weights(model), weight_threshold=0)
    state = {}
    for name, weight in stored.items():
        layer = LAYERS.get(name.split("_weight")[0].split("_bias")[0])
        if layer and ("_weight" in name or "_bias" in name):
            part = "weight" if "_weight" in name else "bias"
            state[f"{layer}.{part}"] = torch.from_numpy(weight.val.astype(np.float32))
    network = _network()
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compressed_weights_run_as_coremltools_decompresses_them(
    scheme: str, dense_models: dict[str, Any], tmp_path: Path
) -> None:
    target, compress, ops = SCHEMES[scheme]
    model = compress(dense_models[target])
    path = tmp_path / "compressed.mlpackage"
    model.save(str(path))
    with torch.inference_mode():
        expected = _torch_with_weights_of(model)(torch.from_numpy(X_NCHW)).numpy()
    result = load(path)(x=X_NCHW)["y"]
    assert {op for op in op_kinds(open_package(path)) if op.startswith("constexpr")} == ops
    assert np.abs(result - expected).max() <= SAME_WEIGHTS * np.abs(expected).max()


def test_fp16_weights_can_be_declared_fp32(tmp_path: Path) -> None:
    weight = np.random.default_rng(1).normal(size=(12, 16)).astype(np.float16)

    @mb.program(input_specs=[mb.TensorSpec((3, 16), types.fp32)], opset_version=ct.target.iOS17)
    def program(x: Any) -> Any:
        wide = mb.constexpr_cast(source_val=weight, output_dtype="fp32")
        return mb.linear(x=x, weight=wide, name="y")

    path = tmp_path / "cast.mlpackage"
    exact = {
        "compute_precision": ct.precision.FLOAT32,
        "minimum_deployment_target": ct.target.iOS17,
    }
    ct.convert(program, **exact).save(str(path))
    x = np.random.default_rng(2).normal(size=(3, 16)).astype(np.float32)
    expected = x @ weight.astype(np.float32).T
    assert "constexpr_cast" in op_kinds(open_package(path))
    assert np.abs(load(path)(x=x)["y"] - expected).max() <= SAME_WEIGHTS * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["uint1", "uint2", "uint3", "uint4", "uint6", "int4", "uint8"])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_packed_integers_read_as_coremltools_reads_them(
    dtype: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bits, signed = int(dtype.lstrip("uint")), dtype[0] == "i"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    drawn = data.draw(st.lists(st.integers(low, high), min_size=1, max_size=70))
    values = np.array(drawn, np.int8 if signed else np.uint8)
    file = tmp_path_factory.mktemp("blob") / "weight.bin"
    writer = _BlobStorageWriter(str(file))
    offset = getattr(writer, f"write_{dtype}_data")(values)
    del writer
    by_apple = getattr(_BlobStorageReader(str(file)), f"read_{dtype}_data")(offset)
    packed = find_entry(map_weights(file), offset, dtype, values.shape)
    assert np.array_equal(unpack(packed, dtype, values.shape), by_apple)
    assert np.array_equal(by_apple, values)


def _damage(package: Path, into: Path, draw: random.Random) -> None:
    """A copy of `package` with one file cut short, missing, or with a few bytes changed."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(package, into)
    file = draw.choice(sorted(path for path in into.rglob("*") if path.is_file()))
    content = bytearray(file.read_bytes())
    kind = draw.choice(("cut", "missing", "bytes", "bytes", "bytes"))
    if kind == "missing":
        file.unlink()
        return
    if kind == "cut":
        del content[draw.randrange(len(content)) :]
    else:
        for _ in range(draw.choice((1, 1, 4))):
            content[draw.randrange(len(content))] = draw.randrange(256)
    file.write_bytes(content)


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_damaged_packages_raise_only_our_errors(
    palettized: Path, tmp_path: Path, seed: int
) -> None:
    damaged = tmp_path / "damaged.mlpackage"
    _damage(palettized, damaged, random.Random(seed))
    with suppress(NanofluxError):  # or a legal package, whose weights are other numbers
        outputs = load(damaged)(x=X_NCHW)
        assert {name: y.shape for name, y in outputs.items()} == {"y": (1, 32, 6, 5)}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("Manifest.json", None, "is not a Core ML package: it has no Manifest.json"),
        ("Manifest.json", b"{", "cannot be read as a Core ML package"),
        ("Data/com.apple.CoreML/model.mlmodel", None, "lacks the file com.apple.CoreML/model"),
        ("Data/com.apple.CoreML/model.mlmodel", b"\xff", "cannot be read as a Core ML package"),
        ("Data/com.apple.CoreML/model.mlmodel", b"", "holds no model, not an ML Program"),
        ("Data/com.apple.CoreML/weights/weight.bin", None, "lacks the file weights/weight.bin"),
        ("Data/com.apple.CoreML/weights/weight.bin", b"\0" * 99, "the weight file"),
    ],
)
def test_each_damage_is_named(
    palettized: Path, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    damaged = tmp_path / "damaged.mlpackage"
    shutil.copytree(palettized, damaged)
    (damaged / file).unlink()
    if content is not None:
        (damaged / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(damaged)


def test_a_manifest_cannot_point_outside_the_package(palettized: Path, tmp_path: Path) -> None:
    package = tmp_path / "escaping.mlpackage"
    shutil.copytree(palettized, package)
    (tmp_path / "model.mlmodel").write_bytes(
        (package / "Data/com.apple.CoreML/model.mlmodel").read_bytes()
    )
    manifest = package / "Manifest.json"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(
        text.replace("com.apple.CoreML/model.mlmodel", "../../model.mlmodel"), encoding="utf-8"
    )
    with pytest.raises(InputError, match="outside"):
        load(package)
