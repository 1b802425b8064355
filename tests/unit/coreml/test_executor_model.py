"""Whole graphs as the product makes them: both transformer layouts, a text encoder, a decoder.

Shapes: B batch, S tokens, D width, H heads, E width of a head.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ct = pytest.importorskip("coremltools")

from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402
from coremltools.proto import Model_pb2  # noqa: E402

from nanoflux_export.targets.coreml.executor import (  # noqa: E402
    OpFailed,
    ShapeMismatch,
    UnsupportedOp,
    load,
)
from nanoflux_export.targets.coreml.package import open_package  # noqa: E402
from nanoflux_export.targets.coreml.plan import NOTHING, make_plan  # noqa: E402
from nanoflux_export.targets.coreml.program import op_kinds, read_function  # noqa: E402
from nanoflux_mobile.errors import InputError  # noqa: E402

B, S, D, H = 1, 24, 32, 4
E = D // H
PROGRAM = "Data/com.apple.CoreML/model.mlmodel"

# An fp32 program differs from torch only by the order of float32 sums.
FP32_ERROR = 1e-5
# An fp16 program holds its scalars (epsilon, 1/sqrt(E)) rounded to 11 bits; its weights are the
# reference's own, rounded before.
FP16_CONSTANTS_ERROR = 2.0**-11
# With every result rounded too, errors of 2**-11 add up over some twenty ops, mostly at random.
FP16_RESULTS_ERROR = 10 * 2.0**-11


class TokensBlock(nn.Module):
    """Attention and MLP with tokens as rows, (B, S, D), and half-split rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(D, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x_BSD: Tensor, shift_B2D: Tensor, angle_SE: Tensor) -> Tensor:
        scale, shift = shift_B2D.unsqueeze(1).chunk(2, -1)
        q, k, v = self.qkv(self.norm(x_BSD) * (1 + scale) + shift).chunk(3, -1)
        q, k, v = (part.reshape(B, S, H, E).transpose(1, 2) for part in (q, k, v))
        cos, sin = angle_SE.cos(), angle_SE.sin()
        q, k = (part * cos + _half_turned(part) * sin for part in (q, k))
        y_BHSE = F.scaled_dot_product_attention(q, k, v)
        x_BSD = x_BSD + self.out(y_BHSE.transpose(1, 2).reshape(B, S, D))
        return x_BSD + self.down(F.gelu(self.up(self.norm(x_BSD)), approximate="tanh"))


class ChannelsBlock(nn.Module):
    """The same block with tokens along the last axis, (B, D, 1, S), and 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Conv2d(D, 3 * D, 1), nn.Conv2d(D, D, 1)
        self.up, self.down = nn.Conv2d(D, 4 * D, 1), nn.Conv2d(4 * D, D, 1)

    def forward(self, x_BD1S: Tensor) -> Tensor:
        q, k, v = (p.reshape(B, H, E, S) for p in self.qkv(_channel_norm(x_BD1S)).chunk(3, 1))
        y_BHSE = F.scaled_dot_product_attention(*(p.transpose(2, 3) for p in (q, k, v)))
        scores_BHSS = (q.transpose(2, 3) @ k * E**-0.5).softmax(-1)
        y_BHES = v @ scores_BHSS.transpose(2, 3) + y_BHSE.transpose(2, 3)
        x_BD1S = x_BD1S + self.out(y_BHES.reshape(B, D, 1, S))
        return x_BD1S + self.down(F.gelu(self.up(_channel_norm(x_BD1S))))


class TextBlock(nn.Module):
    """A T5 layer: embedding, RMS norm, biased attention under a padding mask, gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, D)
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.gate, self.up = nn.Linear(D, 2 * D, bias=False), nn.Linear(D, 2 * D, bias=False)
        self.down = nn.Linear(2 * D, D, bias=False)
        self.bias_HSS = nn.Parameter(torch.randn(H, S, S))

    def forward(self, ids_BS: Tensor, keep_BS: Tensor) -> Tensor:
        x_BSD = self.embedding(ids_BS)
        q, k, v = (
            part.reshape(B, S, H, E).transpose(1, 2)
            for part in self.qkv(_rms_norm(x_BSD)).chunk(3, -1)
        )
        mask_B11S = torch.where(keep_BS > 0, 0.0, -1e4)[:, None, None]
        weights_BHSS = (q @ k.transpose(2, 3) + self.bias_HSS + mask_B11S).softmax(-1)
        x_BSD = x_BSD + self.out((weights_BHSS @ v).transpose(1, 2).reshape(B, S, D))
        y_BSD = _rms_norm(x_BSD)
        return x_BSD + self.down(F.gelu(self.gate(y_BSD), approximate="tanh") * self.up(y_BSD))


