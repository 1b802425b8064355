"""Read a saved package, without running it, for what the Neural Engine would not take well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanoflux_export.graph import Finding
from nanoflux_export.targets.coreml.lint_rules import RULES, Graph
from nanoflux_export.targets.coreml.package import Package, open_package, reading
from nanoflux_export.targets.coreml.program import Function, read_function
from nanoflux_export.targets.coreml.quiet import quiet


def lint(path: Path, component: str) -> tuple[Finding, ...]:
    """One finding per broken rule of `lint_rules.RULES`, its count summed over all functions.

    What is wrong with a stored weight counts once, however many functions share it. `component`
    is what the findings call the graph. None of them proves where an op will run: only a phone can.

    Raises:
        InputError: `path` is not a readable ML Program package.
    """
    with quiet():
        package = open_package(path)
    with reading(path):
        graphs = [_graph(package, name) for name in sorted(package.model.mlProgram.functions)]
        whole = [_stored(graphs)]
        counts = [(rule, sum(map(rule.count, whole if rule.stored else graphs))) for rule in RULES]
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


def _stored(graphs: Sequence[Graph]) -> Graph:
    """The ops of all functions that take a weight, one for each weight."""
    types = {name: made for graph in graphs for name, made in graph.types.items()}
    ops = {
        op.arguments["weight"]: op
        for graph in graphs
        for op in graph.function.operations
        if "weight" in op.arguments
    }
    size = max((graph.weight_bytes for graph in graphs), default=0)
    return Graph(Function({}, {}, {}, tuple(ops.values())), types, size)
