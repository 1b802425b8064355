"""What a file takes and returns, and what cannot become one."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nanoflux_export.graph import one_segment
from nanoflux_export.targets.litert.convert import convert
from nanoflux_export.targets.litert.model_file import read_model
from nanoflux_export.targets.litert.run import load
from nanoflux_export.targets.litert.write import write
from nanoflux_mobile.errors import InputError, NanofluxError
from nanoflux_mobile.spec import Component, Scheme, TensorSpec

FP16 = Scheme("fp16", 16)


def test_the_signature_has_the_names_shapes_and_types_of_the_component(block):
    (graph,) = read_model(block.files["fp16"]).graphs
    component = block.component
    for specs, tensors in ((component.inputs, graph.inputs), (component.outputs, graph.outputs)):
        declared = {spec.name: (spec.dtype, spec.shape) for spec in specs}
        assert declared == {n: (t.dtype.lower(), t.shape) for n, t in tensors.items()}


def test_no_tensor_has_more_than_four_axes(block, decoder):
    for saved in (block, decoder):
        (graph,) = read_model(saved.files["fp16"]).graphs
        assert max(len(tensor.shape) for tensor in graph.tensors) <= 4


def test_tensors_are_told_apart_by_name_alone(tmp_path):
    """Names that begin one another and stand in no order; the graph is not symmetric in them."""
    last, first, out = (TensorSpec(n, ("batch", "x"), (1, 4), "float32") for n in ("b_b", "b", "a"))
    component = Component("denoiser", (last, first), (out,))
    write(one_segment(component, Difference()), FP16, tmp_path / "x.tflite")
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
    with pytest.raises(NanofluxError, match=r"became .*\(1, 4\).*its graph says .*\(1, 5\)"):
        write(one_segment(component, Difference()), FP16, refused)
    assert not refused.parent.exists()


def test_half_precision_inputs_are_refused(block, refused):
    first, *rest = block.component.inputs
    half = dataclasses.replace(first, dtype="float16")
    component = dataclasses.replace(block.component, inputs=(half, *rest))
    with pytest.raises(InputError, match="latents is float16; LiteRT graphs take"):
        write(one_segment(component, block.module), FP16, refused)
    assert not refused.parent.exists()


def test_converting_prints_nothing_on_stdout_and_leaves_the_environment(tmp_path, capfd):
    before = dict(os.environ)
    convert(nn.Tanh(), {"x": torch.zeros(1, 4)}, ["y"], tmp_path / "x.tflite")
    assert capfd.readouterr().out == ""
    assert os.environ == before
