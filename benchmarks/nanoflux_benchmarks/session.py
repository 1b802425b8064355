"""A judgement from files: read the report, its budget, its baseline and its bundle, then judge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanoflux_benchmarks.budget import MISSION, Budget, load_budget
from nanoflux_benchmarks.gate import judge
from nanoflux_benchmarks.importers import read_any
from nanoflux_benchmarks.validity import Expected, expected
from nanoflux_benchmarks.verdict import Verdict
from nanoflux_mobile.manifest import read_manifest
from nanoflux_mobile.report import LatencyReport


@dataclass(frozen=True)
class Judgement:
    """A verdict and everything it was made from."""

    verdict: Verdict
    report: LatencyReport
    baseline: LatencyReport | None
    budget: Budget | None
    wanted: Expected

    @property
    def title(self) -> str:
        """What was measured, where."""
        recipe = self.report.bundle.recipe or "a bundle"
        return f"{recipe} on {self.report.device.model}"


def evaluate(
    report: Path, budget: str | None, baseline: Path | None, bundle: Path | None
) -> Judgement:
    """Judge a report file.

    Raises:
        InputError: a file that cannot be read; the message names it and the field.
    """
    given = load_budget(budget or MISSION) if budget or not baseline else None
    measured = read_any(report)
    before = read_any(baseline) if baseline else None
    manifest = read_manifest(bundle) if bundle else None
    wanted = expected(given, manifest)
    return Judgement(judge(measured, given, wanted, before), measured, before, given, wanted)
