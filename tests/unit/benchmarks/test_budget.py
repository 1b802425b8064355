"""Budgets: the shipped one is the mission's, others are read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanoflux_benchmarks.budget import MISSION, Limits, load_budget, shipped_budgets
from nanoflux_mobile.errors import InputError


def test_the_mission_is_a_picture_of_512_pixels_in_two_and_a_half_seconds():
    budget = load_budget(MISSION)
    assert budget.image_side == 512
    assert budget.limits.of("image") == 2500
    # Ten steps take 2.400 s of the published 2.575 s.
    assert budget.limits.of("step") == pytest.approx(2500 * 2.400 / 2.575 / 10, abs=0.5)
    assert budget.limits.of("memory") is None


@pytest.mark.parametrize("name", shipped_budgets())
def test_every_shipped_budget_parses(name):
    assert load_budget(name).name == name


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(
        'schema = "budget/1"\nsummary = "ours"\n'
        "[limits]\nimage_ms = 100\nstep_ms = 10\n"
        '[devices."SM-S938B"]\nimage_ms = 80\npeak_bytes = 1e9\n'
    )
    return path


def test_a_device_has_its_own_limits_and_those_of_all_others(file):
    budget = load_budget(str(file))
    assert budget.name == "mine"
    assert budget.limits_for("Pixel 9") == Limits(image_ms=100, step_ms=10)
    assert budget.limits_for("SM-S938B") == Limits(image_ms=80, step_ms=10, peak_bytes=1e9)


BAD = {
    "a misspelt limit": ("[limits]", "[limits]\nimages_ms = 3", "limits has no field 'images_ms'"),
    "nothing allowed": ("image_ms = 100", "image_ms = 0", "image_ms is 0.0"),
    "below nothing": ("image_ms = 80", "image_ms = -1", "devices.SM-S938B: image_ms is -1.0"),
    "infinite": ("image_ms = 100", "image_ms = inf", "image_ms is inf"),
    "not a number": ("image_ms = 100", "image_ms = nan", "image_ms is nan"),
    "text": ("image_ms = 100", 'image_ms = "2.5 s"', "limits.image_ms must be float"),
    "another schema": ("budget/1", "budget/2", "schema is 'budget/2'"),
    "two launches": ("summary =", "launches = 2\nsummary =", "launches is 2; accepted: 3"),
    "no TOML": ("[limits]", "[limits", "is not valid TOML"),
    "twice": ("image_ms = 100", "image_ms = 1\nimage_ms = 2", "is not valid TOML"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_budget_is_one_sentence_with_its_place(case, file):
    old, new, text = BAD[case]
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=r"mine\.toml") as error:
        load_budget(str(file))
    assert text in str(error.value)


@pytest.mark.parametrize("name", ["fast", "no/such.toml", ".toml"])
def test_a_budget_that_is_not_there_is_named(name):
    with pytest.raises(InputError, match=name):
        load_budget(name)


def test_a_folder_and_a_picture_are_no_budgets(tmp_path):
    (tmp_path / "a.toml").mkdir()
    (tmp_path / "b.toml").write_bytes(b"\x89PNG\xff\xfe")
    for name in ("a.toml", "b.toml"):
        with pytest.raises(InputError, match="cannot be read"):
            load_budget(str(tmp_path / name))
