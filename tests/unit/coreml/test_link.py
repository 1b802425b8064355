"""Segments linked into packages: against PyTorch, and against coremltools' own reading of them.

Shapes: D width, T tokens; every value between segments is (1, D, 1, length).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("coremltools")

import coremltools as ct
from coremltools.converters.mil.frontend.milproto import load as milproto

from nanoflux_export.chunking import cut
from nanoflux_export.compression.rounding import rounded
from nanoflux_export.graph import STEP_FULL, STEP_LOW, Function, MobileGraph, Segment, one_segment
from nanoflux_export.tape import Lazy, Tape
from nanoflux_export.targets.coreml import executor, target
from nanoflux_export.targets.coreml.package import open_package
from nanoflux_export.targets.coreml.program import read_function
from nanoflux_export.torch_run import torch_runner
from nanoflux_mobile.errors import InputError, NanofluxError
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme

# float32 on both sides, the same weights: only the order of summation differs.
SAME_WEIGHTS_DB = 110.0
# Every result rounded to 11 bits, over some twenty ops.
HALF_PRECISION_DB = 55.0

WIDTH, TOKENS, WORDS = 32, 16, 48
SCHEMES = ("fp16", "palette4-g16")
AXES = ("batch", "channels", "one", "tokens")
IMAGE = (1, WIDTH, 1, TOKENS)


class Words(nn.Module):
    """Ids (1, T) to columns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.table = nn.Embedding(WORDS, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).transpose(1, 2).unsqueeze(2)


class Rows(nn.Module):
    """The columns of a table, two for each block; no weights."""

    def forward(self, table: Tensor) -> tuple[Tensor, ...]:
        return table.split(2, 3)


