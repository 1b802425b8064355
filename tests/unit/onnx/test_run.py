"""Loading and running saved folders, whole and damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nanoflux_export.targets.onnx import target
from nanoflux_mobile.errors import InputError
from tests.unit.onnx.conftest import Small, spec

NAME = "step_low"


@pytest.fixture
def folder(saved: Mapping[str, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved["int8"], tmp_path / "denoiser.onnx"))


READERS: dict[str, Callable[[Path, Small], object]] = {
    "load": lambda path, small: target.load(path, small.component(NAME), function=NAME),
    "stored": lambda path, small: target.stored(path),
    "lint": lambda path, small: target.lint(path, "denoiser"),
    "cost": lambda path, small: target.cost(path, "denoiser"),
    "summarize": lambda path, small: target.summarize(path),
}


def refused(path: Path, small: Small, words: str) -> None:
    """Every reader ends in one sentence with the words in it."""
    for read in READERS.values():
        with pytest.raises(InputError, match=words):
            read(path, small)


def edit(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    for path in folder.glob("*.onnx"):
        model = onnx.load(str(path), load_external_data=False)
        change(model)
        path.write_bytes(model.SerializeToString())


def point_at(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for entry in model.graph.initializer[0].external_data:
            if entry.key == key:
                entry.value = value

    return change


def test_runner_takes_the_components_inputs_only(small: Small, saved: Mapping[str, Path]) -> None:
    run = target.load(saved["fp16"], small.component(NAME), function=NAME)
    good = small.inputs(NAME)
    assert run(good)["velocity"].dtype == np.float32
    bad = (
        ({"latents": good["latents"]}, "takes latents, ids; it was given latents"),
        ({**good, "more": good["ids"]}, "given latents, ids, more"),
        ({**good, "ids": good["ids"].astype(np.int64)}, r"ids is int64 \(1, 6\); it must be int32"),
        ({**good, "latents": good["latents"][:, :, :, :2]}, r"latents is float32 \(1, 4, 1, 2\)"),
    )
    for inputs, words in bad:
        with pytest.raises(InputError, match=words):
            run(inputs)


def test_other_components_functions_and_precisions_are_refused(
    small: Small, saved: Mapping[str, Path]
) -> None:
    component = small.component(NAME)
    wrong = replace(component, outputs=(spec("image", 1, 3, 8, 8),))
    with pytest.raises(InputError, match=r"but denoiser has .*export it again"):
        target.load(saved["fp16"], wrong, function=NAME)
    with pytest.raises(InputError, match="no function 'main'; it has step_full, step_low"):
        target.load(saved["fp16"], component)
    with pytest.raises(InputError, match="runs here in fp32 only, not in fp16"):
        target.load(saved["fp16"], component, function=NAME, precision="fp16")


def test_no_folder_or_an_empty_one(small: Small, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.onnx"):
        refused(path, small, "has no .onnx model in it")


@pytest.mark.parametrize("kept", [0, 1, 100, -1, -100])
def test_a_model_cut_short(small: Small, folder: Path, kept: int) -> None:
    for path in folder.glob("*.onnx"):
        path.write_bytes(path.read_bytes()[:kept])
    refused(folder, small, "cannot be read as ONNX .*copy it again whole")


def test_a_model_of_other_bytes(small: Small, folder: Path) -> None:
    for path in folder.glob("*.onnx"):
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    refused(folder, small, "cannot be read as ONNX")


def test_weights_cut_short(small: Small, folder: Path) -> None:
    file = folder / "weights.bin"
    file.write_bytes(file.read_bytes()[:-1])
    refused(folder, small, "ends at byte .*, its weights at .*; copy it again whole")
    file.unlink()
    refused(folder, small, r"needs weights\.bin beside it; copy the folder again whole")


@pytest.mark.parametrize("where", ["../secret", "/etc/passwd", "link"])
def test_weights_outside_the_folder(small: Small, folder: Path, where: str) -> None:
    secret = folder.parent / "secret"
    secret.write_bytes(bytes(1 << 16))
    (folder / "link").symlink_to(secret)
    edit(folder, point_at("location", where))
    refused(folder, small, "names a file outside its folder")


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "-64"), ("offset", "x"), ("length", "1"), ("offset", "99999999")]
)
def test_weights_at_an_impossible_place(small: Small, folder: Path, key: str, value: str) -> None:
    edit(folder, point_at(key, value))
    refused(folder, small, "copy it again whole")


def test_a_plain_file_of_another_maker_can_be_looked_into(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, (2, 3), np.arange(6.0))
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (4, 2)), ("y", (4, 3)))
    )
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "any", [x], [y], initializer=[weight])
    onnx.save(helper.make_model(graph), str(tmp_path / "net.onnx"))
    found = target.summarize(tmp_path / "net.onnx")
    assert (found.functions, found.ops) == (("net",), {"MatMul": 1})
    assert target.cost(tmp_path / "net.onnx", "net").blocks[0].macs == 4 * 3 * 2
    np.testing.assert_array_equal(
        target.stored(tmp_path / "net.onnx")("w"), np.arange(6.0).reshape(2, 3)
    )


def test_summary(saved: Mapping[str, Path]) -> None:
    found = target.summarize(saved["int8"])
    assert found.bytes == sum(file.stat().st_size for file in saved["int8"].iterdir())
    assert found.functions == ("step_full", "step_low")
    assert [(line.name, line.dtype, line.shape) for line in found.inputs] == [
        ("latents", "float32", (1, 4, 1, 12)),
        ("ids", "int32", (1, 6)),
    ]
    assert found.storage["int8"] == 3 + 3 * 4
    assert found.ops["Gelu"] == 3 + 2
