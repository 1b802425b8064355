"""What a path or a variant's name stands for, and what is in it.

A checkpoint, a bundle, a Core ML package, a LiteRT file, or a network of which only sizes exist.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoflux_export.bundle import open_bundle, target_named
from nanoflux_export.console import size
from nanoflux_export.findings import lint_errors
from nanoflux_export.graph import Finding, Summary, Target
from nanoflux_mobile import plugins, variants
from nanoflux_mobile.checkpoint import TRANSFORMER, Checkpoint, open_checkpoint
from nanoflux_mobile.cost import FILE as COST
from nanoflux_mobile.cost import Cost, read_cost
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import FILE, ComponentEntry, Manifest
from nanoflux_mobile.sizing import Sizes, folded
from nanoflux_mobile.variants import Variant
from nanoflux_mobile.weight_files import READERS

SIZE_COLUMNS = ("part", "", "params", "in fp16", "MACs", "low")
OVERVIEW_COLUMNS = ("variant", "denoiser", "MACs per step", "all in fp16", "what it is")


@dataclass(frozen=True)
class Part:
    """One part of a checkpoint: parameters, bytes on disk and the dtypes they are stored in."""

    name: str
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]


@dataclass(frozen=True)
class VariantSizes:
    """A variant's components, as large as for the picture it names; nothing was allocated."""

    summary: str
    side: int
    text_tokens: int
    steps: int
    components: Mapping[str, Sizes]


@dataclass(frozen=True)
class VariantOverview:
    """The denoiser's parameters and MACs, how often it runs, and the weights of all components."""

    family: str
    summary: str
    steps: int
    parameters: int
    macs_per_step: Mapping[str, int]
    fp16_bytes: int


@dataclass(frozen=True)
class Inspection:
    """What was found; exactly one of `parts`, `file`, `manifest` and `variant` is filled.

    `cost` comes with a bundle, unless it was made before bundles told; `notes` say what was found
    out about a checkpoint that its files do not tell.
    """

    kind: str
    path: str
    parts: tuple[Part, ...] = ()
    file: Summary | None = None
    manifest: Manifest | None = None
    variant: VariantSizes | None = None
    cost: Cost | None = None
    lint: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that fail what was inspected: errors that no recipe lets pass."""
        return lint_errors(self.lint)


def _target_of(path: Path) -> Target | None:
    for name in plugins.names("nanoflux_export.targets"):
        target = target_named(name)
        if path.suffix == target.SUFFIX:
            return target
    return None


def _checkpoint(path: Path) -> Inspection:
    checkpoint = open_checkpoint(path)
    names = [TRANSFORMER] if checkpoint.is_file else sorted(f.name for f in path.iterdir())
    parts = tuple(_part(checkpoint, name) for name in names if _holds_weights(checkpoint, name))
    kind = f"checkpoint of {checkpoint.family}"
    return Inspection(kind, str(path), parts=parts, notes=checkpoint.notes)


def _holds_weights(checkpoint: Checkpoint, part: str) -> bool:
    place = checkpoint.place(part)
    files = [place] if place.is_file() else place.glob("*")
    return checkpoint.has(part) and any(file.suffix in READERS for file in files)


def _part(checkpoint: Checkpoint, name: str) -> Part:
    stored = checkpoint.weights(name).values()
    return Part(
        name,
        sum(math.prod(tensor.shape) for tensor in stored),
        sum(tensor.nbytes for tensor in stored),
        dict(Counter(tensor.dtype for tensor in stored)),
    )


def inspect(path: Path, lint: bool) -> Inspection:
    """Look into a path or variant; weights are mapped, not loaded. InputError if it is neither.

    Lint findings of a bundle are those that its manifest tells; a file is read for them here, by
    the rules of its target's first profile.
    """
    if path.suffix == ".toml" or (str(path) in variants.names() and not path.exists()):
        variant = variants.load(str(path))
        return Inspection(f"variant of {variant.family}", str(path), variant=_sized(variant))
    if (path / FILE).is_file():
        bundle = open_bundle(path)
        findings = bundle.manifest.lint if lint else ()
        cost = read_cost(path) if (path / COST).is_file() else None
        return Inspection("bundle", str(path), manifest=bundle.manifest, cost=cost, lint=findings)
    if target := _target_of(path):
        found = target.lint(path, path.stem) if lint else ()
        return Inspection(target.NAME, str(path), file=target.summarize(path), lint=found)
    if path.suffix in READERS or (path / "model_index.json").is_file():
        return _checkpoint(path)
    suffixes = ", ".join(target_named(n).SUFFIX for n in plugins.names("nanoflux_export.targets"))
    state = "is not" if path.exists() else "does not exist; expected"
    raise InputError(
        f"{path} {state} a checkpoint, a bundle folder, a file {suffixes}, "
        f"or a variant: {', '.join(variants.names())}"
    )


def _sized(variant: Variant) -> VariantSizes:
    sizes = variants.sizes(variant)
    return VariantSizes(variant.summary, variant.side, variant.text_tokens, variant.steps, sizes)


def size_rows(found: VariantSizes) -> list[tuple[str, ...]]:
    """A line per component, then one per block; equal neighbours are one line of their times.

    Parameters and bytes are those of one block; MACs those of one step or one run.
    """
    lines: list[tuple[str, ...]] = []
    for name, sizes in found.components.items():
        lines.append((f"[bold]{name}[/bold]", "", *_amounts(sizes.parameters, sizes.macs)))
        for fold in folded(sizes.blocks):
            times = f"{fold.count}x" if fold.count > 1 else ""
            figures = _amounts(fold.block.parameters, fold.block.macs)
            lines.append((fold.name, times, *figures))
    return lines


def _amounts(parameters: int, macs: Mapping[str, int]) -> tuple[str, str, str, str]:
    whole, low = next(iter(macs.values())), macs.get(variants.LOW)
    told = "" if low is None else _short(low, "kMGT")
    return _short(parameters, "kMBT"), size(2 * parameters), _short(whole, "kMGT"), told


def _short(count: int, units: str) -> str:
    """A count to three digits; each unit is a thousand times the one before."""
    power, digits = divmod(len(str(count)) - 1, 3)
    if not power:
        return str(count)
    return f"{count / 1000**power:.{2 - digits}f} {units[power - 1]}"


def overview(name: str) -> VariantOverview:
    """The figures of a variant that one compares; nothing is allocated."""
    variant = variants.load(name)
    sizes = variants.sizes(variant)
    denoiser = sizes[variant.denoiser]
    weights = sum(part.fp16_bytes for part in sizes.values())
    macs, steps = denoiser.macs, variant.steps
    return VariantOverview(
        variant.family, variant.summary, steps, denoiser.parameters, macs, weights
    )


def overview_row(name: str, found: VariantOverview) -> tuple[str, ...]:
    """A variant's line in the table of all."""
    parameters, _, whole, low = _amounts(found.parameters, found.macs_per_step)
    step = f"{whole}\n{low} low" if low else whole
    return name, parameters, step, size(found.fp16_bytes), found.summary


