"""Saved float32 files against torch, and what a file says of its tensors."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nanoflux_export.graph import MobileGraph
from nanoflux_export.targets.litert.convert import convert
from nanoflux_export.targets.litert.model_file import read_model
from nanoflux_export.targets.litert.run import load
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, TensorSpec

# Measured 158 dB (block) and 150 dB (decoder): float32 sums in another order. One wrong epsilon,
# GELU form or axis costs more than 60 dB.
FP32_FLOOR_DB = 120.0


def test_the_block_computes_what_torch_computes(block):
    made, expected = block.runner("fp32")(block.inputs), block.expected()
    assert made.keys() == {"velocity", "text_states"}
    for name, value in expected.items():
        assert psnr_db(made[name], value) >= FP32_FLOOR_DB


def test_the_decoder_computes_what_torch_computes(decoder):
    made = decoder.runner("fp32")(decoder.inputs)["image"]
    assert psnr_db(made, decoder.expected()["image"]) >= FP32_FLOOR_DB


def test_the_signature_has_the_names_shapes_and_types_of_the_component(block):
    (graph,) = read_model(block.files["fp32"]).graphs
    component = block.graph.component
    for specs, tensors in ((component.inputs, graph.inputs), (component.outputs, graph.outputs)):
        declared = {spec.name: (spec.dtype, spec.shape) for spec in specs}
        assert declared == {n: (t.dtype.lower(), t.shape) for n, t in tensors.items()}


def test_no_tensor_has_more_than_four_axes(block, decoder):
    for saved in (block, decoder):
        (graph,) = read_model(saved.files["fp32"]).graphs
        assert max(len(tensor.shape) for tensor in graph.tensors) <= 4


def test_tensors_are_told_apart_by_name_alone(tmp_path):
    """Names that begin one another and stand in no order; the graph is not symmetric in them."""
    last, first, out = (TensorSpec(n, ("batch", "x"), (1, 4), "float32") for n in ("b_b", "b", "a"))
    component = Component("denoiser", (last, first), (out,))
    convert(MobileGraph(component, Difference()), tmp_path / "x.tflite")
    left, right = np.arange(4, dtype=np.float32)[None], np.ones((1, 4), np.float32)
    made = load(tmp_path / "x.tflite", component)({"b": right, "b_b": left})
    np.testing.assert_array_equal(made["a"], left - 2 * right)


class Difference(nn.Module):
    """Not symmetric in its inputs."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left - 2.0 * right


@pytest.fixture
def refused(tmp_path) -> Path:
    """Where a file must not appear; the folder must stay empty."""
    return tmp_path / "refused" / "x.tflite"


def test_outputs_other_than_declared_are_refused(refused):
    component = Component(
        "denoiser",
        tuple(TensorSpec(name, ("batch", "x"), (1, 4), "float32") for name in ("left", "right")),
        (TensorSpec("velocity", ("batch", "x"), (1, 5), "float32"),),
    )
    with pytest.raises(InputError, match=r"returns velocity float32 \(1, 4\).*\(1, 5\)"):
        convert(MobileGraph(component, Difference()), refused)
    assert not list(refused.parent.iterdir())


def test_half_precision_inputs_are_refused(block, refused):
    first, *rest = block.graph.component.inputs
    half = dataclasses.replace(first, dtype="float16")
    component = dataclasses.replace(block.graph.component, inputs=(half, *rest))
    with pytest.raises(InputError, match="latents is float16; LiteRT graphs take"):
        convert(MobileGraph(component, block.graph.module), refused)
    assert not refused.parent.exists()


def test_converting_prints_nothing_on_stdout_and_leaves_the_environment(tmp_path, capfd):
    spec = TensorSpec("x", ("batch", "x"), (1, 4), "float32")
    component = Component("denoiser", (spec,), (dataclasses.replace(spec, name="y"),))
    before = dict(os.environ)
    convert(MobileGraph(component, nn.Tanh()), tmp_path / "x.tflite")
    assert capfd.readouterr().out == ""
    assert os.environ == before
