"""What the output suffers when one layer is stored smaller, from gradients: all layers in one go.

To first order a changed weight moves the output y by J dW, and for a vector v of random signs
the mean of (v J dW)^2 is |J dW|^2 (Hutchinson, Communications in Statistics 19, 1990). One run back
gives v J for every weight at once, so a scheme of a layer costs one product instead of a run of the
graph: `sensitivity.measure` takes hours where this takes a minute. What it leaves out is the
curvature within a change; what it adds is the noise of few probes, about (2 / (inputs probes))**0.5
of a damage.

Around a plan that is compressed already, the output has an error r, and it counts whether a change
adds to r or takes from it: |r + J dW|^2 - |r|^2 = 2 r J dW + |J dW|^2. That is one run more.

Shapes: P pulls (the probes, then r where there is one), C choices of a layer, N its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanoflux_export.fitting.calibration import Calibration, Inputs
from nanoflux_export.fitting.sensitivity import Row, Sensitivity, Values, spread
from nanoflux_export.fitting.stored import Store, built
from nanoflux_export.graph import Function, MobileGraph, Segment
from nanoflux_export.layers import compressible
from nanoflux_export.work import Journal
from nanoflux_mobile.spec import Scheme

_SEED = 0

Build = Callable[[Segment], nn.Module]


@dataclass(frozen=True)
class _Start:
    """A function as it stands before any change.

    values: all values of every input's run, by name.
    pulls: of every input's run, (P, ...) for each output.
    damage, signal: mean squares of the error and of the float32 output.
    """

    values: list[Values]
    pulls: list[Values]
    damage: float
    signal: float


@dataclass(frozen=True)
class _Changes:
    """A layer of a built module: its weight, and what every choice adds to it, (C, N)."""

    name: str
    weight: Tensor
    schemes: Sequence[Scheme]
    bytes: Sequence[int]
    added_CN: Tensor


def estimate(
    graph: MobileGraph,
    calibration: Calibration,
    choices: Mapping[str, Sequence[Scheme]],
    store: Store,
    *,
    journal: Journal,
    base: Mapping[str, Scheme] | None = None,
    most_inputs: int = 64,
    probes: int = 1,
) -> Sensitivity:
    """The damage of every choice for every layer, all others as `base` says or in float32.

    Inputs are spread as in `sensitivity.measure`. Modules are built as they are needed, one at a
    time; the values between segments of all inputs are in memory. Around a base, damages are
    estimates that a large change can take below zero.
    """
    runs = {name: len(calibration.inputs[graph.name, name]) for name in graph.functions}
    of = sum(len(function.segments) for function in graph.functions.values())
    added: dict[tuple[str, Scheme], Row] = {}
    start, signal, done = 0.0, 0.0, 0
    for name, function in graph.functions.items():
        share = runs[name] / sum(runs.values())
        inputs = spread(calibration.inputs[graph.name, name], most_inputs)
        begun = _begin(function, inputs, lambda s: built(s, base or {}, store), bool(base), probes)
        start, signal = start + share * begun.damage, signal + share * begun.signal
        for segment in reversed(function.segments):
            module = built(segment, base or {}, store)
            layers = list(_changes(segment, module, choices, store))
            for row in _through(function, segment, module, layers, begun, probes):
                key = row.layer, row.scheme
                before = added[key].damage if key in added else 0.0
                added[key] = Row(*key, row.values, row.bytes, before + share * row.damage)
            done += 1
            journal.part(done, of)
    every = (added[layer, scheme] for layer, schemes in choices.items() for scheme in schemes)
    rows = (Row(r.layer, r.scheme, r.values, r.bytes, start + r.damage) for r in every)
    return Sensitivity(tuple(rows), signal, start)


def _changes(
    segment: Segment, module: nn.Module, choices: Mapping[str, Sequence[Scheme]], store: Store
) -> Iterator[_Changes]:
    """The layers of a module that have choices; their weights are asked for gradients."""
    if not segment.parameters:
        return
    plain = dict(compressible(segment, segment.build()))
    for layer, part in compressible(segment, module):
        if schemes := choices.get(layer.name):
            weight = part.get_parameter("weight").requires_grad_(True)
            source = plain[layer].get_parameter("weight").detach().numpy()
            stored = [store(layer, source, scheme) for scheme in schemes]
            here = weight.detach().flatten()
            added = torch.stack([torch.from_numpy(s.values).flatten() - here for s in stored])
            yield _Changes(layer.name, weight, schemes, [s.bytes for s in stored], added)


def _begin(
    function: Function, inputs: Sequence[Inputs], build: Build, based: bool, probes: int
) -> _Start:
    wanted = _forwards(function, inputs, lambda segment: segment.build().eval())
    values = _forwards(function, inputs, build) if based else wanted
    names = [spec.name for spec in function.outputs]
    size = sum(wanted[0][name].numel() for name in names)
    generator = torch.Generator().manual_seed(_SEED)
    pulls, damage, signal = [], 0.0, 0.0
    for got, want in zip(values, wanted, strict=True):
        errors = {name: got[name] - want[name] for name in names}
        damage += sum(float(e.double().square().sum()) for e in errors.values())
        signal += sum(float(want[name].double().square().sum()) for name in names)
        pulls.append({n: _pull(e, size, based, probes, generator) for n, e in errors.items()})
    return _Start(values, pulls, damage / (size * len(values)), signal / (size * len(values)))


def _pull(error: Tensor, size: int, based: bool, probes: int, generator: torch.Generator) -> Tensor:
    """Probes whose products squared are a mean square, then what the error's own change pulls."""
    signs = 2.0 * torch.randint(0, 2, (probes, *error.shape), generator=generator) - 1.0
    own = [error[None] * (2.0 / size)] if based else []
    return torch.cat([signs / size**0.5, *own])


