"""Read a .tflite file, without running it, for what a phone's GPU or CPU would not take well."""

from __future__ import annotations

from pathlib import Path

from nanoflux_export.findings import broken, crossings
from nanoflux_export.targets.litert.cost import cost
from nanoflux_export.targets.litert.lint_graph import Values, constants_of, view
from nanoflux_export.targets.litert.lint_rules import CROSSINGS, LEAVING, RULES
from nanoflux_export.targets.litert.model_file import ModelFile, read_model
from nanoflux_mobile.manifest import Finding


def lint(path: Path, component: str, profile: str = "") -> tuple[Finding, ...]:
    """The rules that the file of `component` at `path` breaks; none when nothing is amiss.

    `profile` is the processor that the file is for, gpu where it is empty.

    Raises:
        InputError: no .tflite file there, or a damaged one.
    """
    model = read_model(path)
    found = findings(model, component, profile, constants_of(path))
    functions = sum(bool(graph.signature) for graph in model.graphs)
    if profile == "cpu" or not functions:
        return found
    return (*found, *crossings(CROSSINGS, found, LEAVING, functions, cost(path, component)))


def findings(
    model: ModelFile,
    component: str,
    profile: str = "",
    values: Values = lambda graph, tensor: None,
) -> tuple[Finding, ...]:
    """The rules that a file already read breaks, save for how often it crosses processors.

    `values` reads its constants; without them, masks and epsilons are not judged.
    """
    return broken(RULES[profile or "gpu"], view(model, values), component)
