"""A small BC1S transformer to an .mlpackage: its interface, its weights, its answers, its bytes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("coremltools")

import coremltools as ct

from nanoflux_export.compression.rounding import rounded
from nanoflux_export.graph import MobileGraph, one_segment
from nanoflux_export.targets.coreml import target
from nanoflux_export.targets.coreml.package import open_package
from nanoflux_mobile.errors import InputError, NanofluxError
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme

FP16 = parse_scheme("fp16")
# The executor and torch compute in float32 on the same weights; they differ in order of summation
# and in the scalars of the program (an epsilon, a scale), which are stored in half precision.
SAME_WEIGHTS_DB = 95.0
# Every result rounded to 11 bits, over some twenty ops.
HALF_PRECISION_DB = 60.0


def _normed(x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(1, keepdim=True) + 1e-6)


class Block(nn.Module):
    """Attention and a feed-forward over an image and a text stream; (1, channels, 1, tokens)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(20, 16)
        self.embed = nn.Conv2d(4, 16, 1)
        self.qkv = nn.Conv2d(16, 48, 1)
        self.proj = nn.Conv2d(16, 16, 1)
        self.up = nn.Conv2d(16, 64, 1)
        self.down = nn.Conv2d(64, 16, 1)
        self.out = nn.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.embed.bias[0] = 1e-9
            self.embed.weight[0, 0] = -1e-8

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 4, 1, 32) floats and (1, 8) ids to (1, 4, 1, 32) and the text stream (1, 16, 8)."""
        text = self.words(tokens).transpose(1, 2)
        x = torch.cat((self.embed(image), text[:, :, None]), 3)
        q, k, v = self.qkv(_normed(x)).reshape(1, 12, 4, 40).split(4, 1)
        weights = torch.softmax(q.transpose(2, 3) @ k * 0.5, -1)
        mixed = (v @ weights.transpose(2, 3)).reshape(1, 16, 1, 40)
        x = x + 0.1 * self.proj(mixed)  # a constant that coremltools would fold into the weight
        x = x + self.down(F.gelu(self.up(_normed(x)), approximate="tanh"))
        return self.out(x[..., :32]), x[:, :, 0, 32:]


COMPONENT = Component(
    "denoiser",
    (
        TensorSpec("image", ("batch", "channels", "one", "tokens"), (1, 4, 1, 32), "float32"),
        TensorSpec("tokens", ("batch", "tokens"), (1, 8), "int32"),
    ),
    (
        TensorSpec("velocity", ("batch", "channels", "one", "tokens"), (1, 4, 1, 32), "float32"),
        TensorSpec("text", ("batch", "channels", "tokens"), (1, 16, 8), "float16"),
    ),
)


def _inputs() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "image": generator.normal(size=(1, 4, 1, 32)).astype(np.float32),
        "tokens": generator.integers(0, 20, (1, 8)).astype(np.int32),
    }


def _files(package: Path) -> dict[str, bytes]:
    found = sorted(path for path in package.rglob("*") if path.is_file())
    return {str(path.relative_to(package)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def module() -> Block:
    """The module that all tests of this file write."""
    return Block()


@pytest.fixture(scope="module")
def graph(module: Block) -> MobileGraph:
    """It as a graph of one segment, which keeps its template from the first time on."""
    return one_segment(COMPONENT, module)


@pytest.fixture(scope="module")
def package(graph: MobileGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, as an .mlpackage."""
    out = tmp_path_factory.mktemp("write") / "denoiser.mlpackage"
    target.write(graph, FP16, out)
    return out


def test_interface_is_the_components(package: Path) -> None:
    from coremltools.proto import FeatureTypes_pb2

    described = open_package(package).model.description
    kinds = FeatureTypes_pb2.ArrayFeatureType.ArrayDataType
    codes = {name.lower(): code for name, code in kinds.items()}
    for features, specs in (
        (described.input, COMPONENT.inputs),
        (described.output, COMPONENT.outputs),
    ):
        found = [
            (item.name, tuple(item.type.multiArrayType.shape), item.type.multiArrayType.dataType)
            for item in features
        ]
        assert found == [(spec.name, spec.shape, codes[spec.dtype]) for spec in specs]


def test_needs_ios_18(package: Path) -> None:
    assert open_package(package).model.specificationVersion == ct.target.iOS18


