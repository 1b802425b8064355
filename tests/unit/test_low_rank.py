"""Layers split into a low-rank product and a rest: equal in float32, better in few bits, storable.

Shapes: D outputs, C inputs, R rank, S positions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanoflux_export.compression.plan import Plan
from nanoflux_export.compression.rounding import rounded
from nanoflux_export.graph import MAIN, Function, MobileGraph, Segment
from nanoflux_export.layers import layers_of
from nanoflux_export.rewrites.low_rank import product, split, with_low_rank
from nanoflux_export.torch_run import torch_runner
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, Scheme, TensorSpec, parse_scheme

EQUAL_DB = 120.0
"""Equal in float32 but for the order of sums."""
SAVED_DB = {"coreml": 90.0, "litert": 90.0}
"""The same weights; Core ML stores the scalars of a program in half precision."""
NEAR_BEST = 1.01
"""The search may leave 1 % more than the best product; on flat spectra it leaves the most."""

WIDTH, LENGTH = 64, 32
AXES = ("batch", "channels", "one", "tokens")
SHAPE = (1, WIDTH, 1, LENGTH)
X, Y = (TensorSpec(name, AXES, SHAPE, "float32") for name in "xy")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spiked(rows: int, columns: int, seed: int) -> Tensor:
    """A flat matrix with eight directions ten times as strong: what few bits cannot hold."""
    strong = normal(seed, rows, 8) @ normal(seed + 1, 8, columns) / (rows * columns) ** 0.25
    return 0.05 * (normal(seed + 2, rows, columns) + 2 * strong)


class Block(nn.Module):
    """A feed-forward with a residual, (1, C, 1, S)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(WIDTH, 96, 1), nn.Conv2d(96, WIDTH, 1, bias=False)
        with torch.no_grad():
            self.up.bias.copy_(normal(seed, 96))
            for i, layer in enumerate((self.up, self.down)):
                layer.weight.copy_(spiked(*layer.weight.shape[:2], seed + i)[:, :, None, None])
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, 1, S) in and out."""
        return x + self.down(torch.relu(self.up(x)))


def graph_of(count: int = 3) -> MobileGraph:
    """Blocks of one kind in a row."""
    wires = ["x", *(f"h_{i}" for i in range(1, count)), "y"]
    parameters = sum(p.numel() for p in Block(0).parameters())
    segments = tuple(
        Segment(
            "blocks",
            f"blocks.{i}",
            lambda i=i: Block(10 * i).eval(),
            (wires[i],),
            (wires[i + 1],),
            parameters,
        )
        for i in range(count)
    )
    return MobileGraph(
        "denoiser", {MAIN: Function((X,), (Y,), segments, dict.fromkeys(wires[1:-1], SHAPE))}
    )


LAYERS = {
    "linear": nn.Linear(24, 40),
    "linear without bias": nn.Linear(24, 40, bias=False),
    "wide linear": nn.Linear(40, 24),
    "convolution": nn.Conv2d(24, 40, 1),
    "convolution without bias": nn.Conv2d(40, 24, 1, bias=False),
}


@pytest.mark.parametrize("scheme", ["svd1-fp16", "svd8-palette2", "svd24-fp16", "svd8-int8"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_sum_is_the_layer(layer, scheme):
    x = normal(0, 5, layer.weight.shape[1], *([1, 7] if layer.weight.ndim == 4 else []))
    scheme = parse_scheme(scheme)
    made = split(layer, {"": scheme})
    with torch.no_grad():
        assert psnr_db(made(x).numpy(), layer(x).numpy()) >= EQUAL_DB
    state = made.state_dict()
    rank, (outputs, inputs) = scheme.rank, layer.weight.shape[:2]
    assert state["rest.weight"].shape == layer.weight.shape
    assert state["up.weight"].shape[:2] == (outputs, rank)
    assert state["down.weight"].shape[:2] == (rank, inputs)
    assert ("rest.bias" in state) == (layer.bias is not None)
    for name in ("up.weight", "down.weight"):
        assert torch.equal(state[name], state[name].half().float())


def test_only_the_named_layers_change_and_the_rest_is_shared():
    block = Block(0)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    made = split(block, {"down": parse_scheme("svd4-fp16")})
    assert made.up.weight is block.up.weight
    assert made.up is not block.up
    assert {n for n, _ in made.named_parameters()} == {
        *("up.weight", "up.bias", "down.rest.weight", "down.down.weight", "down.up.weight")
    }
    assert all(torch.equal(block.state_dict()[name], old) for name, old in before.items())


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("rank", [1, 8, 16])
@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
def test_the_product_is_nearly_the_best_there_is(shape, rank, weighted):
    """The best one leaves the singular values after the rank, says numpy."""
    weight = spiked(*shape, 3)
    scale = np.exp(normal(9, shape[1]).numpy().astype(np.float64)) if weighted else np.ones(1)
    up, down = product(weight, rank, scale**2 if weighted else None)
    left = (weight.numpy() - (up @ down).numpy()) * scale
    best = np.linalg.svd(weight.numpy() * scale, compute_uv=False)[rank:]
    assert np.square(left).sum() <= NEAR_BEST * np.square(best).sum()
    again = product(weight, rank, scale**2 if weighted else None)
    assert torch.equal(up, again[0])
    assert torch.equal(down, again[1])


def test_inputs_that_are_always_zero_do_not_count():
    weight, importance = spiked(64, 96, 0), np.ones(96)
    importance[48:] = 0
    up, down = product(weight, 8, importance)
    left = (weight - up @ down).square().sum(0)
    plain = (weight - torch.matmul(*product(weight, 8))).square().sum(0)
    assert left[:48].sum() < plain[:48].sum()
    assert left[48:].sum() > plain[48:].sum()


def lost(layer: nn.Module, weight: Tensor, scheme: Scheme) -> float:
    """Squared error of a layer's matrix, stored as told, as a share of its square."""
    plan = Plan(scheme, {"/up.weight": parse_scheme("fp16"), "/down.weight": parse_scheme("fp16")})
    state = {n: p.flatten(1) for n, p in rounded(layer, plan).state_dict().items() if p.ndim > 1}
    found = state["rest.weight"] + state["up.weight"] @ state["down.weight"]
    return float((found - weight).square().sum() / weight.square().sum())


