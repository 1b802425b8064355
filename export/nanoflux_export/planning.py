"""What a recipe asks for, compiled for one target: each graph's form, and its layers' schemes.

A target that cannot do what it is asked does the next best and says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from nanoflux_export.compression.plan import Plan
from nanoflux_export.fitting import activations
from nanoflux_export.fitting.activity import Activity, samples_of
from nanoflux_export.fitting.fit import Fit, Question, fit
from nanoflux_export.fitting.half_safety import found_in
from nanoflux_export.fitting.step_time import StepTime, step_time
from nanoflux_export.fitting.stored import storing
from nanoflux_export.graph import MobileGraph, Target
from nanoflux_export.layers import Layer, layers_of, resolved
from nanoflux_export.rewrites.head_attention import with_attention
from nanoflux_export.rewrites.low_rank import with_low_rank
from nanoflux_export.rewrites.scale_folding import find_folds, folded
from nanoflux_export.student import Student
from nanoflux_export.work import Journal, code_digest
from nanoflux_mobile import manifest, plugins
from nanoflux_mobile.device import load_device
from nanoflux_mobile.spec import Budget, ComponentName, Recipe, Scheme, content_digest, parse_scheme


@dataclass(frozen=True)
class Planned:
    """A graph in the form a target writes it, and how its layers are stored.

    unmet: what the recipe asked for and the target could not do.
    hazards: values that half precision loses or nearly loses, on the calibration prompts.
    fit: how the schemes were chosen, where a budget chose them.
    key: what decides the bytes of its files beside the student, in plain values.
    """

    graph: MobileGraph
    plan: Plan
    unmet: tuple[manifest.Unmet, ...] = ()
    hazards: tuple[manifest.Hazard, ...] = ()
    fit: Fit | None = None
    key: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> ComponentName:
        """The component."""
        return self.graph.name


@dataclass(frozen=True)
class Desk:
    """What the graphs of a student are planned with, for one target."""

    student: Student
    target: Target
    recipe: Recipe
    activity: Activity
    work: Path
    journal: Journal

    @property
    def profile(self) -> str:
        """The processor that files are shaped for."""
        return self.recipe.targets[self.target.NAME].profile or next(iter(self.target.PROFILES))

    @property
    def compute_unit(self) -> str:
        """That processor as apps call it."""
        return self.target.PROFILES[self.profile]


def sketch(desk: Desk, graph: MobileGraph) -> Planned:
    """About what a plan will be, without measuring anything: for asking whether there is room.

    InputError as `plan` raises it, for what is wrong with the recipe itself.
    """
    made, unmet = _asked(desk, graph)
    budget = desk.recipe.intent(desk.target.NAME, graph.name).budget
    if budget and budget.bits:
        made = Plan(Scheme("palette", math.ceil(budget.bits)), {}, desk.profile)
    return Planned(graph, made, unmet)


def plan(desk: Desk, graph: MobileGraph) -> Planned:
    """How a target stores one graph of a student under a recipe.

    InputError for a class or pattern of layers that the graph does not have, a scheme that a layer
    cannot have, or a budget that no choice of schemes keeps.
    """
    form = desk.recipe.targets[desk.target.NAME].attention or desk.target.ATTENTION
    graph = with_attention(graph, form)
    graph, hazards, folds = _safe_in_half(desk, graph)
    made, unmet = _asked(desk, graph)
    found, shape = None, {"attention": form, "folds": folds}
    if budget := desk.recipe.intent(desk.target.NAME, graph.name).budget:
        found = _fitted(desk, graph, made, budget, shape)
        made = dataclasses.replace(made, layers={**found.schemes, **made.layers})
    made = _informed(desk, graph, made)
    key = {**made.key, **shape}
    graph, made = with_low_rank(graph, made)
    return Planned(graph, made, unmet, hazards, found, key)


def _safe_in_half(
    desk: Desk, graph: MobileGraph
) -> tuple[MobileGraph, tuple[manifest.Hazard, ...], Mapping[str, object]]:
    """The graph with powers of two moved where half precision would lose values.

    Only where the processor computes in half precision, and the student is small enough to have
    drawn the calibration prompts.
    """
    headroom = desk.recipe.headroom
    if desk.compute_unit == "cpu" or desk.recipe.proof != "image" or not headroom:
        return graph, (), {}
    ranges = desk.activity.ranges(graph)
    folds = find_folds(graph, ranges, headroom)
    found = tuple(
        manifest.Hazard(graph.name, f"{one.module}:{one.op}", one.most, one.foldable)
        for one in found_in(ranges, folds, headroom)
    )
    return folded(graph, folds), found, folds.key


def _asked(desk: Desk, graph: MobileGraph) -> tuple[Plan, tuple[manifest.Unmet, ...]]:
    """The recipe's plan as the target can keep it, and where that is not what was asked."""
    intent = desk.recipe.intent(desk.target.NAME, graph.name)
    default, why = _met(desk, graph, parse_scheme(intent.scheme))
    every = layers_of(graph) if intent.layers or why else ()
    wishes = resolved(
        {name: parse_scheme(text) for name, text in intent.layers.items()},
        every,
        _classes(desk.recipe, graph),
        f"recipe {desk.recipe.name}, {graph.name}",
    )
    met = {name: _met(desk, graph, wish) for name, wish in wishes.items()}
    reasons = Counter(
        (str(wishes[name]), str(scheme), reason) for name, (scheme, reason) in met.items() if reason
    )
    if why:
        reasons[intent.scheme, str(default), why] += len(every) - len(wishes)
    unmet = tuple(
        manifest.Unmet(graph.name, asked, stored, count, reason)
        for (asked, stored, reason), count in reasons.items()
        if count
    )
    # A budget chooses for all layers but those that the recipe names.
    layers = {name: s for name, (s, _) in met.items() if s != default or intent.budget}
    return Plan(default, layers, desk.profile), unmet


