"""Farms are found by the names of their files, and the example workflows use verbs that exist."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from nanoflux_benchmarks import commands, farms
from nanoflux_mobile import plugins

yaml = pytest.importorskip("yaml")

PACKAGE = "nanoflux_benchmarks.farms"
REPOSITORY = Path(__file__).parents[4]
WORKFLOWS = sorted((REPOSITORY / "docs/workflows").glob("*.yml"))


def test_the_farms_are_those_of_the_house():
    expected = {"adb", "apple", "aws", "browserstack", "firebase", "host", "replay"}
    assert expected <= set(plugins.names(PACKAGE))


@pytest.mark.parametrize("name", plugins.names(PACKAGE))
def test_every_farm_measures_or_hands_in_and_collects(name):
    farm = plugins.load(PACKAGE, name)
    if hasattr(farm, "run"):
        assert list(inspect.signature(farm.run).parameters) == ["job", "address", "tell"]
    else:
        assert list(inspect.signature(farm.prepare).parameters) == ["job", "address", "folder"]
        assert list(inspect.signature(farm.collect).parameters) == ["results"]


@pytest.mark.parametrize("name", ["apple", "aws", "browserstack", "firebase"])
def test_a_farm_that_was_never_tried_says_so(name):
    assert "never ran" in " ".join((plugins.load(PACKAGE, name).__doc__ or "").split())


def test_a_new_farm_is_a_new_file(tmp_path, monkeypatch):
    (tmp_path / "nextdoor.py").write_text("def run(job, address, tell):\n    return ()\n")
    places = [*farms.__path__, str(tmp_path)]
    monkeypatch.setattr(farms, "__path__", places)
    monkeypatch.setattr(farms.__spec__, "submodule_search_locations", places)
    try:
        assert "nextdoor" in plugins.names(PACKAGE)
        assert plugins.load(PACKAGE, "nextdoor").run(None, "", print) == ()
    finally:
        sys.modules.pop(f"{PACKAGE}.nextdoor", None)


def test_there_is_a_workflow_for_every_farm():
    used = {device for path in WORKFLOWS for device in re.findall(r'"(\w+):\$', path.read_text())}
    assert used == {"adb", "apple", "aws", "browserstack", "firebase"}


def steps(path: Path) -> list[dict[str, Any]]:
    (job,) = yaml.safe_load(path.read_text("utf-8"))["jobs"].values()
    return list(job["steps"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_bounded_modest_and_ends_at_the_gate(path):
    text = path.read_text("utf-8")
    workflow = yaml.safe_load(text)
    # YAML 1.1 reads the key `on` as true.
    assert set(workflow[True]) == {"workflow_call"}
    assert workflow["permissions"]["contents"] == "read"
    assert set(workflow["permissions"].values()) <= {"read", "write"}
    assert all(job["timeout-minutes"] <= 360 for job in workflow["jobs"].values())
    assert "nanoflux gate " in steps(path)[-1]["run"]
    assert "never run" in text or "has run on a phone yet" in text


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_puts_nothing_of_others_into_a_script(path):
    for step in steps(path):
        # What GitHub pastes into a script is run as a part of it; variables are not.
        assert "${{" not in step.get("run", "")
        if "secrets." in str(step):
            assert set(step) == {"name", "run", "env"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_uses_options_that_exist(path):
    lines = [line for step in steps(path) for line in step.get("run", "").splitlines()]
    calls = [shlex.split(line) for line in lines if "/nanoflux " in line]
    assert {call[1] for call in calls} == {"bench", "gate"}
    for _, verb, *words in calls:
        known = inspect.signature(getattr(commands, verb)).parameters
        options = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
        assert options <= set(known)
