"""Files stamped out of one converted segment per kind: what they hold and what they compute.

Shapes: D channels, S tokens of a function, R rows; activations are (1, D, 1, S).
"""

from __future__ import annotations

import dataclasses
import weakref
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.compression.rounding import rounded
from nanoflux_export.graph import Function, MobileGraph, Segment, one_segment
from nanoflux_export.targets.litert import target
from nanoflux_export.targets.litert.convert import convert
from nanoflux_export.targets.litert.encoding import Form, Layout, encode
from nanoflux_export.targets.litert.flatbuffer import content, unpacked
from nanoflux_export.targets.litert.model_file import read_model
from nanoflux_export.targets.litert.quantise import quantise, whole_steps
from nanoflux_mobile.errors import InputError, NanofluxError
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme

D, BLOCKS, R = 64, 4, 3
TOKENS = {"step_low": 8, "step_full": 24}
INT8 = parse_scheme("int8")

# The runtime rounds the input of each convolution to 8 bits: measured 63 dB. A block left out,
# taken twice or out of order leaves 30 dB at most.
INT8_DB = 45.0


class Block(nn.Module):
    """A residual block with a gate from outside, and a table that is the same in every block."""

    def __init__(self, seed: int, hidden: int = 2 * D) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.up, self.down = nn.Conv2d(D, hidden, 1), nn.Conv2d(hidden, D, 1)
        self.gain = nn.Parameter(torch.randn(1, D, 1, 1))
        self.register_buffer("table", torch.linspace(-1, 1, D).reshape(1, D, 1, 1))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x + gate * self.down(F.gelu(self.up(x * self.gain + self.table), approximate="tanh"))


class Split(nn.Module):
    """Rows for each block; no weights."""

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split(1, 3)


@dataclass
class Builder:
    """Makes blocks and watches that they go again."""

    alive: weakref.WeakSet[nn.Module] = field(default_factory=weakref.WeakSet)
    built: list[int] = field(default_factory=list)

    def __call__(self, seed: int) -> nn.Module:
        assert not self.alive, "a segment was built while another was still held"
        self.built.append(seed)
        block = Block(seed)
        self.alive.add(block)
        return block


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, ("batch", "channels", "one", "tokens"), shape, "float32")


def function(tokens: int, builder: Builder) -> Function:
    gates = tuple(f"gate.{i}" for i in range(BLOCKS))
    stream = ("latents", *(f"x.{i}" for i in range(1, BLOCKS)), "velocity")
    blocks = tuple(
        Segment(
            f"block at {tokens}",
            f"blocks.{i}",
            lambda i=i: builder(i),
            (stream[i], gates[i]),
            (stream[i + 1],),
        )
        for i in range(BLOCKS)
    )
    split = Segment("split", "rows", Split, ("step_table",), gates)
    return Function(
        (spec("latents", 1, D, 1, tokens), spec("step_table", 1, D, 1, BLOCKS)),
        (spec("velocity", 1, D, 1, tokens),),
        (split, *blocks),
        {**dict.fromkeys(gates, (1, D, 1, 1)), **dict.fromkeys(stream[1:-1], (1, D, 1, tokens))},
    )


@dataclass(frozen=True)
class Written:
    """A graph of two functions, its int8 file, and what was heard and built on the way."""

    graph: MobileGraph
    path: Path
    heard: list[tuple[int, int]]
    built: list[int]

    def component(self, name: str) -> Component:
        found = self.graph.functions[name]
        return Component("denoiser", found.inputs, found.outputs)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    builder, heard = Builder(), []
    graph = MobileGraph(
        "denoiser", {name: function(tokens, builder) for name, tokens in TOKENS.items()}
    )
    path = tmp_path_factory.mktemp("linked") / "denoiser.tflite"
    target.write(graph, INT8, path, lambda done, of: heard.append((done, of)))
    return Written(graph, path, heard, builder.built)