def _decoder() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(4, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.SiLU()),
        *(nn.Upsample(scale_factor=2), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.Conv2d(16, 12, 3, padding=1)),
        *(nn.PixelShuffle(2), nn.Hardtanh(-1.0, 1.0)),
    )


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def _channel_norm(x_BD1S: Tensor) -> Tensor:
    centred = x_BD1S - x_BD1S.mean(1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-5)


def _rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


Inputs = dict[str, np.ndarray]


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


MODELS: dict[str, tuple[str, Callable[[], nn.Module], Inputs, set[str]]] = {
    "tokens as rows": (
        "iOS18",
        TokensBlock,
        {"x": _random(B, S, D), "shift": _random(B, 2 * D), "angle": _random(S, E)},
        {"scaled_dot_product_attention", "linear", "layer_norm", "cos"},
    ),
    "tokens as columns": (
        "iOS18",
        ChannelsBlock,
        {"x": _random(B, D, 1, S)},
        {"scaled_dot_product_attention", "matmul", "softmax", "conv"},
    ),
    "text encoder": (
        "iOS17",
        TextBlock,
        {
            "ids": np.arange(S, dtype=np.int32).reshape(B, S) * 2,
            "keep": (np.arange(S) < 15).astype(np.int32).reshape(B, S),
        },
        {"gather", "select", "greater", "rsqrt", "matmul"},
    ),
    "decoder": (
        "iOS17",
        _decoder,
        {"x": _random(1, 4, 6, 5)},
        {"pixel_shuffle", "upsample_nearest_neighbor", "conv_transpose", "clip"},
    ),
}


def _convert(module: nn.Module, inputs: Inputs, target: str, precision: Any, path: Path) -> Path:
    traced = torch.jit.trace(module, tuple(torch.from_numpy(array) for array in inputs.values()))
    specs = [
        ct.TensorType(name, array.shape, dtype=array.dtype.type) for name, array in inputs.items()
    ]
    ct.convert(
        traced,
        inputs=specs,
        outputs=[ct.TensorType("y", dtype=np.float32)],
        minimum_deployment_target=getattr(ct.target, target),
        compute_precision=precision,
    ).save(str(path))
    return path


class Exported:
    """A model's reference result and its packages in both precisions."""

    def __init__(self, name: str, folder: Path) -> None:
        target, build, self.inputs, self.ops = MODELS[name]
        torch.manual_seed(0)
        module = build().eval().half().float()  # fp16 can hold these weights exactly
        with torch.no_grad():
            self.expected = module(*map(torch.from_numpy, self.inputs.values())).numpy()
        packages = {"exact": ct.precision.FLOAT32, "half": ct.precision.FLOAT16}
        self.paths = {
            kind: _convert(module, self.inputs, target, precision, folder / f"{kind}.mlpackage")
            for kind, precision in packages.items()
        }

    def error(self, kind: str, **options: Any) -> float:
        """Largest difference from torch over torch's largest value."""
        result = load(self.paths[kind], **options)(**self.inputs)["y"]
        assert result.shape == self.expected.shape
        assert result.dtype == np.float32
        return float(np.abs(result - self.expected).max() / np.abs(self.expected).max())