@pytest.mark.parametrize(
    ("precision", "floor"), [("fp32", SAME_WEIGHTS_DB), ("fp16", HALF_PRECISION_DB)]
)
def test_the_saved_file_answers_like_torch(
    module: Block, package: Path, precision: str, floor: float
) -> None:
    inputs = _inputs()
    outputs = target.load(package, COMPONENT, precision=precision)(inputs)
    twin = rounded(module, parse_scheme("fp16"))
    with torch.no_grad():
        expected = twin(*(torch.from_numpy(array) for array in inputs.values()))
    assert list(outputs) == [spec.name for spec in COMPONENT.outputs]
    for array, tensor in zip(outputs.values(), expected, strict=True):
        assert psnr_db(array, tensor.numpy()) >= floor


def test_the_file_holds_the_weights_rounded_to_half_and_nothing_else_done(
    module: Block, package: Path
) -> None:
    stored = target.stored(package)
    for name, tensor in module.state_dict().items():
        found = stored(f"denoiser/{name}")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found.reshape(tensor.shape), tensor.half().float().numpy())
    assert stored("denoiser/embed.bias")[0] == 0  # 1e-9 is lifted to 6e-8 by coremltools


def test_a_weight_that_is_not_in_the_file_is_a_key_error(package: Path) -> None:
    with pytest.raises(KeyError, match="other"):
        target.stored(package)("denoiser/other.weight")


def test_same_module_same_bytes_nothing_printed_and_every_segment_told(
    module: Block, package: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again, told = tmp_path / "again.mlpackage", []
    graph = one_segment(COMPONENT, module)
    target.write(graph, FP16, again, lambda done, of: told.append((done, of)))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert told == [(1, 1)]
    assert _files(again) == _files(package)


@pytest.mark.usefixtures("package")
def test_the_module_keeps_its_weights(module: Block) -> None:
    for name, tensor in Block().state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (1e5, r"denoiser/up\.weight holds 100000, but half precision ends at 65504"),
        (np.nan, r"denoiser/up\.weight holds 1 values that are NaN or infinite"),
        (-np.inf, r"denoiser/up\.weight holds 1 values that are NaN or infinite"),
    ],
)
@pytest.mark.parametrize("scheme", ["fp16", "palette4"])
def test_refuses_weights_beyond_half_precision(
    graph: MobileGraph, tmp_path: Path, value: float, reason: str, scheme: str
) -> None:
    module = Block()
    with torch.no_grad():
        module.up.weight[0, 0] = value
    damaged = replace(one_segment(COMPONENT, module), forms=graph.forms)
    with pytest.raises(InputError, match=reason):
        target.write(damaged, parse_scheme(scheme), tmp_path / "out.mlpackage")
    assert list(tmp_path.iterdir()) == []


WRONG = {
    "shape": (COMPONENT.outputs[0], TensorSpec("text", (), (), "int32")),
    "too few": COMPONENT.outputs[:1],
    "too many": (*COMPONENT.outputs, TensorSpec("more", ("one",), (1,), "float32")),
}


@pytest.mark.parametrize("case", WRONG)
def test_refuses_a_component_that_is_not_the_modules(
    module: Block, tmp_path: Path, case: str
) -> None:
    wrong = Component("denoiser", COMPONENT.inputs, WRONG[case])
    shapes = [spec.shape for spec in WRONG[case]]
    with pytest.raises(NanofluxError) as error:
        target.write(one_segment(wrong, module), FP16, tmp_path / "out.mlpackage")
    made = "[(1, 4, 1, 32), (1, 16, 8)]"
    assert str(error.value) == f"denoiser became {made}, but its graph says {shapes}"
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_what_was_there(graph: MobileGraph, package: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(package, tmp_path / "out.mlpackage"))

    def fail(done: int, of: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        target.write(graph, FP16, out, fail)
    assert _files(out) == _files(package)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mlpackage"]


def test_replaces_an_older_package(graph: MobileGraph, package: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(package, tmp_path / "out.mlpackage"))
    target.write(graph, parse_scheme("palette2"), out)
    assert _files(out).keys() == _files(package).keys()
    assert _files(out) != _files(package)


def test_refuses_a_destination_that_is_a_file(graph: MobileGraph, tmp_path: Path) -> None:
    out = tmp_path / "out.mlpackage"
    out.write_text("mine")
    with pytest.raises(InputError, match=r"out\.mlpackage is a file"):
        target.write(graph, FP16, out)
    assert out.read_text() == "mine"


def test_load_refuses_another_components_file(package: Path) -> None:
    other = Component("decoder", COMPONENT.inputs[:1], COMPONENT.outputs)
    with pytest.raises(InputError, match="decoder"):
        target.load(package, other)


def test_tools_name_what_made_the_file() -> None:
    assert target.tools() == {"coremltools": ct.__version__, "torch": torch.__version__}