@torch.no_grad()
def _forwards(function: Function, inputs: Sequence[Inputs], build: Build) -> list[Values]:
    """Every value of every input's run."""
    values: list[Values] = [{k: torch.from_numpy(x) for k, x in one.items()} for one in inputs]
    for segment in function.segments:
        module = build(segment)
        for one in values:
            made = module(*(one[name] for name in segment.inputs))
            results = (made,) if isinstance(made, Tensor) else made
            one |= dict(zip(segment.outputs, results, strict=True))
    return values


def _through(
    function: Function,
    segment: Segment,
    module: nn.Module,
    layers: Sequence[_Changes],
    begun: _Start,
    probes: int,
) -> Iterator[Row]:
    """Take all pulls backwards through a segment; what each choice of its layers adds."""
    totals = [torch.zeros(len(layer.schemes), dtype=torch.float64) for layer in layers]
    given = {spec.name for spec in function.inputs}
    for values, pulls in zip(begun.values, begun.pulls, strict=True):
        asked = {name: pulls.pop(name) for name in segment.outputs if name in pulls}
        wires = [name for name in segment.inputs if name not in given]
        grads = _pulled(segment, module, [x.weight for x in layers], values, wires, asked)
        for layer, total, grad in zip(layers, totals, grads, strict=False):
            moved_CP = (layer.added_CN @ grad.flatten(1).T).double()
            total += moved_CP[:, :probes].square().mean(1) + moved_CP[:, probes:].sum(1)
        for name, grad in zip(wires, grads[len(layers) :], strict=True):
            pulls[name] = pulls[name] + grad if name in pulls else grad
    for layer, total in zip(layers, totals, strict=True):
        damages = (total / len(begun.values)).tolist()
        for scheme, size, damage in zip(layer.schemes, layer.bytes, damages, strict=True):
            yield Row(layer.name, scheme, layer.weight.numel(), size, damage)


@torch.enable_grad()
def _pulled(
    segment: Segment,
    module: nn.Module,
    weights: Sequence[Tensor],
    values: Values,
    wires: Sequence[str],
    asked: Values,
) -> list[Tensor]:
    """What every pull asks of the weights, then of the wires: (P, ...) each."""
    leaves = {name: values[name].detach().requires_grad_(True) for name in wires}
    made = module(*(leaves.get(name, values[name]) for name in segment.inputs))
    results = dict(zip(segment.outputs, (made,) if isinstance(made, Tensor) else made, strict=True))
    sources = [*weights, *leaves.values()]
    if not sources or not asked:
        return []
    outputs = [results[name] for name in asked]
    count = len(next(iter(asked.values())))
    every = [
        torch.autograd.grad(
            outputs,
            sources,
            [pull[i] for pull in asked.values()],
            retain_graph=i + 1 < count,
            materialize_grads=True,
        )
        for i in range(count)
    ]
    return [torch.stack(grads) for grads in zip(*every, strict=True)]
