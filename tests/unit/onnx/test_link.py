"""Segments linked into ONNX models, against torch and ONNX's own reference evaluator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from torch import Tensor, nn

from nanoflux_export.graph import Function, MobileGraph, Segment, one_segment
from nanoflux_export.targets.onnx import link, target
from nanoflux_mobile.errors import InputError, NanofluxError
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, parse_scheme
from tests.unit.onnx.conftest import SCHEMES, Small, make_small, spec

FUNCTIONS = ("step_full", "step_low")
FLOOR_DB = 120
"""Float32 in another order, measured at 140 to 150 dB; a wrong weight costs far more."""


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_files_compute_what_the_segments_do(
    small: Small, saved: Mapping[str, Path], name: str, scheme: str
) -> None:
    run = target.load(saved[scheme], small.component(name), function=name)
    made = run(small.inputs(name))["velocity"]
    assert psnr_db(made, small.expected(name, parse_scheme(scheme))) >= FLOOR_DB


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_standard_agrees(small: Small, saved: Mapping[str, Path], scheme: str) -> None:
    model = onnx.load(str(saved[scheme] / "step_low.onnx"))
    (made,) = onnx.reference.ReferenceEvaluator(model).run(None, small.inputs("step_low"))
    assert psnr_db(made, small.expected("step_low", parse_scheme(scheme))) >= FLOOR_DB


@pytest.mark.parametrize("scheme", SCHEMES)
def test_stored_weights_are_the_rounded_ones(
    small: Small, saved: Mapping[str, Path], scheme: str
) -> None:
    read = target.stored(saved[scheme])
    for weights in small.modules:
        twin = small.twin(weights, parse_scheme(scheme))
        for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
            if tensor.is_floating_point():
                found = read(f"{weights}/{name}")
                assert found.dtype == np.float32
                np.testing.assert_array_equal(found, tensor.detach().numpy())
    with pytest.raises(KeyError):
        read("blocks.0/missing")


def test_functions_share_one_weight_file(saved: Mapping[str, Path]) -> None:
    places = []
    for name in FUNCTIONS:
        model = onnx.load(str(saved["fp16"] / f"{name}.onnx"), load_external_data=False)
        told = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}
        assert {entry["location"] for entry in told.values()} == {"weights.bin"}
        places.append(told)
    full, low = places
    assert low.keys() < full.keys()
    assert all(full[name] == place for name, place in low.items())


@pytest.mark.parametrize(("scheme", "dtype"), [("fp16", np.float16), ("int8", np.int8)])
def test_layers_are_stored_small_and_the_rest_in_full(
    saved: Mapping[str, Path], scheme: str, dtype: type
) -> None:
    model = onnx.load(str(saved[scheme] / "step_full.onnx"))
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    small_ones = {name for name, array in arrays.items() if array.dtype == dtype}
    layers = ("q", "kv", "up", "down")
    blocks = {f"blocks.{i}/{layer}.weight:stored" for i in range(3) for layer in layers}
    assert small_ones == blocks | {
        f"{name}.weight:stored" for name in ("embed/table", "embed/first", "head/spread")
    }
    axes = {n.op_type: n for n in model.graph.node if n.output[0] == "head/spread.weight"}
    if scheme == "int8":
        (decode,) = axes.values()
        assert [a.i for a in decode.attribute if a.name == "axis"] == [1]
        assert arrays["head/spread.weight:scale"].shape == (4,)


def test_each_kind_is_traced_once_per_shape_and_each_segment_built_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, traced, heard = make_small(), Counter(), []
    original = link.make_form

    def counting(module: nn.Module, inputs: object) -> object:
        traced[type(module).__name__] += 1
        return original(module, inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(link, "make_form", counting)
    fp16, out = parse_scheme("fp16"), tmp_path / "denoiser.onnx"
    graph = small.graph
    target.write(graph, fp16, out, lambda done, of: heard.append((done, of)))
    assert traced == {"Embed": 2, "Block": 2, "Head": 2}
    assert max(small.built.values()) == 2, "once, and once more for its form at another length"
    assert small.built["blocks.1"] == 1
    assert heard == [(i + 1, 9) for i in range(9)]
    target.write(graph, fp16, tmp_path / "again" / "denoiser.onnx")
    assert traced.total() == 6, "forms are kept with the graph"


def test_equal_input_gives_equal_bytes_and_equal_tensors_are_stored_once(
    saved: Mapping[str, Path], tmp_path: Path
) -> None:
    small = make_small()
    target.write(small.graph, parse_scheme("int8"), tmp_path / "a.onnx")
    for file in saved["int8"].iterdir():
        assert (tmp_path / "a.onnx" / file.name).read_bytes() == file.read_bytes()
    twins = {**small.modules, **{f"blocks.{i}": small.modules["blocks.0"] for i in (1, 2)}}
    target.write(Small(twins).graph, parse_scheme("int8"), tmp_path / "b.onnx")
    sizes = [(tmp_path / f"{name}.onnx" / "weights.bin").stat().st_size for name in "ab"]
    assert sizes[1] < sizes[0] - 2 * 6 * 16 * 16


def test_what_a_folder_holds(saved: Mapping[str, Path]) -> None:
    names = sorted(file.name for file in saved["fp16"].iterdir())
    assert names == ["step_full.onnx", "step_low.onnx", "weights.bin"]
    model = onnx.load(str(saved["fp16"] / "step_low.onnx"), load_external_data=False)
    assert [entry.version for entry in model.opset_import] == [20]
    assert not [n for n in model.graph.node if n.op_type in ("Shape", "ConstantOfShape")]


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class Same(nn.Module):
    """Its first input and a table; it does not look at its second input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 2, 1, 3))

    def forward(self, x: Tensor, unread: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.table


TINY = Component("decoder", (spec("x", 1, 2, 1, 3),), (spec("y", 1, 2, 1, 3),))


def test_a_segment_may_hand_on_what_it_has(tmp_path: Path) -> None:
    same, shape = Same(), (1, 2, 1, 3)
    takes, returns = (tuple(spec(name, *shape) for name in names) for names in ("xu", "yt"))
    component = Component("decoder", takes, returns)
    target.write(one_segment(component, same), parse_scheme("fp16"), tmp_path / "a.onnx")
    x = np.arange(6, dtype=np.float32).reshape(shape)
    made = target.load(tmp_path / "a.onnx", component)({"x": x, "u": np.zeros_like(x)})
    for name, expected in (("y", x), ("t", same.table.detach().numpy())):
        np.testing.assert_array_equal(made[name], expected)


def test_an_idle_weight_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NanofluxError, match=r"Idle does not use its weight idle\.weight"):
        target.write(one_segment(TINY, Idle()), parse_scheme("fp16"), tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_segments_of_one_kind_must_have_the_same_weights(tmp_path: Path) -> None:
    convs = (nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1, bias=False))
    parts = tuple(
        Segment("conv", f"conv.{i}", lambda conv=conv: conv, ("xyz"[i],), ("xyz"[i + 1],))  # type: ignore[misc]
        for i, conv in enumerate(convs)
    )
    shape = (1, 2, 1, 3)
    ends = (spec("x", *shape),), (spec("z", *shape),)
    graph = MobileGraph("decoder", {"main": Function(*ends, parts, {"y": shape})})
    with pytest.raises(NanofluxError, match=r"conv\.1 is not of the kind conv"):
        target.write(graph, parse_scheme("fp16"), tmp_path / "a.onnx")


def test_wrong_declared_shapes_are_found(tmp_path: Path) -> None:
    wrong = replace(TINY, outputs=(spec("y", 1, 2, 1, 4),))
    with pytest.raises(NanofluxError, match="is no valid graph"):
        target.write(one_segment(wrong, nn.Conv2d(2, 2, 1)), parse_scheme("fp16"), tmp_path / "a")


@pytest.mark.parametrize("name", ["palette4", "palette8-g16"])
def test_other_schemes_are_refused(small: Small, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}; accepted: fp16, int8"):
        target.write(small.graph, parse_scheme(name), tmp_path / "a.onnx")


def test_a_failed_write_leaves_the_old_folder(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "a.onnx"
    target.write(one_segment(TINY, nn.Conv2d(2, 2, 1)), parse_scheme("fp16"), out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    large = nn.Conv2d(2, 2, 1)
    torch.nn.init.constant_(large.weight, 1e5)
    with pytest.raises(InputError, match=r"decoder/weight holds 100000, but half precision"):
        target.write(one_segment(TINY, large), parse_scheme("fp16"), out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
