"""What a recipe asks for, compiled for a target: what is met, what is not, and that it is told."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from nanoflux_export.bundle import target_named
from nanoflux_export.fitting.activity import Activity, samples_of
from nanoflux_export.graph import MobileGraph
from nanoflux_export.layers import distinct, layers_of
from nanoflux_export.planning import Desk, Planned, plan
from nanoflux_export.recipe import load_recipe
from nanoflux_export.rewrites.head_attention import with_attention
from nanoflux_export.student import Student, make_student
from nanoflux_export.work import Journal
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Budget, Floors, Intent, Recipe, TargetRecipe

DEVICES = Path(__file__).parents[2] / "nanoflux_mobile" / "devices"
TINY = Path(__file__).parents[2] / "nanoflux_mobile" / "assets" / "tiny"
RECIPE = replace(load_recipe("tiny-small"), steps=2, calibration_prompts=("a red circle",))


@pytest.fixture(scope="module")
def student() -> Student:
    """The shipped one."""
    return make_student(TINY, RECIPE)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all plans of this file keep what they measured."""
    return tmp_path_factory.mktemp("work")


def asked(name: str, intent: Intent, target: str = "coreml", **of_target: str) -> Recipe:
    """The recipe with another wish for one component of one target."""
    parts = dict(RECIPE.targets[target].components)
    parts[name] = replace(parts[name], scheme="", layers={}, budget=None)
    wanted = replace(RECIPE.targets[target], components=parts, **of_target)
    return replace(RECIPE, targets={target: wanted}, components={name: intent})


def planned(student: Student, recipe: Recipe, name: str, work: Path) -> Planned:
    target = target_named(next(iter(recipe.targets)))
    activity = Activity(student, recipe, work, Journal())
    return plan(Desk(student, target, recipe, activity, work, Journal()), graph(student, name))


def graph(student: Student, name: str) -> MobileGraph:
    return next(one for one in student.graphs if one.name == name)


def test_a_wish_by_class_of_layer_reaches_exactly_its_layers(student: Student, work: Path) -> None:
    intent = Intent("4-bit", {"embedding": "8-bit", "blocks.0/*": "fp16"})
    made = planned(student, asked("text_encoder", intent), "text_encoder", work)
    assert str(made.plan.default) == "palette4-g16"
    names = {layer.name for layer in layers_of(graph(student, "text_encoder"))}
    wanted = {name: "fp16" for name in names if name.startswith("blocks.0/")}
    assert {n: str(s) for n, s in made.plan.layers.items()} == {
        **wanted,
        "embedding/table.weight": "palette8",
    }
    assert made.unmet == ()


def test_what_a_target_cannot_do_is_told_with_its_number_of_layers(
    student: Student, work: Path
) -> None:
    """The same wish as above on the other platform: 29 layers in all, 8 of them named."""
    intent = Intent("palette4-g16", {"embedding": "8-bit", "blocks.0/*": "palette6"})
    made = planned(student, asked("text_encoder", intent, "litert"), "text_encoder", work)
    assert str(made.plan.default) == "int8"
    assert made.plan.layers == {}
    assert [(u.asked, u.stored, u.layers) for u in made.unmet] == [
        ("palette6", "int8", 7),
        ("palette4-g16", "int8", 21),
    ]
    assert all("no palettes" in unmet.why for unmet in made.unmet)


def test_an_unknown_class_of_layers_names_the_known(student: Student, work: Path) -> None:
    intent = Intent("4-bit", {"brain": "8-bit"})
    with pytest.raises(InputError, match=r"names 'brain'.*embedding, attention.*layers are called"):
        planned(student, asked("text_encoder", intent), "text_encoder", work)


@pytest.mark.parametrize("form", ["per-head", "fused"])
def test_attention_is_written_as_the_recipe_says(student: Student, work: Path, form: str) -> None:
    recipe = asked("text_encoder", Intent("fp16"), attention=form)
    made = planned(student, recipe, "text_encoder", work)
    kinds = {segment.kind for segment in distinct(made.graph).values()}
    assert any(form in kind for kind in kinds)
    assert (
        made.key
        != planned(student, asked("text_encoder", Intent("fp16")), "text_encoder", work).key
    )


def test_schemes_that_look_at_activations_get_them(student: Student, work: Path) -> None:
    names = {layer.name for layer in layers_of(graph(student, "text_encoder"))}
    weighted = planned(
        student, asked("text_encoder", Intent("palette2-weighted")), "text_encoder", work
    )
    rounded = planned(student, asked("text_encoder", Intent("int8-a8")), "text_encoder", work)
    plain = planned(student, asked("text_encoder", Intent("int8")), "text_encoder", work)
    assert set(weighted.plan.importance) == names - {"embedding/table.weight"}
    assert set(rounded.plan.ranges) == names - {"embedding/table.weight"}
    assert rounded.plan.samples is not None
    assert (plain.plan.importance, plain.plan.ranges, plain.plan.samples) == ({}, {}, None)


def test_samples_are_what_enters_a_segment(student: Student, work: Path) -> None:
    """The second block's input is the first's output on the same tokens."""
    import torch

    whole = graph(student, "text_encoder")
    recorded = Activity(student, RECIPE, work, Journal()).calibration()
    segments, samples = distinct(whole), samples_of(whole, recorded)
    (first,) = samples(None, segments["blocks.0"])
    (second,) = samples(None, segments["blocks.1"])
    made = segments["blocks.0"].build().eval()(*map(torch.from_numpy, first))
    torch.testing.assert_close(torch.from_numpy(second[0]), made)