def inputs(name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = {"latents": (1, D, 1, TOKENS[name]), "step_table": (1, D, 1, BLOCKS)}
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", TOKENS)
def test_each_function_computes_what_torch_computes_on_the_stored_weights(written, name):
    given = inputs(name)
    x, rows = (torch.from_numpy(value) for value in given.values())
    with torch.no_grad():
        for i in range(BLOCKS):
            x = rounded(Block(i), INT8, half_constants=False)(x, rows[:, :, :, i : i + 1])
    run = target.load(written.path, written.component(name), function=name)
    assert psnr_db(run(given)["velocity"], x.numpy()) >= INT8_DB


def test_the_newer_runtime_computes_the_same(written):
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator

    model = CompiledModel.from_file(str(written.path), HardwareAccelerator.CPU)
    signatures = model.get_signature_list()
    assert list(signatures) == list(TOKENS)
    for at, (name, ends) in enumerate(signatures.items()):
        given, out = inputs(name), model.create_output_buffers(at)
        buffers = model.create_input_buffers(at)
        for buffer, key in zip(buffers, ends["inputs"], strict=True):
            buffer.write(given[key].ravel())
        model.run_by_index(at, buffers, out)
        expected = target.load(written.path, written.component(name), function=name)(given)
        made = out[0].read(expected["velocity"].size, np.float32)
        np.testing.assert_array_equal(made, expected["velocity"].ravel())


def test_every_stored_weight_is_its_source_rounded(written):
    read = target.stored(written.path)
    for i in range(BLOCKS):
        state = rounded(Block(i), INT8, half_constants=False).state_dict()
        for name, value in state.items():
            np.testing.assert_array_equal(read(f"blocks.{i}/{name}"), value.numpy())
    with pytest.raises(KeyError):
        read("blocks.0/nothing")


def test_weights_are_stored_once_for_both_functions_and_equal_ones_once_for_all(written):
    graphs = read_model(written.path).graphs
    places = [
        {tensor.name: tensor.buffer for tensor in graph.tensors if "/" in tensor.name}
        for graph in graphs
    ]
    assert places[0] == places[1]
    tables = {place for name, place in places[0].items() if name.endswith("/table")}
    ups = {place for name, place in places[0].items() if name.endswith("/up.weight")}
    assert (len(tables), len(ups)) == (1, BLOCKS)
    values = sum(p.numel() for i in range(BLOCKS) for p in Block(i).up.parameters())
    assert values < written.path.stat().st_size < 4 * values


def test_constants_lie_behind_the_flatbuffer_each_at_its_place(written):
    model, _ = unpacked(written.path)
    entries = sorted({(buffer.offset, buffer.size) for buffer in model.buffers if buffer.size})
    for (offset, size), (following, _) in pairwise(entries):
        assert offset % 16 == 0
        assert offset + size <= following
    assert entries[-1][0] + entries[-1][1] == written.path.stat().st_size


def test_segments_are_built_one_at_a_time_and_stored_once(written):
    """Once for the template of each kind, once for the weights; `Builder` asserts the rest."""
    assert written.built == [0, 0, *range(BLOCKS)]
    steps = 3 + 2 * (1 + BLOCKS)
    assert written.heard == [(step, steps) for step in range(1, steps + 1)]


def test_blocks_are_called_after_their_weights(written):
    found = target.cost(written.path, "denoiser").blocks
    assert [(b.function, b.block) for b in found] == [
        (name, f"blocks.{i}") for name in TOKENS for i in range(BLOCKS)
    ]
    for block in found:
        assert block.macs == 2 * D * 2 * D * TOKENS[block.function]
    assert {finding.rule for finding in target.lint(written.path, "denoiser")} == {"gpu/transposes"}


def test_both_functions_are_summed_up(written):
    summary = target.summarize(written.path)
    assert summary.functions == tuple(TOKENS)
    assert summary.ops["CONV_2D"] == 2 * BLOCKS * len(TOKENS)
    assert summary.storage["int8"] == 2 * BLOCKS


def test_another_function_is_refused(written):
    with pytest.raises(InputError, match="no signature main, only step_low, step_full"):
        target.load(written.path, written.component("step_low"))


def changed(written: Written, **changes: object) -> MobileGraph:
    """The graph with its last segment changed; what is converted already stays so."""
    name, found = list(written.graph.functions.items())[-1]
    *rest, last = found.segments
    segments = (*rest, dataclasses.replace(last, **changes))
    return dataclasses.replace(
        written.graph, functions={name: dataclasses.replace(found, segments=segments)}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"build": lambda: Block(0, 3 * D)}, r"blocks\.3 has no up\.bias of shape \(128,\)"),
        ({"build": lambda: nn.Identity()}, r"blocks\.3 has no "),
        ({"inputs": ("step_table", "gate.3")}, r"segments of kind block at 24 have other inputs"),
    ],
)
def test_segments_of_one_kind_that_differ_are_refused(written, tmp_path, changes, message):
    with pytest.raises(NanofluxError, match=message):
        target.write(changed(written, **changes), INT8, tmp_path / "x.tflite")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def direct(block, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same block by the converter and the quantiser alone, with its own weights in it."""
    folder = tmp_path_factory.mktemp("direct")
    files = {name: folder / f"{name}.tflite" for name in ("fp32", "fp16", "int8")}
    given = {name: torch.from_numpy(value) for name, value in block.inputs.items()}
    outputs = [spec.name for spec in block.component.outputs]
    convert(block.module, given, outputs, files["fp32"])
    for scheme in ("fp16", "int8"):
        quantise(files["fp32"], whole_steps(parse_scheme(scheme)), files[scheme])
    return files


@pytest.mark.parametrize("scheme", ["fp16", "int8"])
def test_a_linked_file_is_the_directly_converted_one_but_for_names(block, direct, scheme):
    """Same ops in the same order, and under them the same constants, byte for byte."""
    assert described(block.files[scheme]) == described(direct[scheme])
    runners = [target.load(path, block.component) for path in (block.files[scheme], direct[scheme])]
    ours, theirs = (run(block.inputs) for run in runners)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


def described(path: Path) -> list[tuple[object, ...]]:
    """Ops with their options, and every tensor they take or make, with its bytes and scales."""
    model, data = unpacked(path)
    (graph,) = model.subgraphs

    def tensor(at: int) -> tuple[object, ...]:
        if at < 0:
            return ()
        found = graph.tensors[at]
        grid, shape = found.quantization, tuple(found.shape)
        scales = () if grid is None or grid.scale is None else tuple(grid.scale)
        zeros = () if grid is None or grid.zeroPoint is None else tuple(grid.zeroPoint)
        held = content(model.buffers[found.buffer], data).tobytes()
        return found.type, shape, held, scales, zeros, grid and grid.quantizedDimension

    return [
        (
            vars(model.operatorCodes[op.opcodeIndex]),
            op.builtinOptions and (type(op.builtinOptions), vars(op.builtinOptions)),
            [tensor(at) for at in (*op.inputs, *op.outputs)],
        )
        for op in graph.operators
    ]


def test_a_file_that_does_not_tell_its_weights_is_refused(direct):
    with pytest.raises(InputError, match="does not tell its weights"):
        target.stored(direct["int8"])


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (b'{"blocks.0/', b'["blocks.0/', "cannot be read"),
        (b'{"blocks.0/', b'{"blocks.7/', r"blocks\.7/.* is missing"),
        (b",[0,1,2,3]]", b",[0,1,2,2]]", "is no order of 4 axes"),
        (b"[[128,64,1,1]", b"[[128,65,1,1]", r"INT8 \(128, 1, 1, 64\), but the weight is"),
    ],
)
def test_a_file_that_tells_its_weights_wrongly_is_refused(written, tmp_path, before, after, reason):
    whole, path = written.path.read_bytes(), tmp_path / "x.tflite"
    assert before in whole
    path.write_bytes(whole.replace(before, after))
    with pytest.raises(InputError, match=f"does not tell its weights .*{reason}"):
        target.stored(path)


class Folded(nn.Module):
    """A factor that the converter multiplies into a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.exp(self.factor)


def test_a_weight_that_the_converter_changes_is_refused_by_name(tmp_path):
    ends = [(TensorSpec(name, ("batch", "x"), (1, 8), "float32"),) for name in "xy"]
    graph = one_segment(Component("denoiser", *ends), Folded())
    with pytest.raises(NanofluxError, match="changed or dropped the weight factor"):
        target.write(graph, INT8, tmp_path / "x.tflite")


def test_a_weight_beyond_half_precision_is_refused():
    form = Form("up.weight", Layout((2, 2), (0, 1)), (2, 2), "FLOAT16")
    with pytest.raises(InputError, match=r"up\.weight holds 70000, but half precision"):
        encode(form, torch.tensor([[1.0, 2.0], [3.0, 7e4]]))