def facts(found: Inspection) -> list[tuple[str, str]]:
    """The inspection as lines of a table."""
    if found.manifest:
        return _bundle_facts(found.manifest, found.cost)
    if found.file:
        return _file_facts(found.file)
    total = sum(part.parameters for part in found.parts)
    lines = [
        (part.name, f"{part.parameters:,} parameters, {part.bytes:,} bytes, {_counts(part.dtypes)}")
        for part in found.parts
    ]
    notes = [("note", note) for note in found.notes]
    return [*lines, ("total", f"{total:,} parameters"), *notes]


def _counts(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _file_facts(file: Summary) -> list[tuple[str, str]]:
    lines = [("format", file.format), ("bytes", f"{file.bytes:,}")]
    lines.append(("functions", ", ".join(file.functions)))
    for role, tensors in (("input", file.inputs), ("output", file.outputs)):
        lines += [(f"{role} {t.name}", f"{t.dtype} {t.shape}") for t in tensors]
    return [*lines, ("weights", _counts(file.storage)), ("ops", _counts(file.ops))]


def _macs(cost: Cost, component: str) -> str:
    """Multiply-accumulates of one run of a component, function by function, in words."""
    totals: Counter[str] = Counter()
    for block in cost.blocks:
        if block.component == component:
            totals[block.function] += block.macs
    several = len(totals) > 1
    return ", ".join(
        f"{macs:,} MACs" + f" in {function}" * several for function, macs in totals.items()
    )


def _schemes(entry: ComponentEntry) -> str:
    """Its scheme, or how many layers have which."""
    if not entry.layers:
        return entry.scheme
    return _counts(dict(Counter(entry.layers.values()).most_common()))


def _bundle_facts(manifest: Manifest, cost: Cost | None) -> list[tuple[str, str]]:
    lines = [
        ("recipe", f"{manifest.recipe.name} ({manifest.recipe.digest[:12]})"),
        ("target", manifest.target),
        ("digest", manifest.digest),
        ("steps", str(len(manifest.sigmas) - 1)),
        ("image", f"{manifest.canvas.image_side} px"),
    ]
    for entry in manifest.components:
        told = f"{_schemes(entry)}, {entry.weight_bytes:,} bytes, {entry.compute_unit}"
        told += f", {_macs(cost, entry.name)}" if cost else ""
        lines.append((entry.name, told))
    peak = max(step.peak_bytes for step in manifest.memory_plan)
    lines.append(("peak weights", f"{peak:,} bytes, one graph loaded at a time"))
    return [*lines, ("tools", ", ".join(f"{k} {v}" for k, v in manifest.tools.items()))]
