"""Read a saved package, without running it, for what the Neural Engine would not take well."""

from __future__ import annotations

from pathlib import Path

from nanoflux_export.findings import broken, crossings
from nanoflux_export.graph import Finding
from nanoflux_export.targets.coreml.cost import cost
from nanoflux_export.targets.coreml.lint_graph import read_file
from nanoflux_export.targets.coreml.lint_rules import CROSSINGS, FLEXIBLE, LEAVING, RULES
from nanoflux_export.targets.coreml.package import open_package, reading
from nanoflux_export.targets.coreml.quiet import quiet


def lint(path: Path, component: str) -> tuple[Finding, ...]:
    """One finding for each rule of `lint_rules` that the package breaks, over all its functions.

    What is wrong with a stored weight counts once, however many functions share it. `component`
    is what the findings call the graph. None of them proves where an op will run: only a phone can.

    Raises:
        InputError: `path` is not a readable ML Program package.
    """
    with quiet():
        package = open_package(path)
    with reading(path):
        file = read_file(package)
        found = broken(RULES, file, component)
    if any(finding.rule == FLEXIBLE for finding in found):
        return found  # what it costs depends on its sizes
    whole = cost(path, component)
    return (*found, *crossings(CROSSINGS, found, LEAVING, len(file.graphs), whole))
