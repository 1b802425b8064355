"""Statistics of launches against SciPy, closed forms and sessions whose truth is known.

Tolerances of rates are four standard errors of a binomial share, so that another stream of random
numbers would pass as well.
"""

from __future__ import annotations

import math
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from nanoflux_benchmarks import stats
from nanoflux_benchmarks.verdict import Interval
from nanoflux_mobile.errors import InputError

ROUNDING = 1e-9
SCRIPT = Path(__file__).parents[3] / "benchmarks/gate_study/simulate.py"

Run = list[list[float]]
times = st.floats(0.01, 1e6)
runs = st.lists(st.lists(times, min_size=1, max_size=6), min_size=2, max_size=7)
COMPARISONS = pytest.mark.parametrize("compare", [stats.compare, stats.compare_pairs])


def noisy(launches: int, images: int = 10, seed: int = 0, ms: float = 250.0) -> Run:
    random = np.random.default_rng(seed)
    of_launch = random.normal(0, 0.02, (launches, 1))
    return (ms * np.exp(of_launch + random.normal(0, 0.015, (launches, images)))).tolist()


def log_medians(run: Run) -> np.ndarray:
    return np.log(np.median(run, axis=1))


def bounds(interval: Interval) -> list[float]:
    return [interval.low, interval.value, interval.high]


def within_binomial(found: float, expected: float, trials: int) -> bool:
    return abs(found - expected) <= 4 * math.sqrt(expected * (1 - expected) / trials)


# Student's t


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 14, 99, 500])
def test_student_is_scipys(freedom: int) -> None:
    # The integration's step is 2e-4 radians of a bell 1 / sqrt(500) wide; the error is its square.
    assert stats.student(freedom) == pytest.approx(scipy_stats.t.ppf(0.975, freedom), rel=2e-5)


# Ratios


@pytest.mark.parametrize("launches", [2, 3, 5, 8, 20])
def test_pairs_are_a_t_interval_of_log_ratios(launches: int) -> None:
    baseline, candidate = noisy(launches, seed=1), noisy(launches, seed=2)
    ratios = log_medians(candidate) - log_medians(baseline)
    oracle = scipy_stats.ttest_1samp(ratios, 0).confidence_interval(0.95)
    expected = np.exp([oracle.low, ratios.mean(), oracle.high])
    assert bounds(stats.compare_pairs(baseline, candidate)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("a", "b"), [(3, 3), (5, 5), (8, 8), (5, 8), (20, 6)])
def test_separate_runs_are_welchs_interval_at_its_wide_side(a: int, b: int) -> None:
    baseline, candidate = noisy(a, seed=1), noisy(b, seed=2, ms=260.0)
    sides = log_medians(candidate), log_medians(baseline)
    oracle = scipy_stats.ttest_ind(*sides, equal_var=False).confidence_interval(0.95)
    low, value, high = np.log(bounds(stats.compare(baseline, candidate)))
    assert value == pytest.approx(sides[0].mean() - sides[1].mean(), abs=ROUNDING)
    assert value - low == pytest.approx(high - value, abs=ROUNDING)
    # Between two and three degrees a straight line lies 3 % above the curve, later far less.
    assert 1 - 1e-6 <= (high - low) / (oracle.high - oracle.low) <= 1.03


@COMPARISONS
@given(run=runs)
def test_a_run_equals_itself(compare, run: Run) -> None:
    found = compare(run, run)
    assert found.value == 1.0
    assert found.low <= 1.0 <= found.high
    assert not stats.regressed(found)


@COMPARISONS
@settings(max_examples=30)
@given(seed=st.integers(0, 99), factor=st.floats(0.01, 100))
def test_units_and_exact_changes(compare, seed: int, factor: float) -> None:
    baseline, candidate = noisy(5, seed=seed), noisy(5, seed=seed + 100)
    found = np.array(bounds(compare(baseline, candidate)))
    rescaled = [(factor * np.array(run)).tolist() for run in (baseline, candidate)]
    assert bounds(compare(*rescaled)) == pytest.approx(found, rel=ROUNDING)
    assert bounds(compare(baseline, rescaled[1])) == pytest.approx(factor * found, rel=ROUNDING)


