"""Palettes in a saved package: the same weights as the eager twin holds, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coremltools")

from nanoflux_export.compression.rounding import rounded
from nanoflux_export.graph import one_segment
from nanoflux_export.targets.coreml import target
from nanoflux_export.targets.coreml.package import open_package
from nanoflux_export.targets.coreml.program import read_function
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, Scheme, TensorSpec, parse_scheme

# float32 on both sides, the same weights: only the order of summation differs.
SAME_WEIGHTS_DB = 110.0


class Mixed(nn.Module):
    """Every layer whose weight is compressed, each weight of a size of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(80, 32)
        self.embed = nn.Conv2d(3, 32, 1)
        self.conv = nn.Conv2d(32, 48, 3, padding=1)
        self.split = nn.Conv2d(48, 40, 3, padding=1, groups=2)
        self.grow = nn.ConvTranspose2d(40, 32, 2, 2)
        self.out = nn.Conv2d(32, 3, 5, padding=2)
        self.linear = nn.Linear(32, 64)
        self.register_buffer("table", torch.randn(1, 32, 8, 8))

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, 8, 8) floats and (1, 4) ids to (1, 3, 16, 16) and (1, 4, 64)."""
        text = self.words(tokens)
        x = self.embed(image) + self.table
        x = self.split(torch.relu(self.conv(x)))
        return self.out(torch.relu(self.grow(x))), self.linear(text)


COMPONENT = Component(
    "decoder",
    (
        TensorSpec("image", ("batch", "channels", "height", "width"), (1, 3, 8, 8), "float32"),
        TensorSpec("tokens", ("batch", "tokens"), (1, 4), "int32"),
    ),
    (
        TensorSpec("picture", ("batch", "channels", "height", "width"), (1, 3, 16, 16), "float32"),
        TensorSpec("states", ("batch", "tokens", "channels"), (1, 4, 64), "float32"),
    ),
)
PALETTES = ("palette4", "palette4-g16", "palette6-g8", "palette2-g1", "palette8", "palette1")


def _files(package: Path) -> dict[str, bytes]:
    found = sorted(path for path in package.rglob("*") if path.is_file())
    return {str(path.relative_to(package)): path.read_bytes() for path in found}


def _weight_bytes(package: Path) -> int:
    return sum(path.stat().st_size for path in package.rglob("weight.bin"))


@pytest.fixture(scope="module")
def module() -> Mixed:
    """The module that all tests of this file compress."""
    return Mixed()


@pytest.fixture(scope="module")
def packages(module: Mixed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """It, by the name of its scheme."""
    folder = tmp_path_factory.mktemp("schemes")
    graph = one_segment(COMPONENT, module)  # which keeps its template for all schemes
    paths = {name: folder / f"{name}.mlpackage" for name in ("fp16", *PALETTES)}
    for name, path in paths.items():
        target.write(graph, parse_scheme(name), path)
    return paths


@pytest.mark.parametrize("name", ["fp16", *PALETTES])
def test_stored_weights_are_the_twins_bit_for_bit(
    module: Mixed, packages: dict[str, Path], name: str
) -> None:
    twin = rounded(module, parse_scheme(name)).state_dict()
    stored = target.stored(packages[name])
    assert len(twin) == 14  # seven weights, six biases and the table
    for key, tensor in twin.items():
        found = stored(f"decoder/{key}")
        np.testing.assert_array_equal(found.reshape(tensor.shape), tensor.numpy())


@pytest.mark.parametrize("name", ["fp16", *PALETTES])
def test_no_weight_is_stored_in_full_precision(packages: dict[str, Path], name: str) -> None:
    literals = read_function(open_package(packages[name]), "main").literals.values()
    assert not any(item.type.dtype in ("fp32", "fp64") for item in literals if item.stored_bytes)


@pytest.mark.parametrize("name", ["palette4-g16", "palette6-g8"])
def test_the_saved_file_answers_like_the_twin(
    module: Mixed, packages: dict[str, Path], name: str
) -> None:
    generator = np.random.default_rng(0)
    inputs = {
        "image": generator.normal(size=(1, 3, 8, 8)).astype(np.float32),
        "tokens": generator.integers(0, 80, (1, 4)).astype(np.int32),
    }
    outputs = target.load(packages[name], COMPONENT)(inputs)
    with torch.no_grad():
        expected = rounded(module, parse_scheme(name))(*map(torch.from_numpy, inputs.values()))
    for array, tensor in zip(outputs.values(), expected, strict=True):
        assert psnr_db(array, tensor.numpy()) >= SAME_WEIGHTS_DB


def test_fewer_bits_make_smaller_files(packages: dict[str, Path]) -> None:
    sizes = [_weight_bytes(packages[name]) for name in ("palette1", "palette4", "palette8", "fp16")]
    assert sizes == sorted(sizes)
    assert sizes[1] < 0.4 * sizes[3]  # four bits for sixteen, tables and small tensors aside


def test_tables_small_and_uneven_weights_stay_dense(packages: dict[str, Path]) -> None:
    model = open_package(packages["palette4-g16"]).model
    operations = model.mlProgram.functions["main"].block_specializations["CoreML8"].operations
    palettized = {
        tuple(dimension.constant.size for dimension in op.outputs[0].type.tensorType.dimensions)
        for op in operations
        if op.type == "constexpr_lut_to_dense"
    }
    # Of a transposed convolution the second axis counts: 32 channels are two groups, 40 are not.
    assert palettized == {(80, 32), (48, 32, 3, 3), (40, 32, 2, 2), (64, 32)}


def test_same_module_same_bytes(module: Mixed, packages: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "again.mlpackage"
    target.write(one_segment(COMPONENT, module), parse_scheme("palette4-g16"), out)
    assert _files(out) == _files(packages["palette4-g16"])


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [(Scheme("int", 6), "int6 is not stored"), (Scheme("palette", 5), "palette5 is not stored")],
)
def test_refuses_schemes_core_ml_does_not_store(
    tmp_path: Path, scheme: Scheme, reason: str
) -> None:
    """Before any work: the module is not even built."""
    graph = one_segment(COMPONENT, nn.Identity())
    with pytest.raises(InputError, match=reason):
        target.write(graph, scheme, tmp_path / "out.mlpackage")
    assert list(tmp_path.iterdir()) == []
