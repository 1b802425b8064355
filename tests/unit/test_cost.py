"""What a saved graph costs: blocks by hand, and the micro bundles against torch's own counter."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from nanoflux_export.blocks import Graph, Op, Value, file_cost
from nanoflux_export.graph import Function, Segment
from nanoflux_export.inspecting import facts, inspect
from nanoflux_export.recipe import load_recipe
from nanoflux_export.student import make_student
from nanoflux_mobile.cost import BlockCost, Cost, cost_json, read_cost
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import manifest_json, read_manifest
from nanoflux_mobile.strict_json import from_plain

TARGETS = ("coreml", "litert")
COMPONENTS = ("text_encoder", "denoiser", "decoder")

# Two layers with a residual sum each, a norm between them, and a table `t` that both halves read.
VALUES = {
    "x": Value(100),
    "wa": Value(40, constant=True, part="a"),
    "wb": Value(60, constant=True, part="b"),
    "t": Value(10, constant=True),
    **{name: Value(100) for name in ("ya", "s1", "yb", "v", "s2", "out")},
    "n": Value(50),
}
OPS = (
    Op("conv", ("x", "wa", "t", "pad"), ("ya",), macs=7, located=True),
    Op("add", ("x", "ya"), ("s1",)),
    Op("norm", ("s1", "epsilon"), ("n",)),
    Op("conv", ("n", "wb"), ("yb",), macs=5, located=True),
    Op("reshape", ("yb", "shape"), ("v",), view=True),
    Op("add", ("s1", "v"), ("s2",)),
    Op("mul", ("s2", "t"), ("out",)),
)
GRAPH = Graph("main", VALUES, ("x",), ("out",), OPS)


def blocks(graph: Graph) -> tuple[BlockCost, ...]:
    return file_cost("coreml", "denoiser", [graph]).blocks


def test_a_graph_is_cut_after_the_residual_sum_between_two_parts() -> None:
    first, second = blocks(GRAPH)
    assert first == BlockCost(
        component="denoiser",
        function="main",
        block="a",
        macs=7,
        weight_bytes=40 + 10,
        activation_bytes=(100 + 100) + (100 + 100 + 100),
        working_set_bytes=100 + 100 + 100,  # x, ya and s1 during the sum
        ops=2,
    )
    assert second == BlockCost(
        component="denoiser",
        function="main",
        block="b",
        macs=5,
        weight_bytes=60,
        activation_bytes=(100 + 50) + (50 + 100) + (200 + 100) + (100 + 100) + 10,
        working_set_bytes=100 + 100 + 100,  # s1, yb and s2; v is yb
        ops=4,
    )


@pytest.mark.parametrize(
    ("sum_", "cut"),
    [
        (Op("add", ("x", "ya"), ("s1",)), (2, 4)),
        (Op("ADD", ("x", "ya"), ("s1",)), (2, 4)),
        (Op("mul", ("x", "ya"), ("s1",)), (1, 5)),
        (Op("add", ("ya", "t"), ("s1",)), (1, 5)),  # a bias
        (Op("add", ("ya", "ya"), ("s1",)), (1, 5)),
    ],
)
def test_only_a_sum_of_two_computed_values_ends_a_part(sum_: Op, cut: tuple[int, int]) -> None:
    graph = replace(GRAPH, ops=(OPS[0], sum_, *OPS[2:]))
    assert tuple(block.ops for block in blocks(graph)) == cut


def test_a_sum_that_broadcasts_ends_no_part() -> None:
    graph = replace(GRAPH, values={**VALUES, "ya": Value(10)})
    assert [block.ops for block in blocks(graph)] == [1, 5]


def test_a_graph_whose_weights_tell_nothing_is_one_block() -> None:
    values = {name: replace(value, part="") for name, value in VALUES.items()}
    (block,) = blocks(replace(GRAPH, values=values))
    assert (block.block, block.macs, block.weight_bytes, block.ops) == ("main", 12, 110, 6)


def test_weights_of_all_blocks_add_up_to_what_is_stored() -> None:
    stored = sum(value.bytes for value in VALUES.values() if value.constant)
    assert sum(block.weight_bytes for block in blocks(GRAPH)) == stored


def test_a_weight_seen_through_a_view_is_the_weight() -> None:
    values = {**VALUES, "unpacked": Value(80)}
    unpack = Op("dequantize", ("wa",), ("unpacked",), view=True)
    first = replace(OPS[0], inputs=("x", "unpacked", "t"))
    graph = replace(GRAPH, values=values, ops=(unpack, first, *OPS[1:]))
    assert blocks(graph) == blocks(GRAPH)


def test_what_is_cut_out_is_all_that_is_read() -> None:
    values = {"x": Value(1000), "y": Value(30), "z": Value(20)}
    ops = (Op("slice", ("x",), ("y",), picks=True), Op("slice", ("x",), ("z",), picks=True))
    (block,) = blocks(Graph("main", values, ("x",), ("y", "z"), ops))
    assert block.activation_bytes == 2 * (30 + 20)
    assert block.working_set_bytes == 1000 + 30 + 20


def test_a_value_kept_for_later_weighs_on_every_block_between() -> None:
    ops = (*OPS[:-1], Op("mul", ("s2", "x"), ("out",)))
    assert [block.working_set_bytes for block in blocks(replace(GRAPH, ops=ops))] == [300, 400]


def test_a_graph_without_ops_has_no_blocks() -> None:
    assert file_cost("litert", "decoder", [Graph("main", {"x": Value(1)}, ("x",), ("x",), ())]) == (
        Cost("cost/1", "litert", (), 0)
    )


@pytest.mark.parametrize(
    ("off", "crossings"),
    [((), 0), ((0,), 1), ((2,), 2), ((0, 1, 2), 1), ((0, 2, 6), 4), ((4,), 0), (range(7), 0)],
)
def test_crossings_are_passes_from_one_processor_to_the_other(off: Any, crossings: int) -> None:
    ops = tuple(replace(op, off=i in off) for i, op in enumerate(OPS))
    functions = [replace(GRAPH, function=name, ops=ops) for name in ("step_low", "step_full")]
    cost = file_cost("coreml", "denoiser", functions)
    assert cost.crossings == 2 * crossings
    assert [block.function for block in cost.blocks] == ["step_low"] * 2 + ["step_full"] * 2


def test_what_is_made_of_constants_alone_crosses_nothing() -> None:
    tiled = Op("tile", ("t",), ("n",), off=True)
    graph = replace(GRAPH, ops=(OPS[0], tiled, *OPS[1:2]))
    assert file_cost("coreml", "denoiser", [graph]).crossings == 0


counts = st.integers(0, 2**63)
names = st.text(max_size=12)
costs = st.builds(
    Cost,
    st.just("cost/1"),
    names,
    st.lists(
        st.builds(BlockCost, names, names, names, counts, counts, counts, counts, counts),
        max_size=4,
        unique_by=lambda block: (block.component, block.function, block.block),
    ).map(tuple),
    counts,
)


@given(cost=costs)
def test_a_cost_survives_the_way_through_its_file(cost: Cost) -> None:
    text = cost_json(cost)
    assert from_plain(Cost, json.loads(text.encode("utf-8")), "cost.json") == cost


def test_a_cost_is_read_from_a_bundle(tmp_path: Path) -> None:
    cost = file_cost("coreml", "denoiser", [GRAPH])
    (tmp_path / "cost.json").write_text(cost_json(cost), encoding="utf-8")
    assert read_cost(tmp_path) == cost


WHOLE = json.loads(cost_json(file_cost("coreml", "denoiser", [GRAPH])))
DAMAGE: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "schema": (("schema",), "cost/2", "cost/1"),
    "target": (("target",), None, "target"),
    "unknown": (("colour",), "red", "colour"),
    "no list": (("blocks",), {}, "blocks"),
    "no block": (("blocks", 0), 7, "blocks[0]"),
    "fraction": (("blocks", 1, "macs"), 1.5, "blocks[1].macs"),
    "text": (("blocks", 1, "ops"), "4", "blocks[1].ops"),
    "truth": (("blocks", 0, "weight_bytes"), True, "weight_bytes"),
    "negative": (("blocks", 0, "activation_bytes"), -1, "activation_bytes is -1"),
    "negative crossings": (("crossings",), -2, "crossings is -2"),
    "twice": (("blocks", 1, "block"), "a", "more than once"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_cost_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    place, value, word = DAMAGE[case]
    data = copy.deepcopy(WHOLE)
    holder = data
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    refused(tmp_path, json.dumps(data).encode(), word)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[" * 5000, b"\xff\xfe", b'{"a": 1, "a": 2}', b'{"crossings": NaN}', b"[]", b"3"],
)
def test_what_is_no_cost_is_refused_in_one_sentence(tmp_path: Path, text: bytes) -> None:
    refused(tmp_path, text, "cost.json")


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    for field in WHOLE:
        data = {name: value for name, value in WHOLE.items() if name != field}
        refused(tmp_path, json.dumps(data).encode(), field)


def refused(folder: Path, text: bytes, word: str) -> None:
    (folder / "cost.json").write_bytes(text)
    with pytest.raises(InputError) as error:
        read_cost(folder)
    assert "cost.json" in str(error.value)
    assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bundle_without_a_cost_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no cost\.json; export the bundle again"):
        read_cost(tmp_path)


@pytest.fixture(scope="session")
def counted(micro) -> Mapping[str, Mapping[str, int]]:
    """MACs of every segment of the micro student, and of the modules in it, as torch counts them.

    By the segment's name and the module's path in it; "" is the whole graph.
    """
    student = make_student(micro.checkpoint, load_recipe(str(micro.recipe)))
    found = {}
    for graph in student.graphs:
        (function,) = graph.functions.values()
        each = [part for segment in function.segments for part in segment_macs(function, segment)]
        whole = sum(macs for name, macs in each if "/" not in name)
        found[graph.name] = {"": whole, **dict(each)}
    return found


def segment_macs(function: Function, segment: Segment) -> Iterator[tuple[str, int]]:
    """Half the floating-point operations of a segment, and of its modules after a slash."""
    dtypes = {spec.name: getattr(torch, spec.dtype) for spec in function.inputs}
    inputs = [torch.zeros(function.shape(name), dtype=dtypes.get(name)) for name in segment.inputs]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        segment.build()(*inputs)
    for path, counts in counter.get_flop_counts().items():
        inner = path.partition(".")[2]
        name = f"{segment.weights}/{inner}" if inner else segment.weights
        if path != "Global":
            yield name, sum(counts.values()) // 2


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("target", TARGETS)
def test_macs_are_those_that_torch_counts(micro, counted, target: str, component: str) -> None:
    cost = read_cost(micro.bundles[target])
    macs = sum(block.macs for block in cost.blocks if block.component == component)
    assert macs == counted[component][""] > 0


# A segment of the mobile graph or a module of the only one, and the block in each kind of file.
MODULES = [
    ("text_encoder", "blocks.0", "blocks_0", "blocks.0"),
    ("denoiser", "embed", "embed", "embed"),
    ("denoiser", "doubles.0", "doubles_0", "doubles.0"),
    ("denoiser", "singles.0", "singles_0", "singles.0"),
    ("denoiser", "velocity", "velocity", "velocity"),
    ("decoder", "decoder/decoder.conv_in", "decoder_conv_in", "decoder.conv_in"),
    ("decoder", "decoder/decoder.up_blocks.1", "decoder_up_blocks_1", "decoder.up_blocks.1"),
    ("decoder", "decoder/decoder.conv_out", "decoder_conv_out", "decoder.conv_out"),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("component", "module", "coreml", "litert"), MODULES)
def test_a_block_is_a_module(
    micro, counted, component: str, module: str, coreml: str, litert: str, target: str
) -> None:
    cost = read_cost(micro.bundles[target])
    found = {b.block: b for b in cost.blocks if b.component == component}
    name = {"coreml": coreml, "litert": litert}[target]
    assert found[name].macs == counted[component][module]


@pytest.mark.parametrize("target", TARGETS)
def test_the_cost_of_a_bundle_fits_its_manifest(micro, target: str) -> None:
    manifest, cost = read_manifest(micro.bundles[target]), read_cost(micro.bundles[target])
    assert cost.target == target
    assert tuple(dict.fromkeys(block.component for block in cost.blocks)) == COMPONENTS
    assert "cost.json" in {file.path for file in manifest.files}
    for entry in manifest.components:
        mine = [block for block in cost.blocks if block.component == entry.name]
        assert 0 < sum(block.weight_bytes for block in mine) < entry.weight_bytes
        given = sum(4 * math.prod(spec.shape) for spec in entry.inputs)  # float32 and int32
        assert mine[0].working_set_bytes > given
        assert all(block.ops > 0 for block in mine)
    # Token ids are looked up elsewhere, and from then on all runs on the accelerator.
    assert cost.crossings == 1


@pytest.mark.parametrize("target", TARGETS)
def test_inspect_shows_the_macs_of_every_component(micro, counted, target: str) -> None:
    shown = dict(facts(inspect(micro.bundles[target], lint=False)))
    for component in COMPONENTS:
        assert f"{counted[component]['']:,} MACs" in shown[component]


def test_a_bundle_from_before_costs_is_inspected_without(micro, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(micro.bundles["litert"], tmp_path / "older"))
    (bundle / "cost.json").unlink()
    manifest = read_manifest(bundle)
    files = tuple(file for file in manifest.files if file.path != "cost.json")
    (bundle / "manifest.json").write_text(manifest_json(replace(manifest, files=files)), "utf-8")
    found = inspect(bundle, lint=False)
    assert found.cost is None
    assert not any("MACs" in told for _, told in facts(found))
