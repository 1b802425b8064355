"""Golden runs of toy graphs: what is recorded, and that a wrong graph falls below its floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nanoflux_export.golden import (
    REFERENCES,
    Request,
    Tensors,
    answers,
    load_golden,
    probes,
    record_image,
    record_steps,
    save_golden,
)
from nanoflux_export.verify import measure
from nanoflux_export.work import Journal
from nanoflux_mobile.drawing import Canvas, Graphs, noise_tokens
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.parity import Parity
from nanoflux_mobile.sampler import Schedule
from nanoflux_mobile.spec import Floors

CANVAS = Canvas(channels=3, height=4, width=6, patch=2)
SCHEDULE = Schedule((1.0, 0.75, 0.25, 0.0), low_steps=1)
TABLES = np.random.default_rng(0).standard_normal((3, 1, 5, 1, 2)).astype(np.float32)
REQUEST = Request(np.array([[3, 1, 0, 0]], np.int32), TABLES, SCHEDULE, CANVAS, seed=5)
FLOORS = {name: Floors(60.0, 50.0) for name in ("text_encoder", "denoiser", "decoder")}
IMAGE = Floors(40.0, 30.0)


def encode(inputs: Mapping[str, np.ndarray]) -> Tensors:
    return {"text_states": inputs["token_ids"].astype(np.float32)[:, None, None, :]}


def denoise(inputs: Mapping[str, np.ndarray]) -> Tensors:
    told = inputs["text_states"].mean() * inputs["step_table"].sum()
    return {"velocity": np.tanh(inputs["latents"]) + np.float32(told)}


def denoise_low(inputs: Mapping[str, np.ndarray]) -> Tensors:
    return {"velocity": 0.5 * denoise(inputs)["velocity"]}


def decode(inputs: Mapping[str, np.ndarray]) -> Tensors:
    return {"image": np.repeat(np.repeat(inputs["latents"], 2, 2), 2, 3)}


GRAPHS = Graphs(encode, denoise, decode, denoise_low)
ROUNDED = replace(GRAPHS, decoder=lambda inputs: {"image": decode(inputs)["image"] + 1e-4})
"""The same on the weights that a file holds."""


def judged(graphs: Graphs, golden: Tensors, request: Request = REQUEST) -> tuple[Parity, ...]:
    return measure(graphs, golden, request, FLOORS, IMAGE, Journal())


def below(figures: tuple[Parity, ...]) -> set[tuple[str, str]]:
    return {(one.component, one.reference) for one in figures if not one.holds}


def test_a_picture_is_recorded_with_its_first_middle_and_last_step() -> None:
    golden = record_image(REQUEST, GRAPHS, ROUNDED)
    assert golden["probe_steps"].tolist() == [0, 1, 2]
    assert golden["latents.0"].tolist() == noise_tokens(5, CANVAS).tolist()
    for step, run in enumerate((denoise_low, denoise, denoise)):
        probe = probes(golden)["denoiser"][step]
        np.testing.assert_array_equal(golden[f"fp32.denoiser.{step}"], run(probe)["velocity"])
    assert {f"{reference}.image" for reference in REFERENCES} < golden.keys()
    ten = replace(REQUEST, schedule=Schedule(tuple(np.linspace(1, 0, 11).tolist())))
    ten = replace(ten, step_tables=np.repeat(TABLES[:1], 10, 0))
    assert record_image(ten, GRAPHS, GRAPHS)["probe_steps"].tolist() == [0, 5, 9]


@pytest.mark.parametrize(("low_steps", "steps"), [(0, [0]), (1, [0, 1]), (2, [0, 2]), (3, [0])])
def test_steps_are_one_of_every_form_of_the_denoiser(low_steps: int, steps: list[int]) -> None:
    schedule = replace(SCHEDULE, low_steps=low_steps)
    golden = record_steps(replace(REQUEST, schedule=schedule), GRAPHS, GRAPHS)
    assert golden["probe_steps"].tolist() == steps
    assert {name for name in golden if name.startswith("latents")} == {
        f"latents.{i}" for i in steps
    }
    assert not [name for name in golden if "image" in name]
    ran = [denoise_low if step < low_steps else denoise for step in steps]
    pairs = zip(ran, probes(golden)["denoiser"], strict=True)
    for i, (run, probe) in enumerate(pairs):
        np.testing.assert_array_equal(golden[f"rounded.denoiser.{i}"], run(probe)["velocity"])


def test_latents_of_a_step_are_as_noisy_as_its_level() -> None:
    golden = record_steps(replace(REQUEST, schedule=replace(SCHEDULE, low_steps=2)), GRAPHS, GRAPHS)
    noise, other = noise_tokens(5, CANVAS), noise_tokens(6, CANVAS)
    np.testing.assert_array_equal(golden["latents.0"], noise)
    np.testing.assert_allclose(golden["latents.2"], 0.25 * noise + 0.75 * other, atol=1e-6)
    assert golden["final_latents"].shape == CANVAS.shape
    assert golden["latents.2"].dtype == golden["final_latents"].dtype == np.float32


@pytest.mark.parametrize("record", [record_image, record_steps])
def test_a_golden_run_survives_its_file(tmp_path: Path, record) -> None:
    golden = record(REQUEST, GRAPHS, ROUNDED)
    save_golden(golden, tmp_path / "golden.safetensors")
    again = load_golden(tmp_path / "golden.safetensors")
    assert again.keys() == golden.keys()
    assert all(np.array_equal(again[name], golden[name]) for name in golden)
    for name in FLOORS:
        ours, theirs = (answers(name, GRAPHS, one, SCHEDULE) for one in (again, golden))
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("record", [record_image, record_steps])
def test_the_graphs_that_were_recorded_hold_every_floor(record) -> None:
    figures = judged(ROUNDED, record(REQUEST, GRAPHS, ROUNDED))
    names = [*FLOORS, "image"] if record is record_image else [*FLOORS]
    assert [(one.component, one.reference) for one in figures] == [
        (name, reference) for name in names for reference in REFERENCES
    ]
    assert below(figures) == set()
    decoder = next(one for one in figures if (one.component, one.reference) == ("decoder", "fp32"))
    assert decoder.psnr_db < 100, "what the rounding of weights cost is measured"


WRONG = {
    "text_encoder": {
        "text_encoder": lambda inputs: {"text_states": -encode(inputs)["text_states"]}
    },
    "decoder": {"decoder": lambda inputs: {"image": decode(inputs)["image"][..., ::-1]}},
    "denoiser": {"denoiser": denoise_low},
    "denoiser, its low form": {"low_denoiser": denoise},
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("record", [record_image, record_steps])
def test_a_wrong_graph_falls_below_its_floors(record, case: str) -> None:
    found = below(judged(replace(GRAPHS, **WRONG[case]), record(REQUEST, GRAPHS, GRAPHS)))
    component = case.partition(",")[0]
    assert {(component, reference) for reference in REFERENCES} <= found
    assert {name for name, _ in found} <= {component, "image"}


def test_a_golden_run_for_low_steps_needs_a_low_form() -> None:
    golden = record_steps(REQUEST, GRAPHS, GRAPHS)
    with pytest.raises(InputError, match="1 steps are to run at low resolution"):
        judged(replace(GRAPHS, low_denoiser=None), golden)