def test_a_budget_is_kept_and_named_layers_stay_as_named(student: Student, work: Path) -> None:
    budget = Budget(bits=4.3, schemes=("palette2", "palette4", "palette6", "palette8"))
    intent = Intent("fp16", {"embedding": "palette8"}, budget)
    made = planned(student, asked("text_encoder", intent), "text_encoder", work)
    assert made.fit is not None
    assert 4.0 < made.fit.bits <= 4.3
    assert str(made.plan.of("embedding/table.weight")) == "palette8"
    assert len({str(scheme) for scheme in made.plan.layers.values()}) > 1
    assert made.fit.solution.gap < 0.01
    assert 0 < made.fit.real < made.fit.sensitivity.signal


def test_a_budget_of_time_is_one_of_a_device(student: Student, work: Path) -> None:
    """The tiny encoder waits for no memory worth a millisecond, so what is asked is what it is."""
    most = Budget(step_ms=1000.0, device="iphone-15-pro", schemes=("palette8", "fp16"))
    made = planned(
        student, asked("text_encoder", Intent("fp16", budget=most)), "text_encoder", work
    )
    assert made.fit is not None
    assert {str(scheme) for scheme in made.fit.schemes.values()} <= {"palette8", "fp16"}
    none = replace(most, step_ms=1e-6)
    with pytest.raises(InputError, match=r"budget of 1e-06 ms cannot be kept.*without any weights"):
        planned(student, asked("text_encoder", Intent("fp16", budget=none)), "text_encoder", work)


def phone_with(tmp_path: Path, *changes: tuple[str, str]) -> str:
    """A phone of one's own: the file of a shipped one, changed."""
    text = (DEVICES / "iphone-15-pro.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "iphone-15-pro.toml").write_text(text)
    return str(tmp_path / "iphone-15-pro.toml")


def test_a_budget_of_time_makes_weights_as_small_as_it_says(
    student: Student, work: Path, tmp_path: Path
) -> None:
    """On a phone that reads 781 kB a second, 60/76.8 of what its file says."""
    phone = phone_with(tmp_path, ("51.2e9", "1e6"))
    budget = Budget(step_ms=1.0, device=phone, schemes=("palette8", "fp16"))
    with pytest.raises(InputError, match="without any weights") as refused:
        planned(student, asked("text_encoder", Intent("fp16", budget=budget)), "text_encoder", work)
    least = float(re.findall(r"takes ([\d.e+]+) ms", str(refused.value))[0])
    enough = replace(budget, step_ms=least + 1000)
    intent = Intent("fp16", budget=enough)
    made = planned(student, asked("text_encoder", intent), "text_encoder", work)
    assert made.fit is not None
    # The message has three digits of `least`.
    assert made.fit.solution.bytes <= 781_250 + 0.005 * least * 781.25
    assert made.fit.solution.bytes > 0.9 * 781_250
    assert made.fit.real < made.fit.sensitivity.signal


def test_a_budget_of_time_is_not_kept_by_weights_that_no_app_can_hold(
    student: Student, work: Path, tmp_path: Path
) -> None:
    """A phone that leaves an app 1 MB reads these 1.3 MB of weights from storage."""
    facts = {"app_bytes": 1e6, "storage_bytes_per_s": 1e5}
    tables = [f'[{name}]\nvalue = {value}\nsource = "made up"\n' for name, value in facts.items()]
    phone = phone_with(tmp_path, ("[npu]\n", "\n".join([*tables, "[npu]\n"])))
    most = Budget(step_ms=1000.0, device=phone, schemes=("fp16",))
    with pytest.raises(InputError, match=r"of 1000 ms .* do not fit into one app .* limit megabyt"):
        planned(student, asked("text_encoder", Intent("fp16", budget=most)), "text_encoder", work)


def test_another_form_of_attention_has_ranges_of_its_own(student: Student, work: Path) -> None:
    """Values are named after operations, so what one form measured says nothing of another."""
    found = {}
    for form in ("per-head", "fused"):
        # A new `Activity` each time: what it finds is in the work folder.
        activity = Activity(student, RECIPE, work, Journal())
        found[form] = activity.ranges(with_attention(graph(student, "text_encoder"), form)).keys()
    assert found["per-head"] != found["fused"]
    again = Activity(student, RECIPE, work, journal := Journal())
    assert (
        again.ranges(with_attention(graph(student, "text_encoder"), "fused")).keys()
        == (found["fused"])
    )
    assert all(step.reused for step in journal.steps)


def test_a_processor_that_computes_in_float32_is_not_folded_for(
    student: Student, work: Path
) -> None:
    """The shipped denoiser's norms square values to 98 % of what half precision holds."""
    on_gpu = planned(student, asked("denoiser", Intent("int8"), "litert"), "denoiser", work)
    recipe = asked("denoiser", Intent("int8"), "litert", profile="cpu")
    on_cpu = planned(student, recipe, "denoiser", work)
    assert on_gpu.hazards
    assert all(hazard.folded for hazard in on_gpu.hazards)
    assert on_cpu.hazards == ()
    assert on_gpu.key != on_cpu.key


def test_floors_do_not_change_a_plan(student: Student, work: Path) -> None:
    recipe = asked("decoder", Intent("fp16"))
    other = replace(recipe.targets["coreml"], image=Floors(1, 1))
    assert isinstance(other, TargetRecipe)
    same = replace(recipe, targets={"coreml": other})
    one, two = (planned(student, r, "decoder", work) for r in (recipe, same))
    assert one.key == two.key
