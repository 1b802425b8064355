"""Recipes: the shipped ones parse, others are refused in one sentence, overrides are on record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanoflux_export.pipeline import export
from nanoflux_export.recipe import load_recipe, shipped
from nanoflux_export.work import Journal
from nanoflux_mobile import plugins
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import parse_scheme

COMPONENTS = {"text_encoder", "denoiser", "decoder"}


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_covers_its_family(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.family in plugins.names("nanoflux_mobile.families")
    assert recipe.summary.endswith(".")
    assert set(recipe.targets) <= set(plugins.names("nanoflux_export.targets"))
    for key, target in recipe.targets.items():
        assert set(target.components) == COMPONENTS
        for part, component in target.components.items():
            assert parse_scheme(recipe.intent(key, part).scheme)
            assert 0 < component.floors.quality <= component.floors.graph <= 100


def test_the_demo_recipes_are_shipped() -> None:
    assert {"tiny-fp16", "tiny-small"} <= set(shipped())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A recipe file of the user's own."""
    return Path(tmp_path / "mine.toml")


GOOD = """
schema = "recipe/1"
family = "nanoflux"
summary = "Mine."
steps = 4
calibration_prompts = ["a red circle"]
[targets.coreml]
image = { graph = 40, quality = 30 }
components.denoiser = { scheme = "palette4-g16", floors = { graph = 60, quality = 20.5 } }
"""


def test_a_file_by_path(file: Path) -> None:
    file.write_text(GOOD, encoding="utf-8")
    recipe = load_recipe(str(file))
    assert (recipe.name, recipe.steps) == ("mine", 4)
    assert recipe.targets["coreml"].components["denoiser"].floors.quality == 20.5
    assert recipe.overrides == {}
    assert (recipe.proof, recipe.side, recipe.loras) == ("image", 0, {})


def test_a_network_too_slow_to_draw_with_is_proven_by_steps(file: Path) -> None:
    file.write_text(GOOD.replace("steps = 4", 'steps = 4\nproof = "steps"'), encoding="utf-8")
    assert load_recipe(str(file)).proof == "steps"


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown recipe 'nano'; known: .*tiny-small.*\.toml"):
        load_recipe("nano")


@pytest.mark.parametrize("name", ["../recipes/tiny-small", "tiny-small\n", "", "TINY-SMALL"])
def test_a_name_is_a_name_and_not_a_path(name: str) -> None:
    with pytest.raises(InputError, match="unknown recipe"):
        load_recipe(name)


WRONG = {
    "unknown key": ('summary = "Mine."', 'sumary = "Mine."', "has no field 'sumary'"),
    "missing key": ('family = "nanoflux"', "", "lacks family"),
    "wrong schema": ("recipe/1", "recipe/2", "'recipe/2'; known: recipe/1"),
    "steps as text": ("steps = 4", 'steps = "4"', "steps must be int"),
    "no steps": ("steps = 4", "steps = 0", "steps is 0; accepted: 1 to 100"),
    "steps as truth": ("steps = 4", "steps = true", "steps must be int"),
    "another proof": ("steps = 4", 'steps = 4\nproof = "words"', "'words'; known: image, steps"),
    "small picture": ("steps = 4", "steps = 4\nside = 32", "side is 32; accepted: 64 to 4096"),
    "no prompts": ('["a red circle"]', "[]", "calibration_prompts is empty"),
    "prompt as number": ('["a red circle"]', "[7]", "calibration_prompts[0] must be str"),
    "scheme": ("palette4-g16", "int3", "unknown scheme 'int3'; known: fp16"),
    "floor": ("quality = 20.5", 'quality = "high"', "floors.quality must be float"),
    "no floor": (", quality = 20.5", "", "floors lacks quality"),
    "not TOML": ("steps = 4", "steps = = 4", "is not valid TOML"),
    "twice": ("steps = 4", "steps = 4\nsteps = 5", "is not valid TOML"),
    "table as value": ("steps = 4", "steps = {}", "steps must be int"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_recipe_is_one_sentence_that_names_the_place(file: Path, case: str) -> None:
    old, new, words = WRONG[case]
    assert old in GOOD
    file.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_recipe(str(file))
    assert words in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("data", [None, b"\xff\xfe", b""])
def test_a_file_that_holds_no_recipe(file: Path, data: bytes | None) -> None:
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(InputError, match=r"mine\.toml"):
        load_recipe(str(file))


def test_a_folder_is_no_recipe(file: Path) -> None:
    file.mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(str(file))


DENOISER = "targets.coreml.components.denoiser"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("steps=7", lambda r: r.steps == 7),
        ("summary=Other words.", lambda r: r.summary == "Other words."),
        ("summary='steps=7'", lambda r: r.summary == "steps=7"),
        ('calibration_prompts=["a", "b"]', lambda r: r.calibration_prompts == ("a", "b")),
        (
            f"{DENOISER}.scheme=fp16",
            lambda r: r.targets["coreml"].components["denoiser"].scheme == "fp16",
        ),
        (
            f"{DENOISER}.floors.graph=12.5",
            lambda r: r.targets["coreml"].components["denoiser"].floors.graph == 12.5,
        ),
    ],
)
def test_an_override_changes_one_value_and_is_on_record(override: str, read: Any) -> None:
    plain, changed = load_recipe("tiny-small"), load_recipe("tiny-small", [override])
    assert read(changed)
    assert not read(plain)
    key, _, value = override.partition("=")
    assert changed.overrides == {key: value}
    assert changed.name == plain.name
    assert changed.digest != plain.digest


def test_an_override_that_changes_nothing_is_on_record_too() -> None:
    plain = load_recipe("tiny-small")
    same = load_recipe("tiny-small", [f"steps={plain.steps}"])
    assert same.steps == plain.steps
    assert same.digest != plain.digest


def test_the_last_of_two_overrides_wins() -> None:
    recipe = load_recipe("tiny-small", ["steps=3", "steps=5"])
    assert (recipe.steps, recipe.overrides) == (5, {"steps": "5"})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps", "is not key=value, such as steps=4"),
        ("=4", "is not key=value"),
        ("", "is not key=value"),
        ("step=4", "the recipe has no value 'step'"),
        ("steps.more=4", "the recipe has no value 'steps.more'"),
        ("targets.onnx.image.graph=4", "the recipe has no value 'targets.onnx.image.graph'"),
        (f"{DENOISER}.=4", "the recipe has no value"),
        ("steps=", "steps must be int, not ''"),
        ("steps=four", "steps must be int, not 'four'"),
        ("steps=4.0", "steps must be int, not 4.0"),
        ("steps=101", "steps is 101; accepted: 1 to 100"),
        (f"{DENOISER}.scheme=int3", "unknown scheme 'int3'"),
        (f"{DENOISER}.floors.graph=high", "graph must be float, not 'high'"),
        ("targets=7", "targets must be a table, not 7"),
        ("schema=recipe/2", "recipe/2"),
    ],
)
def test_a_wrong_override_says_why(override: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe("tiny-small", [override])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_target_is_refused_before_the_checkpoint_is_read(file: Path) -> None:
    file.write_text(GOOD.replace("coreml", "tensorrt"), encoding="utf-8")
    nowhere = file.parent / "nowhere"
    with pytest.raises(InputError, match=r"names target 'tensorrt'; known: coreml, litert, onnx"):
        export(nowhere, load_recipe(str(file)), file.parent / "out", Journal())
