"""A mobile graph run by PyTorch, segment by segment, behind the interface of saved files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from nanoflux_export.bundle import graphs_of
from nanoflux_export.graph import Function, MobileGraph, Runner, Segment
from nanoflux_mobile.drawing import Graphs
from nanoflux_mobile.spec import ComponentName

Prepare = Callable[[Segment, nn.Module], nn.Module]
"""What becomes of a segment's module before it runs."""


class Whole(nn.Module):
    """All segments of a function as one module in memory, for tools that want one."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.stages = nn.ModuleList(segment.build() for segment in function.segments)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The function's inputs in order to its outputs, a bare tensor when there is one."""
        values = {spec.name: x for spec, x in zip(self.function.inputs, inputs, strict=True)}
        for segment, stage in zip(self.function.segments, self.stages, strict=True):
            values |= _named(segment, stage(*(values[name] for name in segment.inputs)))
        results = tuple(values[spec.name] for spec in self.function.outputs)
        return results[0] if len(results) == 1 else results


def _named(segment: Segment, made: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
    results = (made,) if isinstance(made, Tensor) else made
    return dict(zip(segment.outputs, results, strict=True))


def torch_runner(
    function: Function, prepare: Prepare = lambda segment, module: module, *, keep: bool = True
) -> Runner:
    """A function in float32, each segment's module passed through `prepare` first.

    With `keep`, modules stay in memory between calls; without, the graph may be larger than it.
    """
    kept: dict[str, nn.Module] = {}

    def module_of(segment: Segment) -> nn.Module:
        if segment.weights in kept:
            return kept[segment.weights]
        made = prepare(segment, segment.build()).eval()
        return kept.setdefault(segment.weights, made) if keep else made

    @torch.inference_mode()
    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = {name: torch.from_numpy(array) for name, array in inputs.items()}
        for segment in function.segments:
            made = module_of(segment)(*(values[name] for name in segment.inputs))
            values |= _named(segment, made)
        return {spec.name: values[spec.name].numpy() for spec in function.outputs}

    return run


def torch_graphs(
    graphs: Sequence[MobileGraph],
    prepare: Callable[
        [ComponentName, Segment, nn.Module], nn.Module
    ] = lambda graph, segment, module: module,
    *,
    keep: bool = True,
) -> Graphs:
    """All graphs of a student; `prepare` also hears which graph and segment a module belongs to."""

    def runner(graph: MobileGraph, function: Function) -> Runner:
        return torch_runner(function, partial(prepare, graph.name), keep=keep)

    runners = {
        (graph.name, name): runner(graph, function)
        for graph in graphs
        for name, function in graph.functions.items()
    }
    return graphs_of(runners, "the student")
