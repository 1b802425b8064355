"""Read a saved ONNX folder, without running it, for what an NPU would not take well."""

from __future__ import annotations

from pathlib import Path

from nanoflux_export.findings import broken, crossings
from nanoflux_export.targets.onnx.cost import cost
from nanoflux_export.targets.onnx.lint_graph import read_views
from nanoflux_export.targets.onnx.lint_rules import CROSSINGS, LEAVING, OPEN, RULES
from nanoflux_export.targets.onnx.model_file import reading
from nanoflux_mobile.manifest import Finding


def lint(path: Path, component: str) -> tuple[Finding, ...]:
    """The rules that the models of `component` at `path` break; none when nothing is amiss.

    Raises:
        InputError: no readable model there.
    """
    with reading(path):
        file = read_views(path)
        found = broken(RULES, file, component)
    if any(finding.rule == OPEN for finding in found):
        return found  # what it costs depends on its sizes
    return (*found, *crossings(CROSSINGS, found, LEAVING, len(file), cost(path, component)))
