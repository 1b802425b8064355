"""Content-addressed steps: reused only for equal inputs, never when a run was killed inside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import nanoflux_export
import nanoflux_mobile
from nanoflux_export import work
from nanoflux_export.work import Journal, Step, once


def writer(text: str, calls: list[str]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        calls.append(text)
        (folder / "result").write_text(text, encoding="utf-8")

    return make


def test_equal_inputs_are_done_once(tmp_path: Path) -> None:
    calls: list[str] = []
    journal = Journal()
    inputs = {"weights": "abc", "tools": {"torch": "2", "numpy": "1"}}
    swapped = {"tools": {"numpy": "1", "torch": "2"}, "weights": "abc"}
    first = once(tmp_path, "convert", inputs, writer("first", calls), journal)
    second = once(tmp_path, "convert", swapped, writer("second", calls), journal)
    assert (first, calls) == (second, ["first"])
    assert (first / "result").read_text("utf-8") == "first"
    assert [(step.name, step.reused) for step in journal.steps] == [
        ("convert", False),
        ("convert", True),
    ]


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("convert", {"weights": "abd", "tools": {"torch": "2"}}),
        ("convert", {"weights": "abc", "tools": {"torch": "2.1"}}),
        ("convert", {"weights": "abc"}),
        ("store", {"weights": "abc", "tools": {"torch": "2"}}),
    ],
)
def test_other_inputs_or_another_name_are_done_again(
    tmp_path: Path, name: str, inputs: dict[str, object]
) -> None:
    calls: list[str] = []
    known = {"weights": "abc", "tools": {"torch": "2"}}
    first = once(tmp_path, "convert", known, writer("first", calls), Journal())
    second = once(tmp_path, name, inputs, writer("second", calls), Journal())
    assert first != second
    assert calls == ["first", "second"]


def test_other_code_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    once(tmp_path, "convert", {}, writer("first", calls), Journal())
    monkeypatch.setattr(work, "code_digest", lambda: "another version")
    once(tmp_path, "convert", {}, writer("second", calls), Journal())
    assert calls == ["first", "second"]


def test_the_code_digest_reads_our_own_source() -> None:
    roots = [Path(module.__file__).parent for module in (nanoflux_mobile, nanoflux_export)]
    assert len(work.code_digest()) == 64
    assert all((root / "__init__.py").is_file() for root in roots)


def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").write_text("half", encoding="utf-8")
        raise RuntimeError("no")

    journal = Journal()
    with pytest.raises(RuntimeError, match="no"):
        once(tmp_path, "convert", {}, fails, journal)
    assert list(tmp_path.iterdir()) == []
    assert journal.steps == []
    calls: list[str] = []
    once(tmp_path, "convert", {}, writer("again", calls), journal)
    assert calls == ["again"]


def test_a_name_with_blanks_is_one_folder(tmp_path: Path) -> None:
    folder = once(tmp_path, "litert: store denoiser", {}, writer("x", []), Journal())
    assert folder.parent == tmp_path
    assert folder.name.startswith("litert:-store-denoiser-")


def test_the_journal_tells_as_it_happens() -> None:
    heard: list[object] = []
    journal = Journal(began=heard.append, ended=heard.append)
    with journal.step("long"):
        assert heard == ["long"]
    journal.reuse("short")
    (long, short) = journal.steps
    assert heard == ["long", long, "short", short]
    assert (long.name, long.reused) == ("long", False)
    assert long.seconds >= 0.0
    assert short == Step("short", 0.0, reused=True)


def test_the_journal_passes_on_how_far_a_step_is() -> None:
    heard: list[tuple[int, int]] = []
    journal = Journal(part=lambda done, of: heard.append((done, of)))
    with journal.step("long"):
        journal.part(1, 3)
        journal.part(2, 3)
    assert heard == [(1, 3), (2, 3)]
    Journal().part(1, 3)  # nobody listens


def test_the_journal_has_no_entry_for_a_step_that_failed() -> None:
    journal = Journal()
    with pytest.raises(ValueError, match="no"), journal.step("broken"):
        raise ValueError("no")
    assert journal.steps == []


KILLED = """
import os, signal, sys
from pathlib import Path
from nanoflux_export.work import Journal, once

def make(name):
    def fill(folder):
        (folder / "result").write_text(name)
        if name == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGKILL)
    return fill

journal = Journal()
for name in ("first", "second", "third"):
    once(Path(sys.argv[1]), name, {"n": 1}, make(name), journal)
print(*(f"{step.name} {step.reused}" for step in journal.steps), sep="\\n")
"""


def test_a_killed_run_is_resumed_where_it_was(tmp_path: Path) -> None:
    paths = [str(Path(module.__file__).parents[1]) for module in (nanoflux_mobile, nanoflux_export)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def run(killed_in: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, str(tmp_path), killed_in]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert run("second").returncode == -signal.SIGKILL
    finished = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert [path.name.partition("-")[0] for path in finished] == ["first"]

    done = run("nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["first True", "second False", "third False"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert sorted(path.read_text("utf-8") for path in tmp_path.glob("*/result")) == [
        "first",
        "second",
        "third",
    ]
