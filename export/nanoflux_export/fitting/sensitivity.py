"""What a graph's output suffers when one layer is stored smaller, measured and not guessed.

Every layer is stored in every scheme it may get, one at a time, and the graph runs on inputs it had
while it drew the calibration prompts. Damages of single layers nearly add up as long as the whole
is small. Where it is not, `measure` takes a plan to start from: then a row says what becomes of the
output when that plan changes in one layer, and what adds up are the changes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nanoflux_export.fitting.calibration import Calibration, Inputs
from nanoflux_export.fitting.marks import Key, Mark, kept_marks
from nanoflux_export.fitting.stored import Store, built
from nanoflux_export.graph import Function, MobileGraph
from nanoflux_export.layers import compressible
from nanoflux_export.work import Journal
from nanoflux_mobile.spec import Scheme

Values = dict[str, Tensor]
"""Inputs and wires of a function by name, of one run."""
Outputs = Mapping[str, Sequence[Tensor]]
"""By function, the outputs of every run, flat."""


@dataclass(frozen=True)
class Row:
    """One layer in one scheme.

    values: how many weights the layer has.
    bytes: what they take.
    damage: mean squared error of the graph's output against float32; infinite where the output
        was not finite.
    """

    layer: str
    scheme: Scheme
    values: int
    bytes: int
    damage: float


@dataclass(frozen=True)
class Sensitivity:
    """All rows of a graph, layers in the order they run.

    signal: mean square of the float32 output, over all inputs.
    start: damage of the plan that rows change in one layer; 0 where that is float32.
    """

    rows: tuple[Row, ...]
    signal: float
    start: float = 0.0

    def predicted(self, schemes: Mapping[str, Scheme]) -> float:
        """The damage of a plan, if what each layer changes adds up; KeyError for no such row."""
        damages = {(row.layer, row.scheme): row.damage for row in self.rows}
        changes = (damages[pair] - self.start for pair in schemes.items())
        return max(0.0, self.start + math.fsum(changes))

    def db(self, damage: float) -> float:
        """A damage as signal to noise in dB, at most 200."""
        ratio = self.signal / damage if damage > 0 else math.inf
        return min(200.0, 10 * math.log10(ratio)) if ratio > 0 else -math.inf


def measure(
    graph: MobileGraph,
    calibration: Calibration,
    choices: Mapping[str, Sequence[Scheme]],
    store: Store,
    *,
    cache: Path,
    journal: Journal,
    base: Mapping[str, Scheme] | None = None,
    most_inputs: int = 16,
) -> Sensitivity:
    """The damage of every choice for every layer, all other layers as `base` says or in float32.

    Of each function's inputs at most `most_inputs` are run, spread evenly over the prompts and the
    steps of the schedule: neighbouring steps see nearly the same, and time grows with their number.
    A function counts as often as it runs. All modules of one function are in memory meanwhile.

    Every finished row goes to the file `cache`, and a row found there is not measured again. The
    caller names the file by all that decides a row: the student, the calibration, the code, `base`.
    """
    total = sum(map(len, choices.values())) * len(graph.functions)
    with kept_marks(cache) as (known, note):
        for name, function in graph.functions.items():
            inputs = spread(calibration.inputs[graph.name, name], most_inputs)
            walk = _Walk(name, function, store, base or {})
            for mark in walk.marks(inputs, choices, known):
                note(mark)
                journal.part(min(len(known), total), total)
    runs = {name: len(calibration.inputs[graph.name, name]) for name in graph.functions}
    return _summed(known, choices, runs)


def damage_of(
    graph: MobileGraph,
    calibration: Calibration,
    schemes: Mapping[str, Scheme],
    store: Store,
    *,
    most_inputs: int = 16,
    plain: Outputs | None = None,
) -> tuple[float, float]:
    """The true damage of a whole plan, every layer of it stored, and the output's mean square.

    `plain` are the float32 `outputs` of the same inputs, for who asks of many plans.
    """
    wanted = plain or outputs(graph, calibration, {}, store, most_inputs=most_inputs)
    got = outputs(graph, calibration, schemes, store, most_inputs=most_inputs)
    return math.fsum(damages(got, wanted, calibration, graph)), math.fsum(
        damages(wanted, {}, calibration, graph)
    )


def damages(
    got: Outputs, wanted: Outputs, calibration: Calibration, graph: MobileGraph
) -> list[float]:
    """What every input has of the damage: they add up to it. Against nothing it is the signal."""
    runs = {name: len(calibration.inputs[graph.name, name]) for name in got}
    parts = []
    for name, those in got.items():
        share = runs[name] / sum(runs.values()) / len(those)
        errors = those
        if name in wanted:
            errors = [a - b for a, b in zip(those, wanted[name], strict=True)]
        means = [share * one.double().square().mean().item() for one in errors]
        parts += [mean if math.isfinite(mean) else math.inf for mean in means]
    return parts


@torch.inference_mode()
def outputs(
    graph: MobileGraph,
    calibration: Calibration,
    schemes: Mapping[str, Scheme],
    store: Store,
    *,
    most_inputs: int = 16,
) -> Outputs:
    """What every function answers to its inputs with layers stored; one module in memory."""
    found: dict[str, list[Tensor]] = {}
    for name, function in graph.functions.items():
        inputs = spread(calibration.inputs[graph.name, name], most_inputs)
        states: list[Values] = [{k: torch.from_numpy(x) for k, x in one.items()} for one in inputs]
        for i, segment in enumerate(function.segments):
            module = built(segment, schemes, store)
            states = [_after(function, i, module, state) for state in states]
        found[name] = [_flat(function, state) for state in states]
    return found


def spread(inputs: Sequence[Inputs], most: int) -> list[Inputs]:
    """At most so many of a function's inputs, evenly over all of them."""
    if len(inputs) <= most:
        return list(inputs)
    return [inputs[round(i)] for i in np.linspace(0, len(inputs) - 1, most)]


