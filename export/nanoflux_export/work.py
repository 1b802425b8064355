"""Content-addressed work: a folder per step, named by everything that decides what is in it.

A finished folder is reused only when the inputs, the code and the tools are the same; a killed run
leaves nothing that looks finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import nanoflux_mobile
from nanoflux_mobile.spec import content_digest
from nanoflux_mobile.storage import file_sha256, staged_folder

WORK = ".work"
"""Folder next to the bundles that holds finished steps, so that any run can resume."""


@dataclass(frozen=True)
class Step:
    """One finished step of a run: how long it took, or that an earlier run's result was reused."""

    name: str
    seconds: float
    reused: bool = False


@dataclass(frozen=True)
class Journal:
    """What a run has done so far, and who wants to hear of it as it happens.

    `part` hears how much of the running step is done, and of how much.
    """

    began: Callable[[str], None] = lambda name: None
    ended: Callable[[Step], None] = lambda step: None
    part: Callable[[int, int], None] = lambda done, of: None
    steps: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        self.began(name)
        start = time.perf_counter()
        yield
        self._note(Step(name, time.perf_counter() - start))

    def reuse(self, name: str) -> None:
        """Note a step whose result was already there."""
        self.began(name)
        self._note(Step(name, 0.0, reused=True))

    def _note(self, step: Step) -> None:
        self.steps.append(step)
        self.ended(step)


@lru_cache(maxsize=1)
def code_digest() -> str:
    """sha256 over our own source files: results of other code are other results."""
    roots = {Path(__file__).parent, Path(nanoflux_mobile.__file__).parent}
    files = sorted(path for root in roots for path in root.rglob("*.py"))
    return content_digest([file_sha256(path) for path in files])


def once(
    work: Path,
    name: str,
    inputs: Mapping[str, object],
    make: Callable[[Path], None],
    journal: Journal,
) -> Path:
    """The folder that `make` fills for these inputs, made now or found from an earlier run."""
    key = content_digest({"code": code_digest(), "name": name, **inputs})
    folder = work / f"{name.replace(' ', '-')}-{key[:16]}"
    if folder.is_dir():
        journal.reuse(name)
        return folder
    with journal.step(name), staged_folder(folder) as aside:
        make(aside)
    return folder
