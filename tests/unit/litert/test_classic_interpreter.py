"""Our .tflite files in TensorFlow's own interpreter: another build, and the same answers.

Apps that still ship TensorFlow Lite, and tools made for it, load files through this interpreter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.graph import one_segment
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme

tensorflow = pytest.importorskip("tensorflow", reason="pip install 'nanoflux-mobile[tensorflow]'")
pytest.importorskip("litert_torch")

FLOORS_DB = {"fp16": 110.0, "int8": 50.0}
"""Float32 sums in another order: 135 dB and more. Where layers round what flows through them
to int8, a value on the edge of a step may fall to the other side: 154 dB, and equal bits.
"""
D, T, S, VOCABULARY = 16, 6, 10, 20


class Small(nn.Module):
    """Ids and latents through an embedding, convolutions, a softmax and products."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first = nn.Embedding(VOCABULARY, D), nn.Conv2d(4, D, 1)
        self.up, self.down = nn.Conv2d(D, 2 * D, 1), nn.Conv2d(2 * D, 4, 1)

    def forward(self, latents: Tensor, ids: Tensor) -> Tensor:
        x, text = self.first(latents).squeeze(2)[:, None], self.table(ids)[:, None]
        scores = torch.softmax(text @ x, 2)
        h = x + text.transpose(2, 3) @ scores
        return self.down(F.gelu(self.up(h.transpose(1, 2)), approximate="tanh"))


def _spec(name: str, shape: tuple[int, ...], dtype: Any = "float32") -> TensorSpec:
    return TensorSpec(name, tuple(f"axis {i}" for i in range(len(shape))), shape, dtype)


COMPONENT = Component(
    "denoiser",
    (_spec("latents", (1, 4, 1, S)), _spec("token_ids", (1, T), "int32")),
    (_spec("velocity", (1, 4, 1, S)),),
)


def runs(interpreter: type, path: Path) -> dict[tuple[str, str], np.ndarray]:
    """Every output of every function of a file, on inputs drawn by their types and shapes."""
    model, rng = interpreter(str(path), num_threads=1), np.random.default_rng(0)
    found = {}
    for function in sorted(model.get_signature_list()):
        runner = model.get_signature_runner(function)
        inputs = {
            name: _drawn(rng, detail) for name, detail in sorted(runner.get_input_details().items())
        }
        found |= {(function, name): value for name, value in runner(**inputs).items()}
    return found


def _drawn(rng: np.random.Generator, detail: Mapping[str, Any]) -> np.ndarray:
    if detail["dtype"] == np.int32:
        return rng.integers(0, VOCABULARY, detail["shape"]).astype(np.int32)
    return rng.standard_normal(detail["shape"]).astype(np.float32)


def check(path: Path, floor_db: float) -> None:
    """Assert that both runtimes give every output, alike."""
    from ai_edge_litert.interpreter import Interpreter

    ours, classic = runs(Interpreter, path), runs(tensorflow.lite.Interpreter, path)
    assert classic.keys() == ours.keys() != set()
    for key, value in classic.items():
        assert value.dtype == ours[key].dtype
        assert np.ptp(value) > 0, f"{key} of {path.name} is the same everywhere"
        assert psnr_db(value, ours[key]) >= floor_db, f"{key} of {path.name}"


@pytest.mark.parametrize("scheme", FLOORS_DB)
def test_a_small_file(tmp_path: Path, scheme: str) -> None:
    from nanoflux_export.targets.litert import target

    torch.manual_seed(0)
    path = tmp_path / "small.tflite"
    target.write(one_segment(COMPONENT, Small()), parse_scheme(scheme), path)
    check(path, FLOORS_DB[scheme])


def test_every_file_of_a_student(micro_checkpoint: Path, tmp_path: Path) -> None:
    from nanoflux_export.recipe import load_recipe
    from nanoflux_export.student import make_student
    from nanoflux_export.targets.litert import target

    recipe = load_recipe("tiny-small")
    student = make_student(micro_checkpoint, dataclasses.replace(recipe, steps=2))
    for graph in student.graphs:
        scheme = recipe.targets["litert"].components[graph.name].scheme
        path = tmp_path / f"{graph.name}.tflite"
        target.write(graph, parse_scheme(scheme), path)
        check(path, min(FLOORS_DB.values()))
