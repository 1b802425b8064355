"""Layers on 8-bit inputs: the ops that coremltools writes, and the numbers that PyTorch has.

Shapes: (1, channels, 1, tokens).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coremltools")

import coremltools as ct
from coremltools.converters.mil.frontend.milproto import load as milproto
from coremltools.converters.mil.mil.passes.graph_pass import PassOption
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
from coremltools.models.utils import _apply_graph_pass
from coremltools.optimize.coreml import OpLinearQuantizerConfig, OptimizationConfig

from nanoflux_export.compression.activation_rounding import activation_scale, with_rounded_inputs
from nanoflux_export.compression.plan import Plan
from nanoflux_export.compression.rounding import rounded
from nanoflux_export.graph import MobileGraph, one_segment
from nanoflux_export.targets.coreml import target
from nanoflux_mobile.errors import NanofluxError
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme

# The same integers on both sides; sums of their products differ in order only. A value on the edge
# between two integers may fall to either side, which these inputs do not.
SAME_INTEGERS_DB = 90.0


class Layers(nn.Module):
    """Two convolutions of one input, one of their sum, a transposed one and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left = nn.Conv2d(32, 64, 1)
        self.right = nn.Conv2d(32, 64, 1)
        self.down = nn.Conv2d(64, 32, 1)
        self.grow = nn.ConvTranspose2d(32, 32, (1, 2), (1, 2))
        self.linear = nn.Linear(32, 48)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 32, 1, 16) and (1, 4, 32) to (1, 32, 1, 32) and (1, 4, 48)."""
        x = self.down(torch.relu(self.left(image)) + self.right(image))
        return self.grow(x), self.linear(text)


COMPONENT = Component(
    "denoiser",
    (
        TensorSpec("image", ("batch", "channels", "one", "tokens"), (1, 32, 1, 16), "float32"),
        TensorSpec("text", ("batch", "tokens", "channels"), (1, 4, 32), "float16"),
    ),
    (
        TensorSpec("velocity", ("batch", "channels", "one", "tokens"), (1, 32, 1, 32), "float32"),
        TensorSpec("states", ("batch", "tokens", "channels"), (1, 4, 48), "float32"),
    ),
)
RANGES = {
    "denoiser/left.weight": (-3.1, 2.5),
    "denoiser/right.weight": (-3.1, 2.5),
    "denoiser/down.weight": (-1.0, 4.7),
    "denoiser/linear.weight": (-0.4, 2.0),  # less than what comes in: the rest is cut off
}
PLAN = Plan(parse_scheme("int8-a8"), ranges=RANGES)


def inputs() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "image": draw.normal(size=(1, 32, 1, 16)).astype(np.float32),
        "text": draw.normal(size=(1, 4, 32)).astype(np.float16).astype(np.float32),
    }


@pytest.fixture(scope="module")
def graph() -> MobileGraph:
    """The module as a graph, which keeps its template."""
    return one_segment(COMPONENT, Layers())


def written(graph: MobileGraph, plan: Plan, path: Path) -> Path:
    target.write(graph, plan, path)
    return path


@pytest.fixture(scope="module")
def package(graph: MobileGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layers on 8 bits."""
    return written(graph, PLAN, tmp_path_factory.mktemp("a8") / "a8.mlpackage")


def loaded(path: Path) -> tuple[Any, Any]:
    """The model, and its program as coremltools builds it anew."""
    model = ct.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    return model, milproto.load(spec, spec.specificationVersion, model.weights_dir)


def rounded_layers(program: Any) -> dict[str, tuple[str, float, str, tuple[int, ...]]]:
    """By the value that a layer makes: the input that it rounds, in what steps, to what type."""
    found = {}
    for op in program["main"].operations:
        before = op.inputs["x"].op if op.op_type in ("conv", "linear") else None
        if before is not None and before.op_type == "dequantize":
            first = before.input.op
            assert first.op_type == "quantize"
            assert first.scale.val == before.scale.val
            assert first.scale.dtype == ct.converters.mil.mil.types.fp16
            assert first.zero_point is None
            assert before.zero_point is None
            assert first.axis is None
            made, kind = op.outputs[0].name, first.output_dtype.val
            found[made] = (first.input.name, float(first.scale.val), kind, first.outputs[0].shape)
    return found


