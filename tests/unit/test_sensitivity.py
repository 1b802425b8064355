"""What storing one layer does to the output: beside running the whole changed graph."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanoflux_export.fitting.calibration import Calibration
from nanoflux_export.fitting.gradients import estimate
from nanoflux_export.fitting.sensitivity import Row, Sensitivity, damage_of, measure
from nanoflux_export.fitting.shortlists import ladders, worthwhile
from nanoflux_export.fitting.stored import Stored, storing
from nanoflux_export.graph import Function, MobileGraph, Segment
from nanoflux_export.layers import Layer, layers_of
from nanoflux_export.torch_run import torch_runner
from nanoflux_export.work import Journal
from nanoflux_mobile.spec import Scheme, TensorSpec, parse_scheme

COARSE, FINE = Scheme("int", 4), Scheme("int", 8)
EXACT = 1e-6
"""Relative: the same float32 arithmetic in the same order, summed up in double precision."""
WIDTH = 6


class Fork(nn.Module):
    """One input, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x).tanh(), self.right(x)


class Meet(nn.Module):
    """Two inputs, one output."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.mix(torch.cat((a, b), 1)).sin()


def spec(name: str) -> TensorSpec:
    return TensorSpec(name, ("batch", "width"), (1, WIDTH), "float32")


def make_graph() -> MobileGraph:
    """Two functions over shared weights; a wire skips a segment, and one segment has no weights."""
    torch.manual_seed(3)
    fork, inner, meet = Fork(), nn.Linear(WIDTH, WIDTH), Meet()
    wires = {name: (1, WIDTH) for name in ("a", "b", "c", "d")}
    segments = (
        Segment("fork", "fork", lambda: fork, ("x",), ("a", "b"), 84),
        Segment("inner", "inner", lambda: inner, ("a",), ("c",), 42),
        Segment("act", "act", nn.Tanh, ("c",), ("d",)),
        Segment("meet", "meet", lambda: meet, ("d", "b"), ("y",), 78),
    )
    ends = (spec("x"),), (spec("y"),)
    short = (segments[0], Segment("meet", "meet", lambda: meet, ("a", "b"), ("y",), 78))
    functions = {
        "long": Function(*ends, segments, wires),
        "short": Function(*ends, short, {"a": (1, WIDTH), "b": (1, WIDTH)}),
    }
    return MobileGraph("denoiser", functions)


def make_calibration(**counts: int) -> Calibration:
    rng = np.random.default_rng(0)
    inputs = {
        ("denoiser", name): tuple(
            {"x": rng.standard_normal((1, WIDTH)).astype(np.float32)} for _ in range(count)
        )
        for name, count in counts.items()
    }
    return Calibration(inputs)


def store(layer: Layer, values: np.ndarray, scheme: Scheme) -> Stored:
    """A coarse grid, so that damages are large against rounding."""
    step = 2.0 ** (1 - scheme.bits)
    return Stored(
        (np.rint(values / step) * step).astype(np.float32), values.size * scheme.bits // 8
    )


def true_damage(
    graph: MobileGraph, calibration: Calibration, schemes: Mapping[str, Scheme]
) -> float:
    """By another way: the plain runner over modules changed beforehand, all outputs pooled."""

    def stored(segment: Segment, module: nn.Module) -> nn.Module:
        twin = copy.deepcopy(module)
        for name, tensor in twin.named_parameters():
            scheme = schemes.get(f"{segment.weights}/{name}")
            if scheme:
                changed = store(None, tensor.detach().numpy(), scheme).values
                tensor.data = torch.from_numpy(changed)
        return twin

    errors = []
    for (_, name), inputs in calibration.inputs.items():
        plain = torch_runner(graph.functions[name])
        changed = torch_runner(graph.functions[name], stored)
        errors += [changed(one)["y"].astype(float) - plain(one)["y"] for one in inputs]
    return float(np.mean(np.square(errors)))


def everything(graph: MobileGraph) -> dict[str, tuple[Scheme, ...]]:
    return {layer.name: (COARSE, FINE) for layer in layers_of(graph)}


def measured(graph, calibration, tmp_path: Path, store=store, **more) -> Sensitivity:
    told = {"cache": tmp_path / "marks", "journal": Journal(), **more}
    return measure(graph, calibration, everything(graph), store, **told)


def test_every_row_is_what_the_whole_changed_graph_answers(tmp_path: Path) -> None:
    graph, calibration = make_graph(), make_calibration(long=5, short=3)
    before = copy.deepcopy([s.build().state_dict() for s in graph.functions["long"].segments])
    found = measured(graph, calibration, tmp_path)
    assert [row.layer for row in found.rows[::2]] == [layer.name for layer in layers_of(graph)]
    for row in found.rows:
        whole = true_damage(graph, calibration, {row.layer: row.scheme})
        assert row.damage == pytest.approx(whole, rel=EXACT)
        assert (row.values, row.bytes) == (
            (n := 72 if row.layer.startswith("meet") else 36),
            n * row.scheme.bits // 8,
        )
    assert found.rows[0].damage > 10 * found.rows[1].damage > 0
    assert found.start == 0
    after = [s.build().state_dict() for s in graph.functions["long"].segments]
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_signal_is_the_mean_square_of_the_outputs(tmp_path: Path) -> None:
    graph, calibration = make_graph(), make_calibration(long=4, short=1)
    found = measured(graph, calibration, tmp_path)
    outputs = [
        torch_runner(graph.functions[name])(one)["y"]
        for (_, name), inputs in calibration.inputs.items()
        for one in inputs
    ]
    assert found.signal == pytest.approx(np.square(outputs).mean(), rel=EXACT)
    assert found.db(found.signal / 1000) == pytest.approx(30)
    assert (found.db(0.0), found.db(math.inf)) == (200.0, -math.inf)


def test_from_a_base_rows_say_what_one_change_of_it_does(tmp_path: Path) -> None:
    graph, calibration = make_graph(), make_calibration(long=4, short=4)
    base = dict.fromkeys(everything(graph), COARSE)
    found = measured(graph, calibration, tmp_path, base=base)
    assert found.start == pytest.approx(true_damage(graph, calibration, base), rel=EXACT)
    for row in found.rows:
        changed = base | {row.layer: row.scheme}
        assert row.damage == pytest.approx(true_damage(graph, calibration, changed), rel=EXACT)
    assert found.predicted(base) == pytest.approx(found.start, rel=EXACT)
    one = base | {"inner/weight": FINE}
    assert found.predicted(one) == pytest.approx(true_damage(graph, calibration, one), rel=EXACT)


def test_damage_of_a_plan_is_that_of_the_whole_graph() -> None:
    graph, calibration = make_graph(), make_calibration(long=2, short=3)
    plan = {"fork/left.weight": FINE, "inner/weight": COARSE, "meet/mix.weight": FINE}
    damage, signal = damage_of(graph, calibration, plan, store)
    assert damage == pytest.approx(true_damage(graph, calibration, plan), rel=EXACT)
    assert signal > damage


PROBES = 250


@pytest.mark.parametrize("based", [False, True])
def test_gradients_tell_the_damage_of_small_changes(tmp_path: Path, based: bool) -> None:
    graph, calibration = make_graph(), make_calibration(long=4, short=2)
    tiny = Scheme("int", 13)  # the store of these tests takes any number of bits
    base = dict.fromkeys(everything(graph), FINE) if based else {}
    choices = dict.fromkeys(base or everything(graph), (tiny, FINE))
    told = {"journal": Journal(), "base": base}
    rough = estimate(graph, calibration, choices, store, probes=PROBES, **told)
    found = measure(graph, calibration, choices, store, cache=tmp_path / "marks", **told)
    assert rough.signal == pytest.approx(found.signal, rel=EXACT)
    assert rough.start == pytest.approx(found.start, rel=EXACT)
    assert (rough.start > 0) == based
    for guess, row in zip(rough.rows, found.rows, strict=True):
        assert (guess.layer, guess.scheme, guess.values) == (row.layer, row.scheme, row.values)
        assert guess.bytes == row.bytes
        if based and row.scheme == FINE:
            assert guess.damage == pytest.approx(found.start, rel=EXACT)
        else:
            # Four standard deviations of PROBES on four inputs, and curvature; around a base the
            # change itself is what the noise is a share of, and that is about as large as the base.
            noise = 4 * (2 / (4 * PROBES)) ** 0.5 + 0.03
            assert guess.damage == pytest.approx(
                row.damage, abs=noise * max(row.damage, found.start)
            )


def test_gradients_leave_the_modules_alone() -> None:
    graph, calibration = make_graph(), make_calibration(long=1, short=1)
    modules = [segment.build() for segment in graph.functions["long"].segments]
    before = [copy.deepcopy(module.state_dict()) for module in modules]
    base = {"meet/mix.weight": COARSE}
    estimate(graph, calibration, everything(graph), store, journal=Journal(), base=base)
    for module, old in zip(modules, before, strict=True):
        assert all(torch.equal(old[name], x) for name, x in module.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_small_damages_add_up(tmp_path: Path) -> None:
    """The premise of a budget, on errors of layers that are small and independent."""
    graph, calibration = make_graph(), make_calibration(long=60)
    graph = MobileGraph("denoiser", {"long": graph.functions["long"]})
    plan = dict.fromkeys(everything(graph), FINE)
    predicted = measured(graph, calibration, tmp_path, most_inputs=60).predicted(plan)
    # Cross terms of four layers with 36 weights each do not vanish; real ones have thousands.
    assert predicted == pytest.approx(true_damage(graph, calibration, plan), rel=0.5)


def test_inputs_are_spread_over_the_whole_calibration(tmp_path: Path) -> None:
    graph = MobileGraph("denoiser", {"long": make_graph().functions["long"]})
    inputs = make_calibration(long=11).inputs["denoiser", "long"]
    few = Calibration({("denoiser", "long"): tuple(inputs[i] for i in (0, 5, 10))})
    some = measured(graph, Calibration({("denoiser", "long"): inputs}), tmp_path, most_inputs=3)
    for row in some.rows:
        assert row.damage == pytest.approx(
            true_damage(graph, few, {row.layer: row.scheme}), rel=EXACT
        )


@pytest.mark.parametrize("torn", [b"", b'{"function": "long", "layer": "me', b"\n", b"\0\0\0\n{}"])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, torn: bytes) -> None:
    graph, calibration = make_graph(), make_calibration(long=2, short=2)
    asked: list[tuple[str, Scheme]] = []

    def killed(layer: Layer, values: np.ndarray, scheme: Scheme) -> Stored:
        asked.append((layer.name, scheme))
        if len(asked) == 6:
            raise KeyboardInterrupt
        return store(layer, values, scheme)

    with pytest.raises(KeyboardInterrupt):
        measured(graph, calibration, tmp_path, killed)
    with (tmp_path / "marks").open("ab") as file:
        file.write(torn)
    assert len(asked) == 6
    first, parts = asked[:5], []
    journal = Journal(part=lambda done, of: parts.append((done, of)))
    found = measured(graph, calibration, tmp_path, killed, journal=journal)
    # Four layers in two schemes in the long function, three in the short one.
    assert len(asked) == 6 + (8 - len(first)) + 6
    assert not set(asked[6:9]) & set(first)
    assert found == measured(graph, calibration, tmp_path / "again")
    assert parts[-1][0] <= parts[-1][1]
    assert [done for done, _ in parts] == sorted(done for done, _ in parts)
    asked.clear()
    assert measured(graph, calibration, tmp_path, killed) == found
    assert asked == []
    lines = (tmp_path / "marks").read_text("utf-8").splitlines()
    assert all(json.loads(line)["function"] in graph.functions for line in lines)


def test_an_output_that_is_not_finite_is_infinite_damage(tmp_path: Path) -> None:
    def broken(layer: Layer, values: np.ndarray, scheme: Scheme) -> Stored:
        return Stored(np.full_like(values, np.nan if scheme == COARSE else 0.0), 1)

    graph, calibration = make_graph(), make_calibration(long=1, short=1)
    for _ in range(2):
        found = measured(graph, calibration, tmp_path, broken)
        assert {row.scheme for row in found.rows if row.damage == math.inf} == {COARSE}


@pytest.mark.parametrize("text", ["fp16", "palette3-g8-weighted", "int8"])
def test_layers_are_stored_as_the_twin_of_their_file_holds_them(text: str) -> None:
    pytest.importorskip("numba")
    from nanoflux_export.compression.plan import Plan
    from nanoflux_export.compression.rounding import rounded

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(32, 48, 1), nn.ConvTranspose2d(48, 64, 2))
    segment = Segment("body", "body", lambda: module, ("x",), ("y",), 1)
    graph = MobileGraph("denoiser", {"main": Function((), (), (segment,), {})})
    weighs = {"body/0.weight": np.linspace(0.1, 9, 32), "body/1.weight": np.linspace(9, 1, 48)}
    scheme = parse_scheme(text)
    twin = rounded(module, Plan(scheme, importance=weighs), "body")
    keep = storing(weighs, half_constants=True)
    for layer, own, whole in zip(layers_of(graph), module, twin, strict=True):
        stored = keep(layer, own.weight.detach().numpy(), scheme)
        np.testing.assert_array_equal(stored.values, whole.weight.detach().numpy())
        nominal = own.weight.numel() * scheme.bits / 8
        assert nominal <= stored.bytes <= 1.2 * nominal


def ladder(*rows: tuple[int, float]) -> Sensitivity:
    """One layer's rows as (bytes, damage), each in a scheme of its own."""
    made = (Row("l", Scheme("int", i), 9, *row) for i, row in enumerate(rows))
    return Sensitivity(tuple(made), 1.0)