class Block(nn.Module):
    """A gated layer; its positions, a buffer, are those of one resolution."""

    def __init__(self, seed: int, length: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Conv2d(WIDTH, WIDTH, 1)
        self.gain = nn.Parameter(torch.rand(4))  # so few that the program spells them out
        torch.manual_seed(length)
        self.register_buffer(f"places_{length}", torch.randn(1, 1, 1, length))
        self.length = length
        self.register_buffer("order", torch.arange(WIDTH - 1, -1, -1))  # of integers

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        shift, gate = rows.split(1, 3)
        groups = x.reshape(1, 4, WIDTH // 4, self.length) * self.gain[None, :, None, None]
        y = groups.reshape(x.shape)[:, self.order] + shift + getattr(self, f"places_{self.length}")
        return x + gate * torch.tanh(self.layer(y))


class Halve(nn.Module):
    """Every two tokens become one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.conv = nn.Conv2d(WIDTH, WIDTH, (1, 2), stride=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Double(nn.Module):
    """And back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(10)
        self.conv = nn.ConvTranspose2d(WIDTH, WIDTH, (1, 2), stride=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Sum(nn.Module):
    """The image and the words, no weights."""

    def forward(self, latents: Tensor, words: Tensor) -> Tensor:
        return latents + words


BLOCKS = 3
INPUTS = (
    TensorSpec("latents", AXES, IMAGE, "float32"),
    TensorSpec("ids", ("batch", "tokens"), (1, TOKENS), "int32"),
    TensorSpec("table", AXES, (1, WIDTH, 1, 2 * BLOCKS), "float32"),
)
OUTPUTS = (TensorSpec("velocity", AXES, IMAGE, "float32"),)


def lazy(make: Callable[[], nn.Module]) -> Lazy:
    return Lazy(make, sum(tensor.numel() for tensor in make().parameters()))


def function(low: bool) -> Function:
    """Words, rows and three blocks, the second at half the length in low steps."""
    tape = Tape()
    tape.put("words", lazy(Words), ("ids",), y=IMAGE)
    rows = {f"rows_{i}": (1, WIDTH, 1, 2) for i in range(BLOCKS)}
    tape.put("rows", lazy(Rows), ("table",), **rows)
    tape.put("sum", lazy(Sum), ("latents", "y"), x_0=IMAGE)
    half = (1, WIDTH, 1, TOKENS // 2)
    value = "x_0"
    for i in range(BLOCKS):
        here = low and i == 1
        length, made = (TOKENS // 2, f"low_{i + 1}") if here else (TOKENS, f"x_{i + 1}")
        if here:
            tape.put("halve", lazy(Halve), (value,), low_1=half)
            value = "low_1"
        last = i + 1 == BLOCKS
        shape = half if here else IMAGE
        kind = "blocks_low" if here else "blocks_full"
        block = lazy(partial(Block, i, length))
        name = "velocity" if last else made
        tape.put(f"blocks.{i}", block, (value, f"rows_{i}"), kind, **{name: shape})
        value = name
        if here:
            tape.put("double", lazy(Double), (value,), low_up=IMAGE)
            value = "low_up"
    return tape.function(INPUTS, OUTPUTS)


@pytest.fixture(scope="module")
def graph() -> MobileGraph:
    """Two functions; all packages of this file share its templates."""
    functions = {STEP_LOW: function(True), STEP_FULL: function(False)}
    return MobileGraph("denoiser", functions)


@pytest.fixture(scope="module")
def packages(graph: MobileGraph, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """It, by scheme."""
    folder = tmp_path_factory.mktemp("link")
    paths = {scheme: folder / f"{scheme}.mlpackage" for scheme in SCHEMES}
    for scheme, path in paths.items():
        target.write(graph, parse_scheme(scheme), path)
    return paths


def drawn(specs: Sequence[TensorSpec] = INPUTS) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        spec.name: draw.integers(0, WORDS, spec.shape).astype(np.int32)
        if spec.dtype == "int32"
        else draw.normal(size=spec.shape).astype(spec.dtype)
        for spec in specs
    }


def segments(graph: MobileGraph) -> Iterator[Segment]:
    for part in graph.functions.values():
        yield from part.segments


def blocks_of(package: Path) -> Iterator[tuple[Any, Any]]:
    """Every function's message and its body."""
    for part in open_package(package).model.mlProgram.functions.values():
        yield part, part.block_specializations[part.opset]


@pytest.mark.parametrize("name", [STEP_LOW, STEP_FULL])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_function_answers_like_the_twin(
    graph: MobileGraph, packages: dict[str, Path], scheme: str, name: str
) -> None:
    twin = torch_runner(
        graph.functions[name], lambda _, module: rounded(module, parse_scheme(scheme))
    )
    expected = twin(drawn())["velocity"]
    component = Component("denoiser", INPUTS, OUTPUTS)
    for precision, floor in (("fp32", SAME_WEIGHTS_DB), ("fp16", HALF_PRECISION_DB)):
        run = target.load(packages[scheme], component, function=name, precision=precision)
        assert psnr_db(run(drawn())["velocity"], expected) >= floor


@pytest.mark.parametrize("scheme", SCHEMES)
def test_stored_gives_every_weight_as_the_twin_has_it(
    graph: MobileGraph, packages: dict[str, Path], scheme: str
) -> None:
    stored, seen = target.stored(packages[scheme]), 0
    for segment in segments(graph):
        twin = rounded(segment.build(), parse_scheme(scheme))
        for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
            if tensor.is_floating_point():
                found = stored(f"{segment.weights}/{name}")
                np.testing.assert_array_equal(found.reshape(tensor.shape), tensor.detach().numpy())
                seen += 1
    assert seen == 17 + 13  # the low step has both resamplers besides


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_are_in_the_file_once(packages: dict[str, Path], scheme: str) -> None:
    """Functions share them, and what is equal (places, the order) lies there once too."""
    places: dict[str, set[tuple[int, ...]]] = {}
    sizes: dict[tuple[int, ...], int] = {}
    package = open_package(packages[scheme])
    for name in (STEP_LOW, STEP_FULL):
        for key, literal in read_function(package, name).literals.items():
            if literal.place:
                places.setdefault(key, set()).add(literal.place)
            if len(literal.place) == 1:  # palettes have two, each a literal itself
                sizes[literal.place] = literal.stored_bytes
    assert all(len(found) == 1 for found in places.values())
    shared = [key for key in places if "places_16" in key]
    assert len(shared) == BLOCKS
    assert len(set.union(*(places[key] for key in shared))) == 1
    orders = {place for key, found in places.items() if "__" not in key for place in found}
    assert len(orders) == 1
    (file,) = packages[scheme].rglob("weight.bin")
    room = sum(64 + -(-size // 64) * 64 for size in sizes.values())  # a record, whole lines
    assert 64 + room - 63 <= file.stat().st_size <= 64 + room


def test_the_four_weights_of_a_gain_are_spelled_out(packages: dict[str, Path]) -> None:
    function = read_function(open_package(packages["fp16"]), STEP_FULL)
    assert function.literals["blocks_0__gain"].place == ()
    assert function.literals["blocks_0__gain"].read().size == 4


def test_a_module_is_built_once_for_all_that_use_its_weights(
    graph: MobileGraph, packages: dict[str, Path], tmp_path: Path
) -> None:
    """The middle block twice: each resolution has places of its own."""
    built: Counter[str] = Counter()

    def counted(segment: Segment) -> Segment:
        def build() -> nn.Module:
            built[segment.weights] += 1
            return segment.build()

        return replace(segment, build=build)

    functions = {
        name: replace(part, segments=tuple(map(counted, part.segments)))
        for name, part in graph.functions.items()
    }
    out = tmp_path / "again.mlpackage"
    target.write(replace(graph, functions=functions), parse_scheme("fp16"), out)
    names = ("words", "halve", "double", "blocks.0", "blocks.1", "blocks.2")
    assert built == {name: 1 + (name == "blocks.1") for name in names}
    assert files(out) == files(packages["fp16"])


def test_values_have_names_of_their_own_and_are_made_before_they_are_used(
    packages: dict[str, Path],
) -> None:
    for part, block in blocks_of(packages["palette4-g16"]):
        known = {value.name for value in part.inputs}
        labels = set()
        for op in block.operations:
            for argument in op.inputs.values():
                for binding in argument.arguments:
                    assert binding.WhichOneof("binding") == "value" or binding.name in known
            made = [value.name for value in op.outputs]
            assert not known & set(made)
            assert all(name.isidentifier() for name in made)
            known.update(made)
            (label,) = op.attributes["name"].immediateValue.tensor.strings.values
            assert label not in labels
            labels.add(label)
        assert set(block.outputs) <= known


@pytest.fixture(scope="module")
def shelf(
    graph: MobileGraph, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], list[tuple[MobileGraph, Path]]]:
    """The chunks of at most that many bytes and their packages, written once for each limit."""
    folder, made = tmp_path_factory.mktemp("chunks"), {}

    def chunks(most: int) -> list[tuple[MobileGraph, Path]]:
        if most not in made:
            made[most] = []
            for i, chunk in enumerate(cut(graph, parse_scheme("fp16"), most, target.WIRES)):
                path = folder / f"{most}-{i}.mlpackage"
                target.write(chunk, parse_scheme("fp16"), path)
                made[most].append((chunk, path))
        return made[most]

    return chunks


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(most=st.integers(1, 14_000), name=st.sampled_from([STEP_LOW, STEP_FULL]))
def test_chunks_one_after_another_are_the_whole(
    shelf: Any, packages: dict[str, Path], most: int, name: str
) -> None:
    known: dict[str, np.ndarray] = drawn()
    for chunk, path in shelf(most // 2000 * 2000 + 1):
        if name in chunk.functions:
            part = chunk.functions[name]
            component = Component("denoiser", part.inputs, part.outputs)
            run = target.load(path, component, function=name)
            known |= run({spec.name: known[spec.name] for spec in part.inputs})
    whole = executor.load(packages["fp16"], function=name)(**drawn())
    np.testing.assert_array_equal(known["velocity"], whole["velocity"])


def test_a_chunk_is_the_same_file_whatever_was_written_before_it(
    graph: MobileGraph, shelf: Any, tmp_path: Path
) -> None:
    """As when a run that was stopped goes on."""
    chunk, path = shelf(4001)[1]
    alone = replace(chunk, forms={})
    target.write(alone, parse_scheme("fp16"), tmp_path / "alone.mlpackage")
    assert files(tmp_path / "alone.mlpackage") == files(path)


def files(package: Path) -> dict[str, bytes]:
    found = sorted(path for path in package.rglob("*") if path.is_file())
    return {str(path.relative_to(package)): path.read_bytes() for path in found}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_coremltools_reads_the_program_back(
    graph: MobileGraph, packages: dict[str, Path], scheme: str
) -> None:
    """Its loader builds every op anew and infers what it makes: all of that we declared so."""
    model = ct.models.MLModel(str(packages[scheme]), skip_model_load=True)
    spec = ct.utils.load_spec(str(packages[scheme]))
    assert spec == model.get_spec()
    program = milproto.load(spec, spec.specificationVersion, model.weights_dir)
    assert program.functions.keys() == graph.functions.keys()
    for name, function in program.functions.items():
        assert list(function.inputs) == [spec.name for spec in INPUTS]
        assert [value.name for value in function.outputs] == ["velocity"]
        declared = read_function(open_package(packages[scheme]), name)
        made = {key: kind for op in declared.operations for key, kind in op.outputs.items()}
        values = {value.name: value for op in function.operations for value in op.outputs}
        assert len(made) > 20
        for key, kind in made.items():
            assert values[key].shape == kind.shape
            assert ct.converters.mil.mil.types.builtin_to_string(values[key].dtype) == kind.dtype


@pytest.mark.parametrize("scheme", SCHEMES)
def test_coremltools_decodes_the_weights_that_we_do(
    graph: MobileGraph, packages: dict[str, Path], scheme: str
) -> None:
    model = ct.models.MLModel(str(packages[scheme]), skip_model_load=True)
    spec, stored = model.get_spec(), target.stored(packages[scheme])
    program = milproto.load(spec, spec.specificationVersion, model.weights_dir)
    for name, function in program.functions.items():
        ops = {op.outputs[0].name: op for op in function.operations}
        for segment in graph.functions[name].segments:
            for key, tensor in segment.build().state_dict().items():
                if tensor.is_floating_point():
                    op = ops[f"{segment.weights}__{key}".replace(".", "_")]
                    dense = op.op_type == "const"
                    theirs = op.outputs[0].val if dense else op.materialized_val_inference()
                    np.testing.assert_array_equal(theirs, stored(f"{segment.weights}/{key}"))


class Whole(nn.Module):
    """All segments of a function as one module."""

    def __init__(self, part: Function) -> None:
        super().__init__()
        self.part = part
        self.stages = nn.ModuleList(segment.build() for segment in part.segments)

    def forward(self, *given: Tensor) -> Tensor:
        values = dict(zip((spec.name for spec in self.part.inputs), given, strict=True))
        for segment, stage in zip(self.part.segments, self.stages, strict=True):
            made = stage(*(values[name] for name in segment.inputs))
            values |= zip(
                segment.outputs, [made] if isinstance(made, Tensor) else made, strict=True
            )
        return values["velocity"]


def converted_whole(part: Function, path: Path) -> Path:
    """A function unsplit and converted by coremltools alone."""
    examples = [torch.from_numpy(array) for array in drawn().values()]
    traced = torch.jit.trace(Whole(part).eval(), examples, check_trace=False)
    numpy_types = {"float32": np.float32, "int32": np.int32}
    model = ct.convert(
        traced,
        inputs=[ct.TensorType(s.name, s.shape, numpy_types[s.dtype]) for s in part.inputs],
        outputs=[ct.TensorType("velocity", None, np.float32)],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def theirs(graph: MobileGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same two functions, all by coremltools: converted whole, then merged."""
    folder = tmp_path_factory.mktemp("theirs")
    merged = ct.utils.MultiFunctionDescriptor()
    for name, part in graph.functions.items():
        path = converted_whole(part, folder / f"{name}.mlpackage")
        merged.add_function(str(path), "main", name)
    merged.default_function_name = STEP_LOW
    ct.utils.save_multifunction(merged, str(folder / "both.mlpackage"))
    return folder / "both.mlpackage"


@pytest.mark.parametrize("name", [STEP_LOW, STEP_FULL])
def test_it_computes_what_coremltools_makes_of_the_whole(
    packages: dict[str, Path], theirs: Path, name: str
) -> None:
    ours, other = (executor.load(path, function=name) for path in (packages["fp16"], theirs))
    assert psnr_db(ours(**drawn())["velocity"], other(**drawn())["velocity"]) >= SAME_WEIGHTS_DB


def test_the_description_is_laid_out_as_coremltools_does(
    packages: dict[str, Path], theirs: Path
) -> None:
    ours, other = (ct.utils.load_spec(str(path)) for path in (packages["fp16"], theirs))
    assert ours.specificationVersion == other.specificationVersion
    for spec in (ours, other):
        spec.description.metadata.Clear()
    assert ours.description == other.description
    assert ours.mlProgram.version == other.mlProgram.version
    assert {f.opset for f in ours.mlProgram.functions.values()} == {
        f.opset for f in other.mlProgram.functions.values()
    }
    trees = [{p.relative_to(path) for p in path.rglob("*")} for path in (packages["fp16"], theirs)]
    assert trees[0] == trees[1]


def test_its_weights_take_no_more_room_than_theirs(packages: dict[str, Path], theirs: Path) -> None:
    ours, other = (next(p.rglob("weight.bin")).stat().st_size for p in (packages["fp16"], theirs))
    assert ours <= other


def test_a_summary_counts_what_functions_share_once(packages: dict[str, Path]) -> None:
    summary = target.summarize(packages["palette4-g16"])
    assert summary.functions == (STEP_FULL, STEP_LOW)
    # Three blocks, the table of words, both resamplers; their biases, sixteen places, the order.
    assert summary.storage == {"lut_to_dense": 6, "dense": 5 + 1 + 1}
    assert summary.ops["conv"] == 2 * BLOCKS + 1
    assert [line.name for line in summary.inputs] == [spec.name for spec in INPUTS]
    assert [line.name for line in summary.outputs] == ["velocity"]
    assert summary.bytes == sum(map(len, files(packages["palette4-g16"]).values()))


def test_cost_names_the_segments_of_both_functions(packages: dict[str, Path]) -> None:
    blocks = target.cost(packages["fp16"], "denoiser").blocks
    names = {
        name: [block.block for block in blocks if block.function == name]
        for name in (STEP_FULL, STEP_LOW)
    }
    full = ["words", "blocks_0", "blocks_1", "blocks_2"]
    assert names[STEP_FULL] == full
    assert names[STEP_LOW] == [*full[:2], "halve", "blocks_1", "double", "blocks_2"]
    macs = {(block.function, block.block): block.macs for block in blocks}
    assert macs[STEP_FULL, "blocks_1"] == 2 * macs[STEP_LOW, "blocks_1"] == WIDTH * WIDTH * TOKENS


def component(inputs: Mapping[str, tuple[int, ...]], outputs: Mapping[str, Any]) -> Component:
    sides = (
        tuple(
            TensorSpec(name, tuple(f"axis {i}" for i in range(len(shape))), shape, "float32")
            for name, shape in side.items()
        )
        for side in (inputs, outputs)
    )
    return Component("denoiser", *sides)


class Pair(nn.Module):
    """Two values of no weights."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(x), x + y


def test_a_graph_without_weights(tmp_path: Path) -> None:
    shape = (1, 8, 1, 32)
    whole = component(dict.fromkeys("xy", shape), dict.fromkeys("ab", shape))
    path = tmp_path / "out.mlpackage"
    target.write(one_segment(whole, Pair()), parse_scheme("palette4"), path)
    inputs = drawn(whole.inputs)
    made = target.load(path, whole)(inputs)
    np.testing.assert_array_equal(made["a"], np.maximum(inputs["x"], 0))
    np.testing.assert_array_equal(made["b"], inputs["x"] + inputs["y"])
    assert target.summarize(path).storage == {}
    spec = ct.utils.load_spec(str(path))
    weights = ct.models.MLModel(str(path), skip_model_load=True).weights_dir
    assert milproto.load(spec, spec.specificationVersion, weights).functions.keys() == {"main"}


class Masked(nn.Module):
    """A mask of a module's own, and scores that it is added to."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("mask", torch.zeros(1, 1, 4, 8))
        self.mask[..., 3] = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x + self.mask, -1)


SCORES = component({"x": (1, 2, 4, 8)}, {"y": (1, 2, 4, 8)})


def test_a_mask_may_hold_infinities_but_nothing_that_is_no_number(tmp_path: Path) -> None:
    graph = one_segment(SCORES, Masked(-np.inf))
    target.write(graph, parse_scheme("fp16"), tmp_path / "x.mlpackage")
    made = target.load(tmp_path / "x.mlpackage", SCORES)(drawn(SCORES.inputs))["y"]
    assert (made[..., 3] == 0).all()
    np.testing.assert_allclose(made.sum(-1), 1, rtol=1e-6)  # float32
    bad = replace(one_segment(SCORES, Masked(np.nan)), forms=graph.forms)
    with pytest.raises(InputError, match="denoiser/mask holds 4 values that are NaN"):
        target.write(bad, parse_scheme("fp16"), tmp_path / "y.mlpackage")


def row(*parts: tuple[str, nn.Module]) -> MobileGraph:
    """Segments one after another, all of kind "layers" and with (1, 8, 1, 32) in and out."""
    tape, shape = Tape(), (1, 8, 1, 32)
    names = ["x", *(f"x_{i}" for i in range(1, len(parts))), "y"]
    for i, (weights, module) in enumerate(parts):
        built = Lazy(lambda module=module: module)
        tape.put(weights, built, (names[i],), "layers", **{names[i + 1]: shape})
    whole = component({"x": shape}, {"y": shape})
    return MobileGraph("denoiser", {"main": tape.function(whole.inputs, whole.outputs)})


def layer(bias: bool = True, width: int = 1) -> nn.Module:
    return nn.Conv2d(8, 8, (1, width), padding="same", bias=bias)


REFUSED: dict[str, tuple[nn.Module, str, str]] = {
    "fewer weights": (layer(bias=False), "b", "b and the first layers do not both have .* bias"),
    "another shape": (layer(width=3), "b", "b/weight is .* but is used as"),
    "one name": (layer(), "a_1", "a_1/weight and a.1/weight have one name in a program"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_cannot_be_stamped(tmp_path: Path, case: str) -> None:
    odd, name, reason = REFUSED[case]
    graph = row(("start", layer()), ("a.1", layer()), (name, odd), ("end", layer()))
    with pytest.raises(NanofluxError, match=reason):
        target.write(graph, parse_scheme("fp16"), tmp_path / "out.mlpackage")
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_crosses_needs_a_name_that_a_program_can_have(tmp_path: Path) -> None:
    shape = (1, 8, 1, 32)
    graph = one_segment(component({"rows.0": shape}, {"y": shape}), layer())
    with pytest.raises(NanofluxError, match=r"has no value rows\.0"):
        target.write(graph, parse_scheme("fp16"), tmp_path / "out.mlpackage")


def test_no_two_values_of_a_program_share_a_name(tmp_path: Path) -> None:
    """A wire that is called as a weight is."""
    tape, shape = Tape(), (1, 8, 1, 32)
    tape.put("a", Lazy(layer), ("x",), a__weight=shape)
    tape.put("b", Lazy(layer), ("a__weight",), y=shape)
    whole = component({"x": shape}, {"y": shape})
    graph = MobileGraph("denoiser", {"main": tape.function(whole.inputs, whole.outputs)})
    with pytest.raises(NanofluxError, match="would be called a__weight"):
        target.write(graph, parse_scheme("fp16"), tmp_path / "out.mlpackage")