def test_a_product_saves_what_two_bits_lose_and_turns_save_more():
    weight, two_bits = spiked(128, 128, 5), Scheme("palette", 2)
    layer = nn.Linear(128, 128, bias=False).requires_grad_(False)
    layer.load_state_dict({"weight": weight})
    alone = rounded(layer, two_bits).get_parameter("weight")
    bare = float((alone - weight).square().sum() / weight.square().sum())
    ours = lost(split(layer, {"": parse_scheme("svd16-palette2")}), weight, two_bits)
    # One singular value decomposition by numpy, and palettes for what it leaves.
    u, s, v = np.linalg.svd(weight.numpy())
    once = split(layer, {"": parse_scheme("svd16-fp16")})
    once.up.weight.copy_(torch.from_numpy(u[:, :16] * s[:16]).half().float())
    once.down.weight.copy_(torch.from_numpy(v[:16]).half().float())
    once.rest.weight.copy_(weight - once.up.weight @ once.down.weight)
    assert ours < 0.9 * lost(once, weight, two_bits)
    assert ours < 0.5 * bare


# Graphs and plans


def test_a_plan_speaks_of_the_parts():
    svd, four = parse_scheme("svd4-palette2-weighted"), parse_scheme("palette4")
    ones = np.ones(WIDTH)
    plan = Plan(
        parse_scheme("svd8-palette3"),
        {"blocks.0/up.weight": svd, "blocks.1/up.weight": four, "blocks.1/down.weight": four},
        "ane",
        {"blocks.0/up.weight": ones, "blocks.1/up.weight": 2 * ones},
        {"blocks.0/up.weight": (-1.0, 2.0)},
    )
    _, made = with_low_rank(graph_of(), plan)
    assert (made.profile, str(made.default)) == ("ane", "palette3")
    schemes = {name: str(made.of(name)) for name in made.layers}
    products = {
        f"{layer}.{part}.weight": "fp16"
        for layer in ("blocks.0/up", "blocks.0/down", "blocks.2/up", "blocks.2/down")
        for part in ("up", "down")
    }
    assert schemes == products | {
        "blocks.0/up.rest.weight": "palette2-weighted",
        "blocks.0/down.rest.weight": "palette3",
        "blocks.1/up.weight": "palette4",
        "blocks.1/down.weight": "palette4",
        "blocks.2/up.rest.weight": "palette3",
        "blocks.2/down.rest.weight": "palette3",
    }
    assert made.importance.keys() == {"blocks.0/up.rest.weight", "blocks.1/up.weight"}
    assert made.ranges == {"blocks.0/up.rest.weight": (-1.0, 2.0)}
    assert plan.of("blocks.0/up.weight") == svd


