"""How long a bundle will take on a phone, from what its saved graphs cost: a range, no verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nanoflux_benchmarks.advice import CHANGES, WORTH, Setting, changed_blocks
from nanoflux_benchmarks.prediction import (
    Advice,
    BlockTime,
    Call,
    Limit,
    MemoryUse,
    Plan,
    Prediction,
)
from nanoflux_mobile.cost import FILE as COST_FILE
from nanoflux_mobile.cost import BlockCost, Cost, read_cost
from nanoflux_mobile.device import Device, Fact, Unit, device_of
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import Manifest, read_manifest
from nanoflux_mobile.roofline import (
    APP_SHARE,
    CALIBRATION,
    GUESSES,
    UNITS,
    Engine,
    Guess,
    Range,
    Times,
    engine,
    times,
    widened,
    work,
)

PLATFORMS: Mapping[str, tuple[str, ...]] = {"coreml": ("ios",), "litert": ("android",)}
VALUE_SHARE: Mapping[str, float] = {"coreml": 1.0, "litert": 0.5}
"""Bytes of a value on the phone over those in the file: LiteRT's float32 runs in half precision."""
CROSSING_S = 1e-3
"""One boundary between processors: 0.6 and 1.75 ms on an iPhone 17 Pro (coreai-model-zoo)."""
LEAST_APP_SHARE = 0.375
"""Of all memory, the least an app was seen to get: 3 GB of 8 on iPadOS 26.4."""

Graphs = Mapping[tuple[str, str], Sequence[BlockCost]]


def predict_bundle(bundle: Path, device: Device) -> Prediction:
    """What a bundle folder should take on a device.

    Raises:
        InputError: no bundle, one without its cost, one for another platform, or a device file
            that lacks what the prediction needs.
    """
    return predict(read_cost(bundle), plan_of(read_manifest(bundle)), device)


def foreseen(bundle: Path, model: str) -> Prediction | None:
    """What a bundle should take on the device that a report names; None where that is unknown."""
    device = device_of(model)
    if device is None or not (bundle / COST_FILE).exists():
        return None
    return predict_bundle(bundle, device)


def plan_of(manifest: Manifest) -> Plan:
    """What a prediction needs of a manifest; InputError for a compute unit nobody knows."""
    units = {entry.name: entry.compute_unit for entry in manifest.components}
    if unknown := sorted(set(units.values()) - set(UNITS)):
        raise InputError(f"compute unit {unknown[0]!r} is unknown; known: {', '.join(UNITS)}")
    return Plan(
        target=manifest.target,
        steps=len(manifest.sigmas) - 1,
        units={name: UNITS[unit] for name, unit in units.items()},
        weight_bits={e.name: e.bits for e in manifest.components},
        resident=tuple((step.component, step.peak_bytes) for step in manifest.memory_plan),
        low_steps=manifest.low_steps,
    )


def predict(cost: Cost, plan: Plan, device: Device) -> Prediction:
    """The range of a picture and of each step, what limits each block, and what would help.

    Raises:
        InputError: a bundle for another platform, or a device file that lacks what is needed.
    """
    if device.platform not in PLATFORMS.get(plan.target, ()):
        raise InputError(
            f"{device.name} is {device.platform}, where a {plan.target} bundle does not run; "
            "name a device of the other platform, or export the bundle for this one"
        )
    share = VALUE_SHARE[plan.target]
    here = Setting(
        changed_blocks(cost, activation_bytes=share, working_set_bytes=share), plan, device
    )
    calls = _calls(here)
    steps = [call for call in calls if call.component == "denoiser"]
    return Prediction(
        kind="prediction",
        device=device.id,
        target=plan.target,
        steps=plan.steps,
        step=_summed(steps, plan.steps),
        image=_summed(calls),
        calls=calls,
        memory=_memory(here),
        advice=_advice(here),
        notes=_notes(here),
    )


def _calls(here: Setting) -> tuple[Call, ...]:
    graphs: dict[tuple[str, str], list[BlockCost]] = {}
    for block in here.cost.blocks:
        graphs.setdefault((block.component, block.function), []).append(block)
    runs = _runs(graphs, here.plan)
    graphs = {graph: blocks for graph, blocks in graphs.items() if runs[graph]}
    # The cost does not say where work crosses: likely once for a picture, at worst in each step.
    once, often = min(graphs, key=runs.__getitem__), max(graphs, key=runs.__getitem__)
    places: Mapping[Guess, set[tuple[str, str]]] = {
        "fast": {once},
        "likely": {once},
        "slow": {once, often},
    }
    return tuple(
        _call(
            here,
            blocks,
            runs[graph],
            {guess: here.cost.crossings * (graph in places[guess]) for guess in GUESSES},
        )
        for graph, blocks in graphs.items()
    )


def _runs(graphs: Graphs, plan: Plan) -> dict[tuple[str, str], int]:
    """How often each function runs for a picture; the noisiest steps may have their own."""
    names = sorted(function for component, function in graphs if component == "denoiser")
    if names == ["step_full", "step_low"]:
        often = {"step_full": plan.steps - plan.low_steps, "step_low": plan.low_steps}
    elif len(names) == 1:
        often = {names[0]: plan.steps}
    else:
        raise InputError(
            f"cost.json has {', '.join(names) or 'nothing'} of a denoiser; "
            "accepted: one function, or step_full and step_low"
        )
    return {(c, f): often[f] if c == "denoiser" else 1 for c, f in graphs}


