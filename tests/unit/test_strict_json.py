"""Whatever a file says, it becomes the dataclass it claims to be or one InputError."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import ComponentRecipe, Floors, Recipe, TargetRecipe
from nanoflux_mobile.strict_json import from_plain, parse_json, to_plain


@dataclass(frozen=True)
class Box:
    """One field for every kind of annotation."""

    kind: Literal["small", "large"]
    size: tuple[int, float]
    labels: tuple[str, ...] = ()
    weight: float | None = None
    floors: Mapping[str, Floors] | None = None
    open: bool = False


finite = st.floats(allow_nan=False)
floors = st.builds(Floors, finite, finite)
boxes = st.builds(
    Box,
    kind=st.sampled_from(["small", "large"]),
    size=st.tuples(st.integers(), finite),
    labels=st.lists(st.text()).map(tuple),
    weight=st.none() | finite,
    floors=st.none() | st.dictionaries(st.text(), floors),
    open=st.booleans(),
)
schemes = st.sampled_from(["fp16", "palette1", "palette4-g16", "palette8", "int8"])
components = st.dictionaries(st.text(), st.builds(ComponentRecipe, floors, schemes), max_size=3)
recipes = st.builds(
    Recipe,
    schema=st.just("recipe/1"),
    family=st.text(),
    summary=st.text(),
    steps=st.integers(1, 100),
    calibration_prompts=st.lists(st.text(), min_size=1).map(tuple),
    targets=st.dictionaries(st.text(), st.builds(TargetRecipe, components, floors), max_size=3),
    name=st.text(),
    overrides=st.dictionaries(st.text(), st.text()),
)
scalars = st.none() | st.booleans() | st.integers() | st.just(10**400) | finite | st.text()
anything = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)

RECIPE: dict[str, Any] = {
    "schema": "recipe/1",
    "family": "nanoflux",
    "summary": "",
    "steps": 4,
    "calibration_prompts": ["a red circle"],
    "targets": {
        "coreml": {
            "components": {
                "denoiser": {"scheme": "palette4-g16", "floors": {"graph": 60.0, "quality": 20}}
            },
            "image": {"graph": 40, "quality": 15},
        }
    },
    "overrides": {},
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON document, itself left out."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inner:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


@given(boxes)
def test_every_annotation_survives_json(box: Box) -> None:
    assert from_plain(Box, json.loads(json.dumps(to_plain(box))), "box") == box


@given(recipes)
def test_recipes_survive_json(recipe: Recipe) -> None:
    again = from_plain(Recipe, json.loads(json.dumps(to_plain(recipe))), "recipe")
    assert again == recipe


@given(anything)
def test_arbitrary_json_is_an_input_error(data: object) -> None:
    with pytest.raises(InputError, match=r"^recipe "):
        from_plain(Recipe, data, "recipe")


@given(st.sampled_from(list(places(RECIPE))), anything)
def test_a_recipe_damaged_anywhere_is_a_recipe_or_an_input_error(
    path: tuple[Any, ...], damage: object
) -> None:
    data = copy.deepcopy(RECIPE)
    spot: Any = data
    for key in path[:-1]:
        spot = spot[key]
    spot[path[-1]] = damage
    try:
        recipe = from_plain(Recipe, data, "recipe")
    except InputError:
        return
    assert to_plain(from_plain(Recipe, to_plain(recipe), "recipe")) == to_plain(recipe)


FIXED = [(), ("targets", "coreml"), ("targets", "coreml", "image")]


@pytest.mark.parametrize("path", FIXED, ids=lambda path: ".".join(("recipe", *path)))
def test_an_unknown_field_is_refused_at_every_depth(path: tuple[str, ...]) -> None:
    data = copy.deepcopy(RECIPE)
    spot: Any = data
    for key in path:
        spot = spot[key]
    spot["colour"] = "red"
    place = ".".join(("recipe", *path))
    with pytest.raises(InputError, match=rf"^{place} has no field 'colour'; it has "):
        from_plain(Recipe, data, "recipe")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": "4"}, "recipe.steps must be int, not '4'"),
        ({"steps": True}, "recipe.steps must be int, not True"),
        ({"steps": 0}, "recipe: steps is 0; accepted: 1 to 100"),
        ({"schema": "recipe/2"}, "recipe.schema is 'recipe/2'; known: recipe/1"),
        ({"calibration_prompts": "one"}, "recipe.calibration_prompts must be a list, not 'one'"),
        ({"calibration_prompts": ["a", 1]}, "recipe.calibration_prompts[1] must be str, not 1"),
        ({"targets": []}, "recipe.targets must be a table, not []"),
        ({"colour": 1}, "recipe has no field 'colour'; it has schema, family"),
        ({"overrides": {"a": 1}}, "recipe.overrides.a must be str, not 1"),
    ],
)
def test_the_sentence_names_the_place_the_value_and_the_accepted(
    changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(InputError) as error:
        from_plain(Recipe, RECIPE | changes, "recipe")
    assert str(error.value).startswith(sentence)


def test_missing_fields_are_listed() -> None:
    data = {key: value for key, value in RECIPE.items() if key not in ("steps", "family")}
    with pytest.raises(InputError, match=r"^recipe lacks family, steps$"):
        from_plain(Recipe, data, "recipe")


def test_numbers_beyond_a_float_are_refused_in_words() -> None:
    damaged = {**RECIPE["targets"]["coreml"], "image": {"graph": 10**400, "quality": 1}}
    with pytest.raises(InputError, match=r"image\.graph"):
        from_plain(Recipe, RECIPE | {"targets": {"coreml": damaged}}, "recipe")


# JSON texts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NaN", "NaN is not a JSON number"),
        ("[Infinity]", "Infinity is not"),
        ('{"a": -Infinity}', "-Infinity is not"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' comes twice"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested deeper than 64 levels"),
        ('"[[[', "Unterminated string"),
    ],
)
def test_what_json_leaves_open_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_brackets_in_strings_do_not_nest():
    text = json.dumps(["[" * 100, '"{' * 100, "\\", "\n["])
    assert parse_json(text) == json.loads(text)
    assert parse_json("[" * 64 + "]" * 64)


@pytest.mark.parametrize(
    "text",
    [
        '"' + '\\"' * 1_000_000,
        "{" + ",".join(f'"{i}": 0' for i in range(100_000)) + ', "99999": 1}',
    ],
    ids=["a string without an end", "a late duplicate"],
)
def test_a_large_hostile_text_is_refused_in_time_that_grows_with_its_size(text):
    """Quadratic time would take hours here; nothing is timed."""
    with pytest.raises(ValueError, match=r"Unterminated|twice"):
        parse_json(text)


def test_half_a_character_is_refused():
    for data in ({"labels": ["\ud800"]}, {"floors": {"\udfff": {"graph": 1, "quality": 1}}}):
        whole = {"kind": "small", "size": [1, 2.0], **data}
        with pytest.raises(InputError, match="half a character"):
            from_plain(Box, whole, "box")
