"""Read a saved package, without running it, for what the Neural Engine would not take well."""

from __future__ import annotations

from pathlib import Path

from nanoflux_export.graph import Finding
from nanoflux_export.targets.coreml.lint_rules import RULES, Graph
from nanoflux_export.targets.coreml.package import Package, open_package, reading
from nanoflux_export.targets.coreml.program import read_function
from nanoflux_export.targets.coreml.quiet import quiet


def lint(path: Path, component: str) -> tuple[Finding, ...]:
    """One finding per broken rule of `lint_rules.RULES`, its count summed over all functions.

    `component` is what the findings call the graph. None of them proves where an op will run:
    only a phone can.

    Raises:
        InputError: `path` is not a readable ML Program package.
    """
    with quiet():
        package = open_package(path)
    with reading(path):
        graphs = [_graph(package, name) for name in sorted(package.model.mlProgram.functions)]
        counts = [(rule, sum(rule.count(graph) for graph in graphs)) for rule in RULES]
    return tuple(
        Finding(component, rule.name, count, rule.advice) for rule, count in counts if count
    )


def _graph(package: Package, name: str) -> Graph:
    function = read_function(package, name)
    types = dict(function.inputs)
    types |= {key: literal.type for key, literal in function.literals.items()}
    for operation in function.operations:
        types |= operation.outputs
    sizes = [file.stat().st_size for file in package.model_folder.rglob("*.bin")]
    return Graph(function, types, max(sizes, default=0))
