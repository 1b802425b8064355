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
    Budget,
    ComponentRecipe,
    Floors,
    Intent,
    Recipe,
    Scheme,
    Suppression,
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
    "palette2-g16-v2-scaled-lut8-weighted": Scheme("palette", 2, 16, 2, True, True, True),
    "sparse50-palette4": Scheme("palette", 4, sparse=50),
    "sparse25-fp16": Scheme("fp16", 16, sparse=25),
    "int4": Scheme("int", 4),
    "int4-b32": Scheme("int", 4, 32),
    "int8-a8": Scheme("int", 8, activations=8),
    "svd16-palette4-g16": Scheme("palette", 4, 16, rank=16),
    "4-bit": Scheme("bits", 4),
}
RECIPE = Recipe(
    "recipe/1",
    "nanoflux",
    "For tests.",
    4,
    ("a red circle",),
    {"coreml": TargetRecipe({"denoiser": ComponentRecipe(Floors(60, 60), "fp16")}, Floors(40, 40))},
)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_and_its_name_say_the_same(name: str) -> None:
    assert parse_scheme(name) == SCHEMES[name]
    assert str(SCHEMES[name]) == name


@given(
    st.builds(
        Scheme,
        st.just("palette"),
        bits=st.integers(1, 8),
        group=st.integers(0, 10**6),
        vector=st.sampled_from((1, 2, 4, 8)),
        scaled=st.booleans(),
        int8_lut=st.booleans(),
        weighted=st.booleans(),
        sparse=st.integers(0, 99),
        rank=st.integers(0, 512),
    )
)
def test_every_palette_has_a_name(scheme: Scheme) -> None:
    assert parse_scheme(str(scheme)) == scheme


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        *(("fp16", 16), ("palette4-g16", 4), ("palette4-v2", 2), ("int4-b32", 4), ("3-bit", 3)),
        *(("sparse50-palette4", 3), ("sparse75-fp16", 5), ("svd16-palette2", 2)),
    ],
)
def test_bits_of_a_weight(name: str, bits: float) -> None:
    """A mask takes one bit of every weight; what is left out takes no other."""
    assert parse_scheme(name).bits_per_weight == bits


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({}, "a budget limits bits, megabytes"),
        ({"bits": -1.0}, "a budget limits bits"),
        ({"step_ms": 9.0}, "step_ms is that of a device"),
        ({"bits": 4.0, "device": "iphone-15-pro"}, "step_ms is that of a device"),
        ({"bits": 4.0, "schemes": ("palette9",)}, "unknown scheme"),
    ],
)
def test_budgets_that_limit_nothing_or_make_no_sense(told: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Budget(**told)


def test_what_a_recipe_intends_holds_for_targets_that_say_nothing_else() -> None:
    floors = Floors(60, 60)
    everywhere = Intent("4-bit", {"edges": "fp16"})
    recipe = replace(
        RECIPE,
        components={"denoiser": everywhere},
        targets={
            "coreml": TargetRecipe({"denoiser": ComponentRecipe(floors)}, floors),
            "litert": TargetRecipe({"denoiser": ComponentRecipe(floors, "int8")}, floors),
        },
    )
    assert recipe.intent("coreml", "denoiser") == everywhere
    assert recipe.intent("litert", "denoiser") == Intent("int8")
    with pytest.raises(ValueError, match=r"targets\.coreml\.components\.denoiser has no scheme"):
        replace(recipe, components={})
    with pytest.raises(ValueError, match="layers and budget belong to a scheme"):
        ComponentRecipe(floors, layers={"edges": "fp16"})


def test_a_suppression_says_why() -> None:
    with pytest.raises(ValueError, match="gives no reason"):
        Suppression("ane/linear-layer", "decoder", " ")


@pytest.mark.parametrize(
    "name",
    [
        *("", "fp32", "FP16", " fp16", "fp16\n", "int5", "int8-g16", "palette", "palette0"),
        *("palette4-v3", "palette4-v1", "palette4-lut8-scaled", "sparse0-palette4", "svd0-int8"),
        *("sparse100-palette4", "palette4-a8", "fp16-a8", "int4-b0", "0-bit", "9-bit", "4-bits"),
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
    floors = ComponentRecipe(Floors(60, 61), "fp16")
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
        ComponentRecipe(Floors(1, 1), "int3")
    assert not issubclass(ValueError, InputError)
