"""Chunks of a graph: they compute what it computes, share nothing but wires, and stay small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nanoflux_export.chunking import cut, stored_bytes
from nanoflux_export.graph import STEP_FULL, STEP_LOW, Function, MobileGraph, Segment
from nanoflux_export.torch_run import torch_runner
from nanoflux_mobile.spec import TensorSpec, parse_scheme

FP16 = parse_scheme("fp16")
AXES = ("batch", "channels", "rows", "columns")
SHAPE = (1, 1, 1, 3)
INPUTS = tuple(TensorSpec(name, AXES, SHAPE, "float32") for name in ("latents", "table"))


class Stage(nn.Module):
    """Every output is another combination of the inputs, told by the stage's number."""

    def __init__(self, number: int, outputs: int) -> None:
        super().__init__()
        self.number, self.outputs = number, outputs

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        mixed = torch.stack([torch.sin(x + i) for i, x in enumerate(values)]).sum(0)
        return tuple(torch.cos(mixed * (self.number + 1) + i) for i in range(self.outputs))


def stage(
    number: int, takes: Sequence[str], makes: Sequence[str], parameters: int, weights: str = ""
) -> Segment:
    build = partial(Stage, number, len(makes))
    name = weights or f"stage.{number}"
    return Segment("stage", name, build, tuple(takes), tuple(makes), parameters)


def function(segments: Sequence[Segment], outputs: Sequence[str]) -> Function:
    made = [name for segment in segments for name in segment.outputs]
    specs = tuple(TensorSpec(name, AXES, SHAPE, "float32") for name in outputs)
    return Function(
        INPUTS, specs, tuple(segments), {name: SHAPE for name in made if name not in outputs}
    )


@st.composite
def graphs(draw: st.DrawFn) -> MobileGraph:
    """Segments in a row, each reading any values before it; a second function skips some of them.

    Its own stages begin at `latents`, so that what it leaves out is nowhere missed.
    """
    values, segments = ["latents", "table"], []
    for number in range(draw(st.integers(1, 7))):
        takes = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))
        makes = [f"v{number}_{i}" for i in range(draw(st.integers(1, 2)))]
        parameters = draw(st.sampled_from((0, 0, 10, 40, 100)))
        segments.append(stage(number, takes, makes, parameters))
        values += makes
    made = values[2:]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=2, unique=True))
    functions = {STEP_FULL: function(segments, outputs)}
    kept = needed_for(segments, outputs[0])
    if draw(st.booleans()):
        functions[STEP_LOW] = function(kept, outputs[:1])
    return MobileGraph("denoiser", functions)


def needed_for(segments: Sequence[Segment], output: str) -> list[Segment]:
    """The segments that a value depends on."""
    wanted, kept = {output}, []
    for segment in reversed(segments):
        if wanted & set(segment.outputs):
            wanted |= set(segment.inputs)
            kept.append(segment)
    return kept[::-1]