def _met(desk: Desk, graph: MobileGraph, wish: Scheme) -> tuple[Scheme, str]:
    return desk.target.nearest(wish, desk.profile, graph.name)


def _classes(recipe: Recipe, graph: MobileGraph) -> Mapping[str, Sequence[str]]:
    family = plugins.load("nanoflux_export.families", recipe.family)
    classes: Mapping[str, Sequence[str]] = family.LAYER_CLASSES.get(graph.name, {})
    return classes


def _fitted(
    desk: Desk, graph: MobileGraph, made: Plan, budget: Budget, shape: Mapping[str, object]
) -> Fit:
    """The answer to a budget, measured on the calibration prompts; measurements are kept.

    `shape` tells how the graph was rewritten, which damages depend on.
    """
    target, layers = desk.target, layers_of(graph)
    names = budget.schemes or target.choices(desk.profile, graph.name)
    schemes = tuple(dict.fromkeys(_met(desk, graph, parse_scheme(name))[0] for name in names))
    stats = desk.activity.stats(graph)
    measured_by = [code_digest(), desk.activity.key, graph.name, target.NAME, shape]
    question = Question(
        graph=graph,
        target=target.NAME,
        calibration=desk.activity.calibration(),
        choices={one.name: _choices(one, made, schemes) for one in layers},
        store=storing(activations.importance(stats), half_constants=target.HALF_CONSTANTS),
        resident_bits=lambda scheme: target.resident_bits(scheme, desk.profile),
        timing=_timing(desk, graph, budget) if budget.step_ms else None,
        cache=desk.work / f"damage-{content_digest(measured_by)[:16]}.jsonl",
    )
    return fit(question, budget, desk.journal)


def _choices(layer: Layer, made: Plan, schemes: tuple[Scheme, ...]) -> tuple[Scheme, ...]:
    return (made.layers[layer.name],) if layer.name in made.layers else schemes


def _timing(desk: Desk, graph: MobileGraph, budget: Budget) -> StepTime:
    """The roofline of the graph, read from a file of it with half-precision weights."""
    device = load_device(budget.device)
    with (
        desk.journal.step(f"time {graph.name} on {device.name} by its roofline"),
        TemporaryDirectory(prefix="nanoflux-") as folder,
    ):
        path = Path(folder) / f"{graph.name}{desk.target.SUFFIX}"
        desk.target.write(graph, Plan(Scheme("fp16", 16), profile=desk.profile), path)
        return step_time(desk.target.cost(path, graph.name), device, desk.compute_unit)


def _informed(desk: Desk, graph: MobileGraph, made: Plan) -> Plan:
    """The plan with what its schemes need to know of activations."""
    schemes = (made.default, *made.layers.values())
    weighted = any(scheme.weighted or scheme.rank for scheme in schemes)
    calibrated = any(scheme.activations == 8 for scheme in schemes)
    if not (weighted or calibrated):
        return made
    stats = desk.activity.stats(graph)
    return dataclasses.replace(
        made,
        importance=activations.importance(stats) if weighted else {},
        ranges=activations.input_ranges(stats) if calibrated else {},
        samples=samples_of(graph, desk.activity.calibration()) if calibrated else None,
    )
