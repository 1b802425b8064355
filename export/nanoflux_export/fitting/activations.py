"""What flows through a graph in float32 on its calibration inputs, layer by layer and op by op.

Segments run one after another as `torch_run` does, so that a graph may be larger than memory.

Shapes: C input channels of a layer (of one group of a convolution).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf, isnan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nanoflux_export.fitting.calibration import Calibration
from nanoflux_export.graph import MobileGraph, Segment
from nanoflux_export.layers import Layer, compressible
from nanoflux_export.rewrites.scale_folding import Range
from nanoflux_export.torch_run import torch_runner


@dataclass(frozen=True)
class LayerStats:
    """What a layer takes and gives, over all prompts and steps.

    low, high: the least and the greatest value that enters it.
    mean_square: of each of its input channels, (C,).
    most_out: the greatest magnitude that it gives.
    """

    low: float
    high: float
    mean_square: NDArray[np.float64]
    most_out: float


def importance(stats: Mapping[str, LayerStats]) -> dict[str, NDArray[np.float64]]:
    """What each input channel of each layer weighs, as a plan takes it."""
    return {name: one.mean_square for name, one in stats.items()}


def input_ranges(stats: Mapping[str, LayerStats]) -> dict[str, tuple[float, float]]:
    """The least and the greatest value that enters each layer, as a plan takes it."""
    return {name: (one.low, one.high) for name, one in stats.items()}


def layer_stats(
    graph: MobileGraph,
    calibration: Calibration,
    *,
    keep: bool = True,
    on_entry: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, LayerStats]:
    """What enters every layer that can be stored small, by its name.

    Embeddings are left out: what enters them are tokens, not numbers. So are layers that ran for no
    entry of the calibration.

    Args:
        graph: what runs.
        calibration: its inputs.
        keep: whether modules stay in memory; without, the graph may be larger than it.
        on_entry: hears how many entries of the calibration are done, and of how many.
    """
    sums: dict[str, _Sums] = {}

    @contextmanager
    def watch(segment: Segment, module: nn.Module) -> Iterator[None]:
        with ExitStack() as hooks:
            for layer, part in compressible(segment, module):
                if not isinstance(part, nn.Embedding):
                    hear = partial(sums.setdefault(layer.name, _Sums(layer)).add, part)
                    hooks.callback(part.register_forward_hook(_heard(hear)).remove)
            yield

    _run(graph, calibration, watch, keep, on_entry)
    return {name: one.stats() for name, one in sums.items() if one.count}


Hear = Callable[[Tensor, Tensor], None]
Watch = Callable[[Segment, nn.Module], AbstractContextManager[object]]
"""What is open around every run of a segment's module."""


def _heard(hear: Hear) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    return lambda module, inputs, made: hear(inputs[0], made)


class _Sums:
    """What a layer took and gave so far."""

    def __init__(self, layer: Layer) -> None:
        self.low, self.high, self.most_out, self.count = inf, -inf, 0.0, 0
        self.squares_C = torch.zeros(layer.inputs, dtype=torch.float64)

    def add(self, part: nn.Module, x: Tensor, made: Tensor) -> None:
        """One run of the layer: channels are the last axis of a linear layer, else the second."""
        low, high = x.aminmax()
        self.low, self.high = min(self.low, low.item()), max(self.high, high.item())
        self.most_out = max(self.most_out, _most((made,)))
        channels = x.movedim(-1 if isinstance(part, nn.Linear) else 1, 0).flatten(1)
        norms = torch.linalg.vector_norm(channels, dim=1, dtype=torch.float64)
        # Groups of a convolution see other channels with the same columns of the weight.
        self.squares_C += norms.square().reshape(-1, len(self.squares_C)).sum(0)
        self.count += x.numel() // len(self.squares_C)

    def stats(self) -> LayerStats:
        """Them as one."""
        squares = (self.squares_C / self.count).numpy()
        return LayerStats(self.low, self.high, squares, self.most_out)


