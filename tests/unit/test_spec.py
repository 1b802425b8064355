"""Scheme names, tensor specs and digests: the words every part shares."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import (
    ComponentRecipe,
    Floors,
    Recipe,
    Scheme,
    TargetRecipe,
    TensorSpec,
    content_digest,
    parse_scheme,
)

SCHEMES = {
    "fp16": Scheme("fp16", 16),
    "int8": Scheme("int", 8),
    "palette1": Scheme("palette", 1),
    "palette4-g16": Scheme("palette", 4, 16),
    "palette6-g1": Scheme("palette", 6, 1),
    "palette8-g128": Scheme("palette", 8, 128),
}
RECIPE = Recipe(
    "recipe/1",
    "nanoflux",
    "For tests.",
    4,
    ("a red circle",),
    {"coreml": TargetRecipe({"denoiser": ComponentRecipe("fp16", Floors(60, 60))}, Floors(40, 40))},
)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_and_its_name_say_the_same(name: str) -> None:
    assert parse_scheme(name) == SCHEMES[name]
    assert str(SCHEMES[name]) == name


@given(st.integers(1, 8), st.integers(0, 10**6))
def test_every_palette_has_a_name(bits: int, group: int) -> None:
    scheme = Scheme("palette", bits, group)
    assert parse_scheme(str(scheme)) == scheme


@pytest.mark.parametrize(
    "name",
    [
        *("", "fp32", "FP16", " fp16", "fp16\n", "int4", "int8-g16", "palette", "palette0"),
        *("palette9", "palette4-g", "palette4-g0", "palette4-g016", "palette4-g-1"),
        *("palette4-g16x", "palette\u0664"),
    ],
)
def test_any_other_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown scheme .*; known: fp16, palette1\.\.8"):
        parse_scheme(name)


@given(st.text(max_size=20))
def test_no_text_is_understood_by_accident(text: str) -> None:
    try:
        scheme = parse_scheme(text)
    except ValueError:
        return
    assert str(scheme) == text


def test_every_axis_of_a_tensor_has_a_name() -> None:
    with pytest.raises(ValueError, match="latents names 1 axes"):
        TensorSpec("latents", ("batch",), (1, 16), "float32")


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_step_counts_that_no_schedule_has(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps}; accepted: 1 to 100"):
        replace(RECIPE, steps=steps)


@pytest.mark.parametrize("side", [-1, 1, 63, 4097])
def test_sides_that_no_picture_has(side: int) -> None:
    with pytest.raises(ValueError, match=f"side is {side}; accepted: 64 to 4096"):
        replace(RECIPE, side=side)
    assert [replace(RECIPE, side=good).side for good in (0, 64, 4096)] == [0, 64, 4096]


def test_a_recipe_without_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="calibration_prompts is empty"):
        replace(RECIPE, calibration_prompts=())


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def shuffled(value: Any, chance: random.Random) -> Any:
    """The same value, every table in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, chance)) for key, item in value.items()]
        chance.shuffle(items)
        return dict(items)
    return [shuffled(item, chance) for item in value] if isinstance(value, list) else value


@given(plain, st.randoms(use_true_random=False))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: Any, chance: random.Random) -> None:
    assert content_digest(shuffled(value, chance)) == content_digest(value)


def test_a_digest_is_the_sha256_of_compact_json() -> None:
    text = '{"a":[1,2.5,"é"],"b":null}'
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert content_digest({"b": None, "a": [1, 2.5, "é"]}) == digest


def test_a_digest_depends_on_the_order_of_lists_and_on_every_value() -> None:
    values = [
        {"a": [1, 2]},
        {"a": [2, 1]},
        {"a": [1, "2"]},
        {"b": [1, 2]},
        {"a": [1, 2], "b": None},
    ]
    assert len({content_digest(value) for value in values}) == len(values)


def test_everything_a_recipe_says_is_in_its_digest() -> None:
    floors = ComponentRecipe("fp16", Floors(60, 61))
    others = [
        replace(RECIPE, steps=5),
        replace(RECIPE, name="other"),
        replace(RECIPE, summary="Other."),
        replace(RECIPE, overrides={"steps": "4"}),
        replace(RECIPE, proof="steps"),
        replace(RECIPE, side=512),
        replace(RECIPE, loras={"a.safetensors": 1.0}),
        replace(RECIPE, calibration_prompts=("a blue circle",)),
        replace(RECIPE, targets={"coreml": TargetRecipe({"denoiser": floors}, Floors(40, 40))}),
    ]
    assert len({recipe.digest for recipe in (RECIPE, *others)}) == 1 + len(others)
    assert replace(RECIPE).digest == RECIPE.digest


def test_a_scheme_nobody_knows_is_refused_in_a_recipe() -> None:
    with pytest.raises(ValueError, match="unknown scheme 'int3'"):
        ComponentRecipe("int3", Floors(1, 1))
    assert not issubclass(ValueError, InputError)