@COMPARISONS
@settings(max_examples=30)
@given(seed=st.integers(0, 99))
def test_swapped_sides_turn_the_ratio_over(compare, seed: int) -> None:
    baseline, candidate = noisy(5, seed=seed), noisy(5, seed=seed + 100)
    there, back = compare(baseline, candidate), compare(candidate, baseline)
    expected = [1 / there.high, 1 / there.value, 1 / there.low]
    assert bounds(back) == pytest.approx(expected, rel=ROUNDING)


@settings(max_examples=30)
@given(order=st.permutations(range(6)), images=st.permutations(range(10)))
def test_order_matters_only_between_partners(order: list[int], images: list[int]) -> None:
    baseline, candidate = noisy(6, seed=3), noisy(6, seed=4)
    moved = [[baseline[i][j] for j in images] for i in order]
    partners = [candidate[i] for i in order]
    apart = bounds(stats.compare(baseline, candidate))
    pairs = bounds(stats.compare_pairs(baseline, candidate))
    assert bounds(stats.compare(moved, candidate)) == pytest.approx(apart, rel=ROUNDING)
    assert bounds(stats.compare_pairs(moved, partners)) == pytest.approx(pairs, rel=ROUNDING)


@pytest.mark.parametrize("pairs", [4, 5, 6, 7, 8])
def test_a_steady_drift_cancels_over_even_pairs(pairs: int) -> None:
    slope, sides = 0.004, ([], [])
    for slot in range(2 * pairs):
        side = sides[(slot + 1) // 2 % 2]  # A B B A A B B A ...
        side.append([250 * math.exp(slope * slot)] * 10)
    found = math.log(stats.compare_pairs(*sides).value)
    left_over = slope / pairs if pairs % 2 else 0.0
    assert found == pytest.approx(left_over, abs=ROUNDING)


def test_what_neighbours_share_cancels() -> None:
    random = np.random.default_rng(0)
    shared = np.exp(random.normal(0, 0.10, (8, 1)))
    sides = [250 * shared * np.exp(random.normal(0, 0.002, (8, 10))) for _ in "ab"]
    candidate = 1.05 * sides[1]
    pairs, apart = stats.compare_pairs(sides[0], candidate), stats.compare(sides[0], candidate)
    assert pairs.value == pytest.approx(1.05, rel=0.005)
    assert stats.regressed(pairs)
    assert not stats.regressed(apart)
    assert (apart.high - apart.low) > 20 * (pairs.high - pairs.low)


def test_an_outlier_among_ten_images_moves_nothing() -> None:
    baseline, candidate = noisy(5, seed=1), noisy(5, seed=2)
    struck = [[*sorted(row)[:-1], 1e5] for row in candidate]
    assert stats.compare(baseline, struck) == stats.compare(baseline, candidate)


# The rule


def test_the_rule_by_hand() -> None:
    quiet = [[100.0] * 10] * 5
    for slowdown, claimed in ((1.0, False), (1.0299, False), (1.0301, True), (0.5, False)):
        found = stats.compare(quiet, [[100.0 * slowdown] * 10] * 5)
        assert bounds(found) == pytest.approx([slowdown] * 3, rel=ROUNDING)
        assert stats.regressed(found) is claimed
    assert not stats.regressed(Interval(1.2, 0.99, 1.4))
    assert not stats.regressed(Interval(1.02, 1.01, 1.03))


@given(value=st.floats(-0.2, 0.2), reach=st.floats(0, 0.2))
def test_shortfall_is_the_rule(value: float, reach: float) -> None:
    left = float(stats.shortfall(np.array(value), np.array(reach)))
    ratio = Interval(*np.exp([value, value - reach, value + reach]).tolist())
    assert abs(left) < ROUNDING or stats.regressed(ratio) is (left < 0)


# How often intervals hold the truth


@pytest.mark.parametrize("launches", [3, 5, 8])
def test_intervals_hold_as_often_as_they_say(launches: int) -> None:
    trials = 4000
    random = np.random.default_rng(launches)
    a, b = (random.normal(0, 0.02, (trials, launches)) for _ in "ab")
    value, reach = stats.pair_ratio(a, b)
    assert within_binomial(float((np.abs(value) <= reach).mean()), 0.95, trials)
    value, reach = stats.run_ratio(a, b)
    held = float((np.abs(value) <= reach).mean())
    assert within_binomial(held, 0.95, trials) or held > 0.95  # Welch errs to the wide side


def test_separate_runs_of_unequal_noise_and_size() -> None:
    trials = 4000
    random = np.random.default_rng(1)
    a, b = random.normal(0, 0.01, (trials, 20)), random.normal(0, 0.05, (trials, 5))
    value, reach = stats.run_ratio(a, b)
    assert within_binomial(float((np.abs(value) <= reach).mean()), 0.95, trials)


@pytest.mark.parametrize("launches", [5, 8])
def test_medians_of_a_run_hold_as_often_as_they_say(launches: int) -> None:
    trials = 200
    found = [stats.quantile_interval(noisy(launches, seed=i), 0.5) for i in range(trials)]
    held = sum(each.low <= 250.0 <= each.high for each in found) / trials
    assert within_binomial(held, 0.95, trials)


# Quantiles of a run


@given(
    run=st.integers(2, 6).flatmap(
        lambda n: st.lists(st.lists(times, min_size=n, max_size=n), min_size=2, max_size=6)
    ),
    quantile=st.sampled_from([0.1, 0.5, 0.9, 0.99]),
)
def test_value_is_numpys_quantile_of_all_images(run: Run, quantile: float) -> None:
    found = stats.quantile_interval(run, quantile)
    pooled = np.concatenate(run)
    expected = np.quantile(pooled, quantile, method="averaged_inverted_cdf")
    assert found.value == pytest.approx(expected, rel=ROUNDING)
    assert 0 <= found.low <= found.value <= found.high


@pytest.mark.parametrize(("quantile", "images"), [(0.5, 10), (0.9, 10), (0.5, 1)])
def test_bounds_are_the_bootstraps_standard_error_times_t(quantile: float, images: int) -> None:
    run = np.array(noisy(4, images, seed=5))
    oracle = scipy_stats.bootstrap(
        (np.arange(4),),
        lambda picked: np.quantile(run[picked], quantile, method="averaged_inverted_cdf"),
        n_resamples=2000,
        vectorized=False,
        rng=np.random.default_rng(7),
    ).standard_error
    found = stats.quantile_interval(run, quantile)
    reach = scipy_stats.t.ppf(0.975, 3) * oracle * math.sqrt(4 / 3)
    # A standard deviation of 2,000 draws is off by 1.6 % (twice that for long tails), here twice.
    assert found.high - found.value == pytest.approx(reach, rel=0.1)
    assert found.value - found.low == pytest.approx(reach, rel=0.1)


def test_launches_weigh_the_same_however_many_images_they_have() -> None:
    assert stats.quantile_interval([[1.0] * 2, [2.0] * 50, [3.0] * 2], 0.5).value == 2.0
    assert stats.quantile_interval([[1.0] * 90, [2.0], [2.0]], 0.5).value == 2.0
    run = noisy(5, seed=6)
    longer = [row * (1 + i) for i, row in enumerate(run)]
    expected = bounds(stats.quantile_interval(run, 0.5))
    assert bounds(stats.quantile_interval(longer, 0.5)) == pytest.approx(expected, rel=ROUNDING)


def test_a_constant_run_has_no_width() -> None:
    assert stats.quantile_interval([[7.0] * 3] * 5, 0.9) == Interval(7.0, 7.0, 7.0)
    assert stats.quantile_interval([[0.0]] * 5, 0.5) == Interval(0.0, 0.0, 0.0)


@settings(max_examples=20)
@given(factor=st.floats(1e-3, 1e6))
def test_quantiles_scale_and_repeat(factor: float) -> None:
    run = noisy(5, seed=9)
    found = np.array(bounds(stats.quantile_interval(run, 0.5)))
    scaled = stats.quantile_interval((factor * np.array(run)).tolist(), 0.5)
    assert bounds(scaled) == pytest.approx(factor * found, rel=ROUNDING)


def test_large_runs_are_resampled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    run = noisy(6, seed=2)
    whole = stats.quantile_interval(run, 0.9)
    monkeypatch.setattr(stats, "_CELLS", 1000)
    assert stats.quantile_interval(run, 0.9) == whole


def test_the_seed_decides_the_resamples() -> None:
    run = noisy(5, seed=2)
    assert stats.quantile_interval(run, 0.5, seed=1) == stats.quantile_interval(run, 0.5, seed=1)
    assert stats.quantile_interval(run, 0.5, seed=1) != stats.quantile_interval(run, 0.5, seed=2)


# Power


@pytest.mark.parametrize("paired", [True, False])
def test_power_of_quiet_launches_is_the_least_effect(paired: bool) -> None:
    quiet = [[100.0] * 10] * 5
    found = stats.power(quiet, quiet, "step", paired)
    assert (found.stage, found.noise_floor) == ("step", 1.0)
    assert found.smallest_caught == pytest.approx(1 + stats.MIN_EFFECT, rel=ROUNDING)


@pytest.mark.parametrize("paired", [True, False])
def test_power_of_many_launches_is_the_textbooks(paired: bool) -> None:
    baseline, candidate = noisy(200, 1, seed=1), noisy(200, 1, seed=2)
    a, b = log_medians(baseline), log_medians(candidate)
    error = math.sqrt((b - a).var() / 200 if paired else (a.var() + b.var()) / 200)
    found = stats.power(baseline, candidate, "image", paired, min_effect=0.0)
    # Quantiles of 2,000 draws are off by about 2 %, here three times that.
    assert math.log(found.noise_floor) == pytest.approx(1.960 * error, rel=0.06)
    assert math.log(found.smallest_caught) == pytest.approx((1.960 + 0.842) * error, rel=0.06)


@pytest.mark.parametrize("paired", [True, False])
def test_power_keeps_its_word_with_five_launches(paired: bool) -> None:
    told = [
        stats.power(noisy(5, seed=i), noisy(5, seed=1000 + i), "image", paired) for i in range(60)
    ]
    a, b = (log_medians(noisy(5 * 2000, seed=seed)).reshape(2000, 5) for seed in (5000, 5001))
    ratio = stats.pair_ratio if paired else stats.run_ratio
    value, reach = ratio(a, b)
    floors, caught = (
        np.log([getattr(each, name) for each in told])
        for name in ("noise_floor", "smallest_caught")
    )
    assert np.mean(np.abs(value) <= floors[:, None]) >= 0.93
    assert np.mean(stats.shortfall(value, reach) < caught[:, None]) >= 0.78


def test_more_launches_see_more() -> None:
    found = [
        stats.power(noisy(n, seed=1), noisy(n, seed=2), "image", True).smallest_caught
        for n in (3, 5, 8, 20)
    ]
    assert found == sorted(found, reverse=True)
    assert stats.power(noisy(5), noisy(5, seed=1), "image", True) == stats.power(
        noisy(5), noisy(5, seed=1), "image", True
    )


# Few launches, bad input


def test_two_launches_say_little() -> None:
    found = stats.compare_pairs([[100.0], [101.0]], [[110.0], [113.0]])
    assert found.value > 1.1
    assert not stats.regressed(found)


@pytest.mark.parametrize("call", [stats.compare, stats.compare_pairs])
@pytest.mark.parametrize(
    ("run", "words"),
    [
        ([], "launches: 0|0 and 2 launches"),
        ([[1.0, 2.0]], "launches: 1|1 and 2 launches"),
        ([[1.0], []], "launch 2"),
        ([[1.0], [0.0]], "launch 2, of median 0.0 ms"),
        ([[0.0, 0.0, 1.0], [1.0]], "launch 1"),
        ([[1.0], [-1.0]], "launch 2"),
        ([[1.0], [math.nan]], "launch 2"),
        ([[1.0, 1.0, math.inf], [1.0]], "launch 1"),
    ],
)
def test_runs_that_cannot_be_compared(call, run: Run, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call(run, [[1.0], [1.0]])
    with pytest.raises(InputError, match=words):
        call(run, run)


def test_pairs_need_partners() -> None:
    for call in (stats.compare_pairs, lambda a, b: stats.power(a, b, "image", True)):
        with pytest.raises(InputError, match="5 and 6 launches make no pairs"):
            call(noisy(5), noisy(6))


@pytest.mark.parametrize("run", [[], [[1.0]], [[1.0], []], [[1.0], [math.nan]], [[1.0], [-1.0]]])
def test_quantiles_of_nothing(run: Run) -> None:
    with pytest.raises(InputError, match="launch"):
        stats.quantile_interval(run, 0.5)


@pytest.mark.parametrize("paired", [True, False])
def test_absurd_runs_stay_finite(paired: bool) -> None:
    a, b = [[1e-6], [1e9]], [[1e9], [1e-6]]
    compare = stats.compare_pairs if paired else stats.compare
    found = compare(a, b)
    power = stats.power(a, b, "image", paired)
    assert np.isfinite([*bounds(found), power.noise_floor, power.smallest_caught]).all()
    assert not stats.regressed(found)


# The simulation study


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = spec_from_file_location("gate_study_simulate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_gate_keeps_its_promise_in_every_promised_noise(study: ModuleType) -> None:
    promised = [noise for noise in study.NOISES if noise.promised]
    assert {"drift of 3 %", "throttling in launches"} < {noise.name for noise in promised}
    for i, noise in enumerate(promised):
        random = np.random.default_rng([1, i])
        a, b = study.session(noise, "A B B A", 8, 1500, random)
        assert study.ours_paired(a, b).mean() <= 0.02, noise.name
        assert study.ours_paired(a, 1.05 * b).mean() >= 0.90, noise.name


def test_naive_ways_of_the_study_are_what_they_are_called(study: ModuleType) -> None:
    random = np.random.default_rng(4)
    a, b = study.session(study.PLAIN, "A B B A", 3, 40, random)
    flat = [side.reshape(40, -1) for side in (b, a)]
    ranks = scipy_stats.mannwhitneyu(*flat, axis=1, method="asymptotic", use_continuity=False)
    slower = ranks.statistic > 30 * 30 / 2
    assert (study.pooled_ranks(a, b) == ((ranks.pvalue < 0.05) & slower)).all()
    values = flat[0][:1]
    drawn = np.median(random.choice(values[0], (20000, 30)), axis=1)
    ours = np.concatenate([study._resampled_medians(values, random)[0] for _ in range(40)])
    # Where 20,000 draws and 12,000 draws of one distribution differ more than in one of 1,000.
    assert scipy_stats.ks_2samp(drawn, ours, method="asymp").statistic < 1.95 * math.sqrt(
        1 / 12000 + 1 / 20000
    )


def test_a_session_is_as_the_study_says(study: ModuleType) -> None:
    first, second = study.DESIGNS["A B B A"](4)
    assert first.tolist() == [0, 3, 4, 7]
    assert second.tolist() == [1, 2, 5, 6]
    calm = study.Noise("calm", launch=0.0, image=0.0, outliers=0.0, drift=0.03)
    a, b = study.session(calm, "all A, then all B", 4, 2, np.random.default_rng(0))
    assert a.shape == b.shape == (2, 4, study.IMAGES)
    assert (a[0, 0], b[0, -1]) == (pytest.approx(study.MS), pytest.approx(1.03 * study.MS))
