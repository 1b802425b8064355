"""What a path holds: a checkpoint, a bundle, a Core ML package or a LiteRT file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoflux_export.bundle import open_bundle, target_named
from nanoflux_export.graph import Finding, Summary, Target
from nanoflux_mobile import plugins
from nanoflux_mobile.checkpoint import Checkpoint, open_checkpoint, read_tensors
from nanoflux_mobile.cost import FILE as COST
from nanoflux_mobile.cost import Cost, read_cost
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import FILE, Manifest


@dataclass(frozen=True)
class Part:
    """One part of a checkpoint: parameters, bytes on disk and the dtypes they are stored in."""

    name: str
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]


@dataclass(frozen=True)
class Inspection:
    """What was found; exactly one of `parts`, `file` and `manifest` is filled.

    `cost` comes with a bundle, unless it was made before bundles told.
    """

    kind: str
    path: str
    parts: tuple[Part, ...] = ()
    file: Summary | None = None
    manifest: Manifest | None = None
    cost: Cost | None = None
    lint: tuple[Finding, ...] = ()


def _target_of(path: Path) -> Target | None:
    for name in plugins.names("nanoflux_export.targets"):
        target = target_named(name)
        if path.suffix == target.SUFFIX:
            return target
    return None


def _part(checkpoint: Checkpoint, folder: Path) -> Part | None:
    if not any(folder.glob("*.safetensors*")):
        return None
    tensors = read_tensors(folder)
    dtypes = Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values())
    return Part(
        folder.name,
        sum(t.numel() for t in tensors.values()),
        sum(t.nbytes for t in tensors.values()),
        dict(dtypes),
    )


def inspect(path: Path, lint: bool) -> Inspection:
    """Look into a path; weights are mapped, not loaded. InputError if it is none of the four."""
    if (path / FILE).is_file():
        bundle = open_bundle(path)
        findings = bundle.manifest.lint if lint else ()
        cost = read_cost(path) if (path / COST).is_file() else None
        return Inspection("bundle", str(path), manifest=bundle.manifest, cost=cost, lint=findings)
    if target := _target_of(path):
        found = target.lint(path, path.stem) if lint else ()
        return Inspection(target.NAME, str(path), file=target.summarize(path), lint=found)
    if path.is_dir() and (path / "model_index.json").is_file():
        checkpoint = open_checkpoint(path)
        folders = sorted(f for f in path.iterdir() if f.is_dir())
        parts = tuple(filter(None, (_part(checkpoint, folder) for folder in folders)))
        return Inspection(f"checkpoint of {checkpoint.family}", str(path), parts=parts)
    suffixes = ", ".join(target_named(n).SUFFIX for n in plugins.names("nanoflux_export.targets"))
    state = "is not" if path.exists() else "does not exist; expected"
    raise InputError(f"{path} {state} a checkpoint folder, a bundle folder, or a file {suffixes}")


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
    return [*lines, ("total", f"{total:,} parameters")]


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


def _bundle_facts(manifest: Manifest, cost: Cost | None) -> list[tuple[str, str]]:
    lines = [
        ("recipe", f"{manifest.recipe.name} ({manifest.recipe.digest[:12]})"),
        ("target", manifest.target),
        ("digest", manifest.digest),
        ("steps", str(len(manifest.sigmas) - 1)),
        ("image", f"{manifest.canvas.image_side} px"),
    ]
    for entry in manifest.components:
        told = f"{entry.scheme}, {entry.weight_bytes:,} bytes, {entry.compute_unit}"
        told += f", {_macs(cost, entry.name)}" if cost else ""
        lines.append((entry.name, told))
    peak = max(step.peak_bytes for step in manifest.memory_plan)
    lines.append(("peak weights", f"{peak:,} bytes, one graph loaded at a time"))
    return [*lines, ("tools", ", ".join(f"{k} {v}" for k, v in manifest.tools.items()))]