def _summed(
    marks: Mapping[Key, Mark],
    choices: Mapping[str, Sequence[Scheme]],
    runs: Mapping[str, int],
) -> Sensitivity:
    """The rows of all functions together, each counted as often as it runs."""
    share = {name: count / sum(runs.values()) for name, count in runs.items()}
    starts = {name: marks[name, "", ""] for name in runs}
    start = math.fsum(share[name] * mark.damage for name, mark in starts.items())
    signal = math.fsum(share[name] * mark.signal for name, mark in starts.items())

    def row(layer: str, scheme: Scheme) -> Row:
        # A function without the layer stays at what its start does to it.
        found = {name: marks.get((name, layer, str(scheme)), starts[name]) for name in runs}
        damage = math.fsum(share[name] * mark.damage for name, mark in found.items())
        own = next(mark for mark in found.values() if mark.layer)
        return Row(layer, scheme, own.values, own.bytes, damage)

    rows = [row(layer, scheme) for layer, schemes in choices.items() for scheme in schemes]
    return Sensitivity(tuple(rows), signal, start)


@dataclass(frozen=True)
class _Walk:
    """One function, walked from its first segment to its last.

    Before each segment the walk holds, for every input, the values that are still needed. A changed
    layer runs its segment and those behind it from there; what lies ahead ran once for all.
    """

    name: str
    function: Function
    store: Store
    base: Mapping[str, Scheme]

    @torch.inference_mode()
    def marks(
        self,
        inputs: Sequence[Inputs],
        choices: Mapping[str, Sequence[Scheme]],
        known: Collection[Key],
    ) -> Iterator[Mark]:
        """Measurements that are not known yet: the start of the walk, then layer by layer."""
        segments = self.function.segments
        todo = {
            layer: [s for s in schemes if (self.name, layer, str(s)) not in known]
            for layer, schemes in choices.items()
        }
        if (self.name, "", "") in known and not any(todo.values()):
            return
        modules = [copy.deepcopy(segment.build()).eval() for segment in segments]
        states = [{key: torch.from_numpy(x) for key, x in one.items()} for one in inputs]
        wanted = [self._run(modules, 0, state) for state in states]
        plain = self._stored_as_base(modules)
        damage = self._damage(modules, 0, states, wanted)
        yield Mark(self.name, "", "", 0, 0, damage, _mean_square(wanted))
        for i, (segment, module) in enumerate(zip(segments, modules, strict=True)):
            for layer, part in compressible(segment, module):
                weight = part.get_parameter("weight")
                kept = weight.data
                for scheme in todo.get(layer.name, ()):
                    stored = self.store(layer, plain[layer.name].numpy(), scheme)
                    weight.data = torch.from_numpy(stored.values)
                    damage = self._damage(modules, i, states, wanted)
                    size = kept.numel(), stored.bytes
                    yield Mark(self.name, layer.name, str(scheme), *size, damage)
                weight.data = kept
            states = [_after(self.function, i, module, state) for state in states]

    def _stored_as_base(self, modules: Sequence[nn.Module]) -> dict[str, Tensor]:
        """Store the layers that the base names; the float32 weights of all."""
        plain: dict[str, Tensor] = {}
        for segment, module in zip(self.function.segments, modules, strict=True):
            for layer, part in compressible(segment, module):
                weight = part.get_parameter("weight")
                plain[layer.name] = weight.data
                if layer.name in self.base:
                    stored = self.store(layer, weight.detach().numpy(), self.base[layer.name])
                    weight.data = torch.from_numpy(stored.values)
        return plain

    def _damage(
        self,
        modules: Sequence[nn.Module],
        start: int,
        states: Sequence[Values],
        wanted: Sequence[Tensor],
    ) -> float:
        pairs = zip(states, wanted, strict=True)
        errors = [self._run(modules, start, state) - want for state, want in pairs]
        damage = _mean_square(errors)
        return damage if math.isfinite(damage) else math.inf

    def _run(self, modules: Sequence[nn.Module], start: int, state: Values) -> Tensor:
        """All outputs, one after another, from the values before segment `start`."""
        for i in range(start, len(modules)):
            state = _after(self.function, i, modules[i], state)
        return _flat(self.function, state)


def _after(function: Function, i: int, module: nn.Module, state: Values) -> Values:
    """The values still needed behind segment `i`."""
    segment = function.segments[i]
    made = module(*(state[name] for name in segment.inputs))
    results = (made,) if isinstance(made, Tensor) else made
    values = state | dict(zip(segment.outputs, results, strict=True))
    needed = {name for later in function.segments[i + 1 :] for name in later.inputs}
    needed |= {spec.name for spec in function.outputs}
    return {name: value for name, value in values.items() if name in needed}


def _flat(function: Function, values: Values) -> Tensor:
    """All outputs, one after another."""
    return torch.cat([values[spec.name].flatten() for spec in function.outputs])


def _mean_square(tensors: Sequence[Tensor]) -> float:
    return float(np.mean([one.double().square().mean().item() for one in tensors]))