def test_kinds_differ_where_ranks_do_and_parameters_are_counted():
    plan = Plan(
        parse_scheme("svd8-fp16"),
        {
            "blocks.1/up.weight": parse_scheme("svd4-fp16"),
            "blocks.2/up.weight": parse_scheme("svd4-palette2"),
            "blocks.3/up.weight": parse_scheme("fp16"),
            "blocks.3/down.weight": parse_scheme("fp16"),
        },
    )
    graph = graph_of(4)
    made, translated = with_low_rank(graph, plan)
    kinds = [segment.kind for segment in made.functions[MAIN].segments]
    assert kinds == ["blocks~svd8", "blocks~svd4.8", "blocks~svd4.8", "blocks"]
    for segment in made.functions[MAIN].segments:
        assert segment.parameters == sum(p.numel() for p in segment.build().parameters())
    names = {layer.name for layer in layers_of(made)}
    assert translated.layers.keys() <= names
    x = {"x": normal(0, *SHAPE).numpy()}
    runs = [torch_runner(g.functions[MAIN])(x)["y"] for g in (graph, made)]
    assert psnr_db(*runs) >= EQUAL_DB


def test_nothing_changes_without_a_rank():
    graph, plan = graph_of(), Plan(parse_scheme("palette4"))
    assert with_low_rank(graph, plan) == (graph, plan)
    assert with_low_rank(graph, plan)[0] is graph


@pytest.mark.parametrize(
    ("layer", "scheme", "message"),
    [
        (nn.Conv2d(8, 8, 3), "svd2-fp16", r"net\.weight belongs to a Conv2d .* 1x1 convolutions"),
        (nn.Conv2d(8, 8, 1, stride=2), "svd2-fp16", "no plain matrix"),
        (nn.Conv2d(8, 8, 1, padding=1), "svd2-fp16", "no plain matrix"),
        (nn.Conv2d(8, 8, 1, groups=2), "svd2-fp16", "no plain matrix"),
        (nn.Embedding(8, 8), "svd2-fp16", "belongs to a Embedding .* without svd"),
        (nn.Linear(8, 6), "svd7-palette4", "is 6 x 8 and cannot be split at rank 7; .* svd6"),
    ],
)
def test_what_has_no_such_product_is_refused(layer, scheme, message):
    module = nn.ModuleDict({"net": layer})
    segment = Segment("s", "edges", lambda: module, ("x",), ("y",), 64)
    graph = MobileGraph("denoiser", {MAIN: Function((X,), (Y,), (segment,), {})})
    with pytest.raises(InputError, match=message):
        with_low_rank(graph, Plan(parse_scheme(scheme)))
    with pytest.raises(InputError, match="net"):
        split(module, {"net": parse_scheme(scheme)})


# Files

STORED = [("coreml", "svd8-fp16"), ("coreml", "svd8-palette2-g16"), ("litert", "svd8-fp16")]


@pytest.mark.parametrize(("name", "scheme"), STORED)
def test_saved_files_hold_the_parts_and_answer_like_torch(name, scheme, tmp_path: Path):
    pytest.importorskip({"coreml": "coremltools", "litert": "litert_torch"}[name])
    from nanoflux_export.bundle import target_named

    target, out = target_named(name), tmp_path / "split"
    out = out.with_suffix(target.SUFFIX)
    graph, plan = with_low_rank(graph_of(2), Plan(parse_scheme(scheme)))
    target.write(graph, plan, out)
    function = graph.functions[MAIN]

    def twin(segment: Segment, module: nn.Module) -> nn.Module:
        return rounded(module, plan, segment.weights, half_constants=target.HALF_CONSTANTS)

    x = {"x": normal(0, *SHAPE).numpy()}
    ours = target.load(out, Component("denoiser", (X,), (Y,)))(x)["y"]
    assert psnr_db(ours, torch_runner(function, twin)(x)["y"]) >= SAVED_DB[name]
    stored = target.stored(out)
    for segment in function.segments:
        kept = twin(segment, segment.build()).state_dict()
        for part in ("rest", "down", "up"):
            found = stored(f"{segment.weights}/up.{part}.weight")
            expected = kept[f"up.{part}.weight"].numpy()
            np.testing.assert_array_equal(found.reshape(expected.shape), expected)
