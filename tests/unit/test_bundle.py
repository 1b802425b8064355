"""Functions of a bundle out of its files: chunks one after another, and each in its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoflux_export.bundle import Bundle, chained, graphs_of, loaded, memory_plan, total_cost
from nanoflux_export.graph import MAIN, STEP_FULL, STEP_LOW, Runner
from nanoflux_mobile.cost import BlockCost, Cost
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import Chunk, ComponentEntry, Interface
from nanoflux_mobile.spec import Component, Floors, TensorSpec

VALUES = ("latents", "table", "x", "y", "velocity")
LATENTS, TABLE, X, Y, VELOCITY = (TensorSpec(name, ("one",), (1,), "float32") for name in VALUES)
WHOLE = Component("denoiser", (LATENTS, TABLE), (VELOCITY,))
FIRST = Component("denoiser", (LATENTS,), (X, Y))
SECOND = Component("denoiser", (X, TABLE), (VELOCITY,))


def first(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    assert set(inputs) == {"latents"}
    return {"x": inputs["latents"] + 1, "y": inputs["latents"]}


def second(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    assert set(inputs) == {"x", "table"}
    return {"velocity": 10 * inputs["x"] + inputs["table"]}


def test_chunks_hand_their_values_on_by_name() -> None:
    given = {"latents": np.float32([2]), "table": np.float32([0.5])}
    made = chained([(FIRST, first), (SECOND, second)], WHOLE)(given)
    assert {name: value.tolist() for name, value in made.items()} == {"velocity": [30.5]}
    assert set(given) == {"latents", "table"}, "what the host passed is its own"


def test_a_graph_in_one_file_is_run_as_it_is() -> None:
    assert chained([(WHOLE, second)], WHOLE) is second


def entry(*chunks: Chunk) -> ComponentEntry:
    sides = WHOLE.inputs, WHOLE.outputs
    return ComponentEntry("denoiser", "fp16", "gpu", *sides, Floors(1, 1), chunks)


def face(component: Component) -> Interface:
    return Interface(component.inputs, component.outputs)


def test_a_function_is_loaded_from_the_chunks_that_have_it() -> None:
    chunks = (
        Chunk("components/a", 7, {STEP_LOW: face(FIRST), STEP_FULL: face(WHOLE)}),
        Chunk("components/b", 5, {STEP_LOW: face(SECOND)}),
    )
    asked: list[tuple[Any, ...]] = []

    class Target:
        @staticmethod
        def load(path: Path, part: Component, *, function: str, precision: str) -> Runner:
            asked.append((path.name, part, function, precision))
            return first if path.name == "a" else second

    bundle = Bundle(Path("bundle"), None)  # type: ignore[arg-type]
    run = loaded(bundle, Target, entry(*chunks), STEP_LOW, "fp16")  # type: ignore[arg-type]
    assert asked == [("a", FIRST, STEP_LOW, "fp16"), ("b", SECOND, STEP_LOW, "fp16")]
    assert run({"latents": np.float32([0]), "table": np.float32([0])})["velocity"] == 10
    assert loaded(bundle, Target, entry(*chunks), STEP_FULL, "fp32") is first  # type: ignore[arg-type]
    assert asked[2:] == [("a", WHOLE, STEP_FULL, "fp32")]


def runners(*places: tuple[str, str]) -> dict[Any, Runner]:
    return {place: lambda inputs, place=place: {"place": place} for place in places}


ENDS = (("text_encoder", MAIN), ("decoder", MAIN))


def test_a_denoiser_has_one_function_or_two() -> None:
    one = graphs_of(runners(*ENDS, ("denoiser", MAIN)), "here")
    assert one.denoiser({}) == {"place": ("denoiser", MAIN)}
    assert one.low_denoiser is None
    two = graphs_of(runners(*ENDS, ("denoiser", STEP_LOW), ("denoiser", STEP_FULL)), "here")
    assert two.low_denoiser is not None
    assert two.denoiser({}) == {"place": ("denoiser", STEP_FULL)}
    assert two.low_denoiser({}) == {"place": ("denoiser", STEP_LOW)}
    assert two.text_encoder({}) == {"place": ("text_encoder", MAIN)}


@pytest.mark.parametrize(
    ("places", "lacking"),
    [
        ((ENDS[0], ("denoiser", MAIN)), "decoder"),
        (ENDS, "denoiser"),
        ((*ENDS, ("denoiser", STEP_FULL)), "denoiser"),
        ((*ENDS, ("denoiser", STEP_LOW)), "denoiser"),
        ((*ENDS, ("denoiser", STEP_LOW), ("denoiser", MAIN)), "denoiser"),
    ],
)
def test_a_function_that_is_not_there_is_named(places: Any, lacking: str) -> None:
    with pytest.raises(InputError, match=f"build/x lacks the graph {lacking}; export it again"):
        graphs_of(runners(*places), "build/x")


def test_all_chunks_of_a_graph_are_in_memory_while_it_runs() -> None:
    both = entry(Chunk("a", 7, {MAIN: face(FIRST)}), Chunk("b", 5, {MAIN: face(SECOND)}))
    assert [(step.action, step.component, step.peak_bytes) for step in memory_plan((both,))] == [
        ("load", "denoiser", 12),
        ("run", "denoiser", 12),
        ("unload", "denoiser", 0),
    ]


def test_a_bundle_costs_what_all_its_files_cost() -> None:
    class Target:
        NAME = "coreml"

        @staticmethod
        def cost(path: Path, component: str) -> Cost:
            block = BlockCost(component, MAIN, path.name, 1, 2, 3, 4, 5)
            return Cost("cost/1", "coreml", (block,), 2)

    files = {"text_encoder": [Path("t")], "denoiser": [Path("a"), Path("b")]}
    whole = total_cost(Target, files)  # type: ignore[arg-type]
    assert [(block.component, block.block) for block in whole.blocks] == [
        ("text_encoder", "t"),
        ("denoiser", "a"),
        ("denoiser", "b"),
    ]
    assert (whole.target, whole.crossings) == ("coreml", 6)