def run_chunks(
    chunks: Sequence[MobileGraph], name: str, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What a host does: it runs the chunks in order and passes on whatever they made."""
    known = dict(inputs)
    for chunk in chunks:
        if name in chunk.functions:
            part = chunk.functions[name]
            known |= torch_runner(part)({spec.name: known[spec.name] for spec in part.inputs})
    return known


LIMITS = st.sampled_from((1, 60, 100, 210, 420, 10**9))


@given(graph=graphs(), most=LIMITS)
def test_chunks_one_after_another_are_the_graph(graph: MobileGraph, most: int) -> None:
    draw = np.random.default_rng(0)
    inputs = {spec.name: draw.normal(size=SHAPE).astype(np.float32) for spec in INPUTS}
    chunks = cut(graph, FP16, most, "float16")
    for name, whole in graph.functions.items():
        expected = torch_runner(whole)(inputs)
        found = run_chunks(chunks, name, inputs)
        for output, array in expected.items():
            np.testing.assert_array_equal(found[output], array)


@given(graph=graphs(), most=LIMITS)
def test_chunks_take_only_what_is_there_and_give_only_what_is_wanted(
    graph: MobileGraph, most: int
) -> None:
    chunks = cut(graph, FP16, most, "float16")
    for name, whole in graph.functions.items():
        parts = [chunk.functions[name] for chunk in chunks if name in chunk.functions]
        there = {spec.name for spec in whole.inputs}
        made: dict[str, TensorSpec] = {}
        for part in parts:
            assert {spec.name for spec in part.inputs} <= there | made.keys()
            for spec in part.inputs:
                assert spec == made.get(spec.name, spec)
            made |= {spec.name: spec for spec in part.outputs}
        if len(chunks) > 1:
            taken = {spec.name for part in parts for spec in part.inputs}
            assert made.keys() <= taken | {spec.name for spec in whole.outputs}
        for spec in whole.outputs:
            assert made[spec.name] == spec
        crossing = {n: spec for n, spec in made.items() if n in whole.wires}
        assert all((s.dtype, s.shape) == ("float16", SHAPE) for s in crossing.values())


@given(graph=graphs(), most=LIMITS)
def test_weights_lie_in_one_chunk_and_no_chunk_is_empty_or_too_large(
    graph: MobileGraph, most: int
) -> None:
    chunks = cut(graph, FP16, most, "float16")
    sizes = [dict(weights_of(chunk)) for chunk in chunks]
    held = [name for size in sizes for name in size]
    assert len(held) == len(set(held))
    assert set(held) == set(dict(weights_of(graph)))
    assert all(chunk.functions for chunk in chunks)
    if len(chunks) > 1:
        assert all(sum(size.values()) <= most or len(size) == 1 for size in sizes)
        assert all(sizes)
    assert all(chunk.forms is graph.forms for chunk in chunks)


def weights_of(graph: MobileGraph) -> Iterator[tuple[str, int]]:
    for part in graph.functions.values():
        for segment in part.segments:
            if segment.parameters:
                yield segment.weights, stored_bytes(segment, FP16)


def chain(*parameters: int) -> MobileGraph:
    """Segments one after another."""
    names = ["latents", *(f"x{i}" for i in range(1, len(parameters))), "velocity"]
    segments = [stage(i, [names[i]], [names[i + 1]], n) for i, n in enumerate(parameters)]
    return MobileGraph("denoiser", {"main": function(segments, ["velocity"])})


def lengths(graph: MobileGraph, most: int) -> list[int]:
    return [len(c.functions["main"].segments) for c in cut(graph, FP16, most, "float16")]


def test_what_fits_is_not_cut() -> None:
    graph = chain(100, 100, 0)
    assert cut(graph, FP16, 412, "float16") == (graph,)


@pytest.mark.parametrize(
    ("parameters", "most", "expected"),
    [
        ((100,) * 6, 620, [3, 3]),
        ((100,) * 4, 700, [2, 2]),  # three would fit in the first
        ((100,) * 3, 1, [1, 1, 1]),  # a segment is never cut
        ((100, 0, 100), 206, [2, 1]),  # what has no weights stays with what is before it
        ((100, 100, 0), 206, [1, 2]),
    ],
)
def test_chunks_are_as_few_as_fit_and_equally_filled(
    parameters: tuple[int, ...], most: int, expected: list[int]
) -> None:
    assert lengths(chain(*parameters), most) == expected


def test_fewer_bits_make_fewer_chunks() -> None:
    graph = chain(*[100] * 8)
    counts = [
        len(cut(graph, parse_scheme(scheme), 300, "float16"))
        for scheme in ("fp16", "palette8", "palette4", "palette2")
    ]
    assert counts == [8, 4, 2, 1]


def test_a_stage_without_weights_that_reads_the_host_is_repeated_where_needed() -> None:
    rows = stage(0, ["table"], ["r1", "r2"], 0)
    first, second = stage(1, ["latents", "r1"], ["x"], 100), stage(2, ["x", "r2"], ["velocity"], 99)
    graph = MobileGraph("denoiser", {"main": function([rows, first, second], ["velocity"])})
    parts = [chunk.functions["main"] for chunk in cut(graph, FP16, 210, "float16")]
    assert [[s.weights for s in part.segments] for part in parts] == [
        ["stage.0", "stage.1"],
        ["stage.0", "stage.2"],
    ]
    assert [[s.name for s in part.inputs] for part in parts] == [
        ["latents", "table"],
        ["table", "x"],
    ]
    assert [[s.name for s in part.outputs] for part in parts] == [["x"], ["velocity"]]


def test_functions_share_the_chunks_of_their_weights() -> None:
    """The low step has one stage more, and a form of its own of the last."""
    a, b = stage(0, ["latents"], ["x"], 100), stage(1, ["x"], ["y"], 100)
    full = stage(2, ["y"], ["velocity"], 100)
    down = stage(3, ["y"], ["low_y"], 10)
    low = replace(stage(4, ["low_y"], ["velocity"], 100), weights="stage.2")
    functions = {
        STEP_LOW: function([a, b, down, low], ["velocity"]),
        STEP_FULL: function([a, b, full], ["velocity"]),
    }
    chunks = cut(MobileGraph("denoiser", functions), FP16, 450, "float16")
    found = [
        {name: [s.weights for s in part.segments] for name, part in chunk.functions.items()}
        for chunk in chunks
    ]
    assert found == [
        {STEP_LOW: ["stage.0", "stage.1"], STEP_FULL: ["stage.0", "stage.1"]},
        {STEP_LOW: ["stage.3", "stage.2"], STEP_FULL: ["stage.2"]},
    ]