def test_choices_are_left_out_that_are_larger_and_no_better() -> None:
    rows = ladder((40, 1.0), (10, 9.0), (20, 9.5), (20, 12.0), (30, 1.2), (50, 1.3))
    assert [row.bytes for row in ladders(rows)["l"]] == [10, 30, 40]
    assert [scheme.bits for scheme in worthwhile(rows)["l"]] == [1, 4, 0]


def test_refining_keeps_the_limit_and_never_ends_worse_than_it_began(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    from nanoflux_export.fitting.budget import Choice, Limits, Solution, solve
    from nanoflux_export.fitting.refining import assess, refine

    graph, calibration = make_graph(), make_calibration(long=4, short=2)
    every = {name: tuple(Scheme("int", n) for n in range(2, 9)) for name in everything(graph)}
    told = {"cache": tmp_path / "marks", "journal": Journal()}
    rows = assess(graph, calibration, every, store, **told)
    limit = 180 * 3.5 / 8

    def answer(known: Sensitivity) -> Solution:
        choices = [Choice(r.layer, r.scheme, r.damage, r.bytes) for r in known.rows]
        return solve(choices, Limits(bytes=limit))

    found = refine(graph, calibration, rows, answer, store, journal=Journal(), tries=8)
    for tried in (found.first, found.best):
        assert set(tried.solution.schemes) == set(every)
        assert tried.solution.bytes <= limit
        real = true_damage(graph, calibration, tried.solution.schemes)
        assert tried.damage == pytest.approx(real, rel=EXACT)
        assert tried.solution.damage == rows.predicted(tried.solution.schemes)
    assert found.best.damage <= found.first.damage
    assert found.first.solution.schemes == answer(rows).schemes