@pytest.fixture(scope="module", params=MODELS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported("decoder", tmp_path_factory.mktemp("decoder"))


def _program(path: Path, build: Callable[[Any], Any], *shape: int, dtype: Any = types.fp32) -> Path:
    @mb.program(input_specs=[mb.TensorSpec(shape, dtype)], opset_version=ct.target.iOS17)
    def program(x: Any) -> Any:
        return build(x)

    exact = {
        "compute_precision": ct.precision.FLOAT32,
        "minimum_deployment_target": ct.target.iOS17,
    }
    ct.convert(program, **exact).save(str(path))
    return path


def _edited(package: Path, into: Path, edit: Callable[[Any], None]) -> Path:
    """A copy of `package` whose model proto has been changed by `edit`."""
    shutil.copytree(package, into)
    model = Model_pb2.Model()
    model.ParseFromString((package / PROGRAM).read_bytes())
    edit(model)
    (into / PROGRAM).write_bytes(model.SerializeToString())
    return into


def test_the_graph_holds_the_ops_it_is_here_to_test(exported: Exported) -> None:
    assert exported.ops - op_kinds(open_package(exported.paths["half"])) == set()


def test_fp32_package_equals_torch(exported: Exported) -> None:
    assert exported.error("exact") <= FP32_ERROR


def test_fp16_package_equals_torch_but_for_rounding(exported: Exported) -> None:
    in_float32 = exported.error("half")
    in_float16 = exported.error("half", precision="fp16")
    assert in_float32 <= FP16_CONSTANTS_ERROR
    assert in_float32 < in_float16 <= FP16_RESULTS_ERROR


def test_intermediate_values_are_freed_and_never_read_again(exported: Exported) -> None:
    function = read_function(open_package(exported.paths["half"]), "main")
    plan = make_plan(function, rounds=False)
    alive = {NOTHING, *plan.literals, *plan.inputs.values()}
    most = 0
    for step in plan.steps:
        assert alive.issuperset(step.inputs)
        alive |= set(step.outputs)
        most = max(most, len(alive - plan.literals.keys()))
        alive -= set(step.frees)
    assert alive == {NOTHING, *plan.literals, *plan.outputs.values()}
    assert most < len(plan.steps) / 2


def test_results_are_the_callers_own(decoder: Exported) -> None:
    run = load(decoder.paths["exact"])
    first = run(**decoder.inputs)["y"]
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(run(**decoder.inputs)["y"], kept)


def test_weights_are_decoded_at_the_first_call_and_once(
    decoder: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanoflux_export.targets.coreml import program

    decoded: list[tuple[int, ...]] = []
    unpack = program.unpack

    def counting(packed: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        decoded.append(shape)
        return unpack(packed, dtype, shape)

    monkeypatch.setattr(program, "unpack", counting)
    run = load(decoder.paths["half"])
    assert (32, 32, 3, 3) not in decoded
    for _ in range(2):
        run(**decoder.inputs)
        assert decoded.count((32, 32, 3, 3)) == 1


def test_a_package_larger_than_the_limit_streams_its_weights(
    decoder: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanoflux_export.targets.coreml import executor

    kept = load(decoder.paths["half"])(**decoder.inputs)["y"]
    monkeypatch.setattr(executor, "_KEPT_BYTES", 0)
    monkeypatch.setattr(executor, "_SMALL_BYTES", 1024)
    streaming = load(decoder.paths["half"])
    for _ in range(2):
        np.testing.assert_array_equal(streaming(**decoder.inputs)["y"], kept)
    held = [tensor for tensor in streaming._constants if tensor is not None]
    assert held
    assert all(4 * tensor.numel() < 1024 for tensor in held)


def test_declared_inputs_and_outputs(decoder: Exported) -> None:
    run = load(decoder.paths["half"])
    assert {name: (kind.dtype, kind.shape) for name, kind in run.inputs.items()} == {
        "x": ("fp32", (1, 4, 6, 5))
    }
    assert {name: (kind.dtype, kind.shape) for name, kind in run.outputs.items()} == {
        "y": ("fp32", (1, 3, 48, 40))
    }


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"the inputs are none; the program takes x \(1, 4, 6, 5\) fp32"),
        ({"x": _random(1, 4, 6, 5), "z": _random(1)}, "the inputs are x, z; the program takes x"),
        ({"x": _random(1, 4, 5, 6)}, r"float32 of shape \(1, 4, 5, 6\); the program takes fp32"),
        ({"x": np.zeros((1, 4, 6, 5), np.int32)}, "input 'x' is int32 of shape"),
    ],
)
def test_wrong_inputs_are_named(decoder: Exported, inputs: Inputs, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(decoder.paths["half"])(**inputs)


def test_wrong_options_are_named(decoder: Exported) -> None:
    with pytest.raises(InputError, match="no function 'step'; it has: main"):
        load(decoder.paths["half"], function="step")
    with pytest.raises(InputError, match="'int8' is not known; use 'fp32' or 'fp16'"):
        load(decoder.paths["half"], precision="int8")  # type: ignore[arg-type]


def test_functions_of_one_package(decoder: Exported, tmp_path: Path) -> None:
    desc = ct.utils.MultiFunctionDescriptor()
    doubled = _program(tmp_path / "two.mlpackage", lambda x: mb.mul(x=x, y=2.0, name="y"), 1, 3)
    tripled = _program(tmp_path / "three.mlpackage", lambda x: mb.mul(x=x, y=3.0, name="y"), 1, 3)
    desc.add_function(str(doubled), "main", "double")
    desc.add_function(str(tripled), "main", "triple")
    desc.default_function_name = "double"
    both = tmp_path / "both.mlpackage"
    ct.utils.save_multifunction(desc, str(both))
    x = _random(1, 3)
    assert np.array_equal(load(both, function="double")(x=x)["y"], 2 * x)
    assert np.array_equal(load(both, function="triple")(x=x)["y"], 3 * x)
    with pytest.raises(InputError, match="no function 'main'; it has: double, triple"):
        load(both)


def test_all_unknown_ops_are_named_at_load(tmp_path: Path) -> None:
    path = _program(
        tmp_path / "unknown.mlpackage",
        lambda x: mb.atan(x=mb.topk(x=mb.sinh(x=mb.relu(x=x)), k=2)[0], name="y"),
        *(3, 4),
    )
    with pytest.raises(UnsupportedOp, match="does not know: atan, sinh, topk;"):
        load(path)


def test_a_result_unlike_its_declaration_is_named(decoder: Exported, tmp_path: Path) -> None:
    def widen(model: Any) -> None:
        function = model.mlProgram.functions["main"]
        for op in function.block_specializations[function.opset].operations:
            if op.type == "pixel_shuffle":
                op.outputs[0].type.tensorType.dimensions[2].constant.size = 50

    package = _edited(decoder.paths["exact"], tmp_path / "widened.mlpackage", widen)
    with pytest.raises(ShapeMismatch, match=r"pixel_shuffle .* makes \(1, 3, 48, 40\) .*declares"):
        load(package)(**decoder.inputs)


def test_an_index_outside_its_table_is_named(tmp_path: Path) -> None:
    table = _random(5, 2)
    path = _program(
        tmp_path / "table.mlpackage",
        lambda x: mb.gather(x=table, indices=x, axis=0, name="y"),
        *(1,),
        dtype=types.int32,
    )
    run = load(path)
    for index in (4, -1):  # the converter adds the table's length to a negative index
        assert np.array_equal(run(x=np.array([index]))["y"], table[[4]])
    for index in (5, -6):
        with pytest.raises(OpFailed, match=r"gather 'y' of .* failed on tensors of shape"):
            run(x=np.array([index]))


def test_only_ml_programs_are_read(decoder: Exported, tmp_path: Path) -> None:
    package = _edited(
        decoder.paths["exact"],
        tmp_path / "old.mlpackage",
        lambda model: model.neuralNetwork.SetInParent(),
    )
    with pytest.raises(InputError, match="holds neuralNetwork, not an ML Program"):
        load(package)