def _call(
    here: Setting, blocks: Sequence[BlockCost], runs: int, crossings: Mapping[Guess, int]
) -> Call:
    unit, done = here.plan.units[blocks[0].component], work(blocks)
    engines = {guess: engine(here.device, unit, guess) for guess in GUESSES}

    def seconds(guess: Guess) -> float:
        on, crossed = engines[guess], crossings[guess]
        return times(done, on, CALIBRATION).total + sum(_entering(on, crossed).values())

    spent = times(done, engines["likely"], CALIBRATION)
    limits = [_limit(*at) for at in zip(spent.compute, spent.memory, strict=True)]
    return Call(
        component=blocks[0].component,
        function=blocks[0].function,
        unit=unit,
        runs=runs,
        seconds=widened(seconds, CALIBRATION.spread),
        limit=_most(spent, limits, _entering(engines["likely"], crossings["likely"])),
        blocks=tuple(
            BlockTime(block.block, float(took), limit)
            for block, took, limit in zip(blocks, spent.blocks, limits, strict=True)
        ),
    )


def _entering(on: Engine, crossings: int) -> dict[Limit, float]:
    """Seconds to start a graph, once and again after each boundary, and to cross the boundaries."""
    return {"dispatch": on.dispatch_s * (1 + crossings), "crossings": crossings * CROSSING_S}


def _limit(compute_s: float, memory_s: float) -> Limit:
    return "compute" if compute_s >= memory_s else "memory bandwidth"


def _most(spent: Times, limits: Sequence[Limit], entering: Mapping[Limit, float]) -> Limit:
    """What most of a run's time goes to."""
    if spent.storage > float(spent.blocks.sum()):
        return "storage"
    shares = dict(entering)
    for limit, took in zip(limits, spent.blocks, strict=True):
        shares[limit] = shares.get(limit, 0.0) + float(took)
    return max(shares, key=shares.__getitem__)


def _summed(calls: Sequence[Call], parts: int = 1) -> Range:
    """All runs of the calls, as a mean of so many parts."""

    def total(bound: str) -> float:
        return sum(call.runs * float(getattr(call.seconds, bound)) for call in calls) / parts

    return Range(total("low"), total("mid"), total("high"))


def _peak(here: Setting) -> int:
    """The most that weights, by the memory plan, and the values of who works take at once."""
    values = {name: 0 for name, _ in here.plan.resident}
    for block in here.cost.blocks:
        values[block.component] = max(values.get(block.component, 0), block.working_set_bytes)
    return max((weights + values[name] for name, weights in here.plan.resident), default=0)


def _memory(here: Setting) -> MemoryUse:
    peak, app, ram = _peak(here), _whole(here.device.app_bytes), _whole(here.device.ram_bytes)
    fits: bool | None = None
    if app is not None:
        fits = peak <= app
    elif ram is not None and not LEAST_APP_SHARE * ram < peak <= APP_SHARE * ram:
        fits = peak <= LEAST_APP_SHARE * ram
    return MemoryUse(peak, app, ram, fits)


def _whole(fact: Fact | None) -> int | None:
    return round(fact.value) if fact else None


def _advice(here: Setting) -> tuple[Advice, ...]:
    """What would save time or memory, the most time first, by predicting each change."""
    now, peak = _summed(_calls(here)).mid, _peak(here)
    found = []
    for name, change in CHANGES:
        there = change(here)
        if there is None:
            continue
        told = Advice(name, _summed(_calls(there)).mid, _peak(there))
        if told.image_s < (1 - WORTH) * now or told.peak_bytes < (1 - WORTH) * peak:
            found.append(told)
    return tuple(sorted(found, key=lambda told: (told.image_s, told.peak_bytes)))


def _notes(here: Setting) -> tuple[str, ...]:
    """What was assumed, and what the device file leaves open."""
    device, notes = here.device, ["predicted, not measured: no gate takes it for evidence"]
    for name in sorted(set(here.plan.units.values())):
        unit: Unit | None = getattr(device, name)
        notes += [f"{name}.{told}" for told in (_open(unit) if unit else ())]
    if device.app_bytes is None:
        least, most = f"{LEAST_APP_SHARE:.1%}", f"{APP_SHARE:.0%}"
        notes.append(
            f"app_bytes is not known: apps were seen to get {least} to {most} of all memory"
        )
    if here.cost.crossings:
        notes.append(
            f"crossings to another processor ({here.cost.crossings}) count once for a picture, "
            "and for the high bound in every denoising step"
        )
    if _memory(here).fits is False and device.storage_bytes_per_s is None:
        notes.append("the bundle does not fit, and the times are as if it did")
    return tuple(notes)


def _open(unit: Unit) -> list[str]:
    told = []
    if unit.fp16_ops_per_s is None:
        told.append("fp16_ops_per_s is not known: once to twice the rate in single precision")
    if unit.cache_bytes is None:
        told.append("cache_bytes is not known: the low bound has every value on the chip")
    if unit.dispatch_s is None:
        told.append("dispatch_s is not known: starting counts nothing")
    return told