def wire_ranges(
    graph: MobileGraph,
    calibration: Calibration,
    *,
    keep: bool = True,
    on_entry: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Range]:
    """The greatest magnitudes of everything that a graph computes, over all prompts and steps.

    Wires, inputs and outputs of the graph go by their names, modules by `Segment.weights`, a slash
    and their path, and operations by the innermost module they run in, a colon and what torch calls
    them, as in `blocks.0/block.feed:mul`; the second of a kind in one run of a module is `mul.2`.
    Operations that only show values in another shape are left out, and weights do not count as
    entering. Arguments as in `layer_stats`.
    """
    found: dict[str, Range] = {}

    def note(name: str, entering: float, most: float) -> None:
        old = found.get(name, Range(0.0, 0.0))
        found[name] = Range(max(old.entering, entering), max(old.most, most))

    for name, function in graph.functions.items():
        for inputs in calibration.inputs[graph.name, name]:
            for spec in function.inputs:
                if np.issubdtype(inputs[spec.name].dtype, np.floating):
                    note(spec.name, 0.0, float(np.abs(inputs[spec.name]).max()))
    _run(graph, calibration, partial(_watched, note), keep, on_entry)
    return found


Note = Callable[[str, float, float], None]
"""Hears a name, the greatest magnitude that entered, and that of the result."""


@contextmanager
def _watched(note: Note, segment: Segment, module: nn.Module) -> Iterator[None]:
    """Notes every module, every operation and the wires that the segment makes."""
    operations = _Operations(note)

    def enter(path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        operations.inside.append((path, Counter()))

    def leave(path: str, module: nn.Module, inputs: tuple[Any, ...], made: Any) -> None:
        operations.inside.pop()
        note(path, _most(_floats(inputs)), _most(_floats(made)))

    def wires(module: nn.Module, inputs: tuple[Any, ...], made: Any) -> None:
        for name, x in zip(segment.outputs, _floats(made), strict=True):
            note(name, _most((x,)), _most((x,)))

    with ExitStack() as stack:
        for path, part in module.named_modules():
            name = f"{segment.weights}/{path}"
            stack.callback(part.register_forward_pre_hook(partial(enter, name)).remove)
            stack.callback(part.register_forward_hook(partial(leave, name)).remove)
        stack.callback(module.register_forward_hook(wires).remove)
        stack.enter_context(operations)
        yield


class _Operations(TorchFunctionMode):
    """Notes what every function of torch makes of floating tensors; `inside` are open modules."""

    def __init__(self, note: Note) -> None:
        super().__init__()
        self.note = note
        self.inside: list[tuple[str, Counter[str]]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The function's result."""
        made = func(*args, **(kwargs or {}))
        results = list(_floats(made))
        if self.inside and results:
            given = list(_floats((args, tuple((kwargs or {}).values()))))
            places = {x.untyped_storage().data_ptr() for x in given}
            if any(x.untyped_storage().data_ptr() not in places for x in results):
                path, seen = self.inside[-1]
                name = func.__name__.strip("_")
                seen[name] += 1
                label = name if seen[name] == 1 else f"{name}.{seen[name]}"
                flowing = (x for x in given if not isinstance(x, nn.Parameter))
                self.note(f"{path}:{label}", _most(flowing), _most(results))
        return made


def _floats(value: Any) -> Iterator[Tensor]:
    """All floating tensors in it."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _floats(one)


def _most(tensors: Iterable[Tensor]) -> float:
    """The greatest magnitude in them; infinity where there is a NaN."""
    with torch._C.DisableTorchFunction():  # measuring is no operation of the graph
        ends = [end.item() for x in tensors for end in x.aminmax()]
    return inf if any(map(isnan, ends)) else max(map(abs, ends), default=0.0)


class _Watched(nn.Module):
    """A segment's module that runs under watch."""

    def __init__(self, watch: Watch, segment: Segment, module: nn.Module) -> None:
        super().__init__()
        self.watch, self.segment, self.module = watch, segment, module

    def forward(self, *inputs: Tensor) -> Any:
        """As the module's."""
        with self.watch(self.segment, self.module):
            return self.module(*inputs)


def _run(
    graph: MobileGraph,
    calibration: Calibration,
    watch: Watch,
    keep: bool,
    on_entry: Callable[[int, int], None],
) -> None:
    entries = {name: calibration.inputs[graph.name, name] for name in graph.functions}
    done, count = 0, sum(map(len, entries.values()))
    for name, function in graph.functions.items():
        run = torch_runner(function, partial(_Watched, watch), keep=keep)
        for inputs in entries[name]:
            run(inputs)
            done += 1
            on_entry(done, count)