def test_the_pattern_is_that_of_coremltools(
    graph: MobileGraph, package: Path, tmp_path: Path
) -> None:
    """Its own pass on the same program, with the same ranges for what the layers take."""
    plain = written(graph, Plan(parse_scheme("int8")), tmp_path / "plain.mlpackage")
    model, program = loaded(plain)
    ranges = iter([RANGES[f"denoiser/{name}.weight"] for name in ("left", "right", "down")])
    layers = [op for op in program["main"].operations if op.op_type in ("conv", "linear")]
    stats = {
        op.x.name: RANGES["denoiser/linear.weight"] if op.op_type == "linear" else next(ranges)
        for op in layers
    }
    config = OptimizationConfig(global_config=OpLinearQuantizerConfig(mode="linear_symmetric"))
    config.set_op_type("add", None)
    prefix = PASS_REGISTRY["compression::insert_prefix_quantize_dequantize_pair"]
    wide = {name: {"rmin": least, "rmax": most} for name, (least, most) in stats.items()}
    prefix.set_options([PassOption("config", config), PassOption("activation_stats", wide)])
    theirs = _apply_graph_pass(model, prefix, return_pymil_prog=True)
    ours = rounded_layers(loaded(package)[1])
    expected = rounded_layers(theirs)
    assert len(ours) == 4
    assert ours.keys() == expected.keys()
    for name, (value, scale, kind, shape) in expected.items():
        # They round the range to half precision before they divide it by 127, we only after.
        assert ours[name][1] == pytest.approx(scale, rel=2**-10)
        assert (ours[name][0], *ours[name][2:]) == (value, kind, shape)


def test_layers_of_one_input_and_range_share_a_pair(package: Path) -> None:
    ops = target.summarize(package).ops
    assert {kind: ops[kind] for kind in ("quantize", "dequantize", "conv", "linear")} == {
        "quantize": 3,
        "dequantize": 3,
        "conv": 3,
        "linear": 1,
    }


def test_ranges_of_their_own_make_pairs_of_their_own(graph: MobileGraph, tmp_path: Path) -> None:
    ranges = RANGES | {"denoiser/right.weight": (-6.0, 1.0)}
    path = written(graph, replace(PLAN, ranges=ranges), tmp_path / "x.mlpackage")
    assert target.summarize(path).ops["quantize"] == 4
    steps = Counter(
        round(step * 127, 1) for _, step, *_ in rounded_layers(loaded(path)[1]).values()
    )
    assert steps == {3.1: 1, 6.0: 1, 4.7: 1, 2.0: 1}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_file_computes_on_the_integers_that_pytorch_rounds_to(
    package: Path, precision: str
) -> None:
    twin = with_rounded_inputs(rounded(Layers(), PLAN, "denoiser"), "denoiser", PLAN)
    made = target.load(package, COMPONENT, precision=precision)(inputs())
    with torch.no_grad():
        expected = twin(*map(torch.from_numpy, inputs().values()))
    # Half precision rounds sums to 11 bits, and moves some values over an edge.
    floor = SAME_INTEGERS_DB if precision == "fp32" else 45.0
    for array, tensor in zip(made.values(), expected, strict=True):
        assert psnr_db(array, tensor.numpy()) >= floor


def test_pytorch_rounds_as_its_own_fake_quantisation_does() -> None:
    x = torch.randn(3, 32) * 2
    step = float(activation_scale(PLAN, "denoiser/linear.weight"))
    assert step == np.float16(2.0 / 127)
    twin = with_rounded_inputs(Layers(), "denoiser", PLAN).get_submodule("linear")
    grid = torch.fake_quantize_per_tensor_affine(x, step, 0, -128, 127)
    assert (x.abs() > 2.1).any()
    torch.testing.assert_close(twin(x), Layers().linear(grid), rtol=0, atol=1e-6)  # float32


def test_only_layers_of_the_plan_are_rounded(graph: MobileGraph, tmp_path: Path) -> None:
    some = Plan(parse_scheme("int8"), {"denoiser/down.weight": PLAN.default}, ranges=RANGES)
    path = written(graph, some, tmp_path / "x.mlpackage")
    ((_, step, *_),) = rounded_layers(loaded(path)[1]).values()
    assert step == np.float16(4.7 / 127)
    hooks = [
        name
        for name, part in with_rounded_inputs(Layers(), "denoiser", some).named_modules()
        if part._forward_pre_hooks
    ]
    assert hooks == ["down"]


def test_a_range_of_nothing_but_zeros_has_a_step(tmp_path: Path) -> None:
    plan = replace(PLAN, ranges={"denoiser/down.weight": (0.0, 0.0)})
    assert activation_scale(plan, "denoiser/down.weight") == 1


def test_a_missing_range_is_named(graph: MobileGraph, tmp_path: Path) -> None:
    plan = replace(PLAN, ranges={k: v for k, v in RANGES.items() if "down" not in k})
    with pytest.raises(NanofluxError, match=r"denoiser/down\.weight .* 8-bit inputs"):
        target.write(graph, plan, tmp_path / "x.mlpackage")
    with pytest.raises(NanofluxError, match=r"denoiser/down\.weight"):
        with_rounded_inputs(Layers(), "denoiser", plan)
    assert list(tmp_path.iterdir()) == []


def test_cost_and_half_precision_take_the_pairs(package: Path) -> None:
    blocks = target.cost(package, "denoiser").blocks
    assert [block.block for block in blocks] == ["left", "right", "down", "grow", "linear"]
    assert sum(block.ops for block in blocks) >= 3 * 2 + 5
