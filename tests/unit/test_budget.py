"""The bit budget: beside brute force, a bound of another kind, and random selections."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy")

from nanoflux_export.fitting.budget import Choice, Limits, Solution, solve
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Scheme

GAP = 1e-6
"""The share of the least damage that the solver may leave."""
LIMITED = ("bytes", "seconds", "peak_bytes")
SCHEMES = [Scheme("palette", bits) for bits in (1, 2, 3, 4, 6, 8)]


def make(layer: str, *terms: tuple[float, ...]) -> list[Choice]:
    """Choices of one layer: (damage, bytes[, seconds[, peak bytes]]) each."""
    return [Choice(layer, scheme, *t) for scheme, t in zip(SCHEMES, terms, strict=False)]


def layers_like_networks(seed: int, count: int, least: float = 1e-9) -> list[Choice]:
    """Damage falls by about four with every bit, and differs widely from layer to layer."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        worst, values = least * 10 ** rng.uniform(0, 4), rng.choice((192, 768, 3072)) * 192
        for scheme in SCHEMES:
            damage = worst * 4.0**-scheme.bits * rng.uniform(0.7, 1.4)
            taken = values * scheme.bits // 8 + 64
            made.append(Choice(f"l{i}", scheme, damage, taken, taken * 1e-9, taken * 2))
    return made


def selections(choices: list[Choice]) -> itertools.product[tuple[Choice, ...]]:
    by_layer: dict[str, list[Choice]] = {}
    for one in choices:
        by_layer.setdefault(one.layer, []).append(one)
    return itertools.product(*by_layer.values())


def keeps(picked: tuple[Choice, ...], limits: Limits) -> bool:
    return all(
        math.fsum(getattr(one, name) for one in picked) <= getattr(limits, name) for name in LIMITED
    )


def check(solution: Solution, choices: list[Choice], limits: Limits) -> None:
    """What any answer must be: one known choice per layer, true sums, within the limits."""
    known = {(one.layer, one.scheme): one for one in choices}
    picked = tuple(known[pair] for pair in solution.schemes.items())
    assert set(solution.schemes) == {one.layer for one in choices}
    assert solution.bytes == sum(one.bytes for one in picked)
    assert solution.peak_bytes == sum(one.peak_bytes for one in picked)
    assert solution.damage == math.fsum(one.damage for one in picked)
    assert keeps(picked, limits)
    assert solution.bound <= solution.damage
    assert 0 <= solution.gap <= GAP


terms = st.tuples(
    st.floats(0, 1e3, allow_subnormal=False).map(lambda x: float(f"{x:.6e}")),
    st.integers(0, 2**31),
    st.floats(0, 1e-2, allow_subnormal=False),
    st.integers(0, 2**31),
)
problems = st.lists(st.lists(terms, min_size=1, max_size=4), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(problems, st.tuples(*[st.floats(0, 1)] * 3), st.sampled_from([1.0, 1e-9, 1e9]))
def test_brute_force_finds_nothing_better(
    problem: list[list[tuple[float, ...]]], tight: tuple[float, ...], unit: float
) -> None:
    choices = [
        one
        for i, rows in enumerate(problem)
        for one in make(f"l{i}", *((t[0] * unit, *t[1:]) for t in rows))
    ]
    every = list(selections(choices))
    sums = [[math.fsum(getattr(c, name) for c in picked) for picked in every] for name in LIMITED]
    spans = zip(map(min, sums), map(max, sums), tight, strict=True)
    limits = Limits(*(low + share * (high - low) for low, high, share in spans))
    allowed = [math.fsum(c.damage for c in picked) for picked in every if keeps(picked, limits)]
    if not allowed:
        with pytest.raises(InputError, match="least possible"):
            solve(choices, limits)
        return
    solution = solve(choices, limits)
    check(solution, choices, limits)
    assert solution.damage <= min(allowed) + GAP * abs(min(allowed))
    assert solution.bound <= min(allowed) * (1 + 1e-12)  # sums in another order


def lagrangian_bound(choices: list[Choice], most: float) -> float:
    """The best of many prices: damage that no selection of `most` bytes goes below."""
    by_layer: dict[str, list[Choice]] = {}
    for one in choices:
        by_layer.setdefault(one.layer, []).append(one)
    damage = [np.array([one.damage for one in rows]) for rows in by_layer.values()]
    size = [np.array([one.bytes for one in rows]) for rows in by_layer.values()]
    best = -math.inf
    for price in np.geomspace(1e-18, 1e-8, 400):
        least = sum((d + price * b).min() for d, b in zip(damage, size, strict=True))
        best = max(best, float(least - price * most))
    return best


@pytest.mark.parametrize("bits", [1.3, 2.0, 2.7, 4.3, 6.5])
def test_a_network_s_worth_of_layers_lies_just_above_the_lagrangian_bound(bits: float) -> None:
    choices = layers_like_networks(1, 91)
    values = sum(one.bytes for one in choices if one.scheme.bits == 8)
    limits = Limits(bytes=values * bits / 8)
    solution = solve(choices, limits)
    check(solution, choices, limits)
    bound = lagrangian_bound(choices, limits.bytes)
    # Prices leave a gap of at most one layer's step, and the grid of prices adds a little.
    assert bound * (1 - 1e-9) <= solution.damage <= bound * 1.02


@pytest.mark.parametrize("seed", range(3))
def test_random_selections_within_the_limits_never_beat_it(seed: int) -> None:
    choices = layers_like_networks(seed, 12)
    total = sum(one.bytes for one in choices if one.scheme.bits == 3)
    limits = Limits(bytes=total, seconds=0.95e-9 * total, peak_bytes=2.1 * total)
    solution = solve(choices, limits)
    check(solution, choices, limits)
    by_layer = [choices[i : i + len(SCHEMES)] for i in range(0, len(choices), len(SCHEMES))]
    rng, tried = random.Random(seed), 0
    for _ in range(20_000):
        picked = tuple(row[min(rng.randrange(6), rng.randrange(6))] for row in by_layer)
        if keeps(picked, limits):
            tried += 1
            assert math.fsum(one.damage for one in picked) >= solution.damage * (1 - GAP)
    assert tried > 50


def test_more_room_never_hurts() -> None:
    choices = layers_like_networks(5, 20)
    floor = sum(one.bytes for one in choices if one.scheme.bits == 1)
    damages = [solve(choices, Limits(bytes=floor * x)).damage for x in np.linspace(1, 8.2, 25)]
    assert all(b <= a * (1 + GAP) for a, b in itertools.pairwise(damages))
    assert damages[-1] < damages[0] / 100


@pytest.mark.parametrize("unit", [1e-15, 1e-12, 1.0, 1e12])
def test_tiny_and_huge_damages_count_alike(unit: float) -> None:
    """The same problem in other units; one hopeless choice must not drown the rest."""
    hopeless = make("bad", (1e9 * unit, 0), (0.0, 100))
    close = [c for i in range(8) for c in make(f"l{i}", (unit * (3 + i), 10), (unit * 2, 20))]
    solution = solve([*hopeless, *close], Limits(bytes=100 + 8 * 10 + 4 * 10))
    wide = {name for name, scheme in solution.schemes.items() if scheme == SCHEMES[1]}
    assert wide == {"bad", "l4", "l5", "l6", "l7"}
    assert solution.damage == pytest.approx(unit * (3 + 4 + 5 + 6 + 4 * 2), rel=1e-12)


def test_negative_damages_are_gains() -> None:
    choices = [*make("a", (1.0, 1), (-5.0, 2)), *make("b", (0.5, 1), (0.25, 2))]
    solution = solve(choices, Limits(bytes=3))
    assert (solution.damage, solution.bytes) == (-4.5, 3)


def test_no_limits_give_every_layer_its_best() -> None:
    choices = layers_like_networks(2, 6)
    solution = solve(choices, Limits())
    best = [min(c.damage for c in choices if c.layer == f"l{i}") for i in range(6)]
    assert solution.damage == math.fsum(best)


def test_a_limit_met_exactly_is_kept() -> None:
    choices = [c for i in range(30) for c in make(f"l{i}", (2.0, 10**9 + i), (1.0, 2 * 10**9 + i))]
    exact = sum(10**9 + i for i in range(30)) + 7 * 10**9
    assert solve(choices, Limits(bytes=exact)).damage == 53.0
    assert solve(choices, Limits(bytes=exact - 1)).damage == 54.0


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(bytes=2e6), "2.000 MB cannot be kept: the least possible is 3.000 MB; raise"),
        (Limits(seconds=1e-3), "1.000 ms cannot be kept: the least possible is 2.000 ms"),
        (
            Limits(bytes=3.5e6, seconds=3e-3),
            "3.500 MB cannot be kept together with 3.000 ms: the l",
        ),
    ],
)
def test_an_impossible_limit_is_named_with_the_least_possible(limits: Limits, said: str) -> None:
    choices = make("a", (1.0, 3_000_000, 5e-3), (1.0, 4_000_000, 2e-3))
    with pytest.raises(InputError) as error:
        solve(choices, limits)
    assert said in str(error.value)


def test_no_choice_and_no_number_are_refused() -> None:
    for choices in ([], make("a", (math.nan, 1))):
        with pytest.raises(ValueError, match="finite"):
            solve(choices, Limits())


def test_the_solver_s_notes_to_itself_stay_out_of_the_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    print("before")
    for seed in range(3):
        solve(layers_like_networks(seed, 40), Limits(bytes=3_000_000))
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"
