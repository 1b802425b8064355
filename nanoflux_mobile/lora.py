"""LoRA files, and how they are added to the weights of the model they were trained for.

A LoRA changes a linear W (R, C) by scale * up (R, r) @ down (r, C), with scale = alpha / r, or
alpha / sqrt(r) where its config says so, or 1 where no alpha is given.

Shapes: R rows of a weight, C its columns (of a convolution: all but the first axis), r the rank.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nanoflux_mobile import lora_names as names
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.strict_json import parse_json
from nanoflux_mobile.weights import Stored, Weights, check_finite

DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
}
"""Numbers a LoRA may hold, by their names in a file: our name and bytes. Alphas can be whole."""
PEFT_METADATA = "lora_adapter_metadata"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
MOST_ALPHA, MOST_NAME = 1e9, 256
STEP_TABLE = "step_table"
"""The tensor that marks a Static-LN student."""


@dataclass(frozen=True)
class Pair:
    """A change of one linear: `scale` times `up` (R, r) times `down` (r, C)."""

    down: Stored
    up: Stored
    scale: float


@dataclass(frozen=True)
class Lora:
    """A LoRA file: pairs by the names the file gives their linears; notes on what it left out."""

    path: Path
    pairs: Mapping[str, Pair]
    ignored: tuple[str, ...]


# Reading


def read_lora(path: Path) -> Lora:
    """The LoRA in a safetensors file; of its tensors only the alphas are read.

    Text encoders' tensors are left out and noted in `ignored`. InputError if the file is damaged,
    is another method than plain LoRA, or holds a pair that is not whole.
    """
    stored, metadata = _open(path)
    text = sorted(filter(names.is_text, stored))
    modules: dict[str, dict[str, Stored]] = {}
    for key in sorted(stored.keys() - text):
        module, role = _part(path, key)
        if role in modules.setdefault(module, {}):
            raise InputError(f"{path} holds two {role} matrices of {module}; keep one")
        modules[module][role] = stored[key]
    if not modules:
        raise InputError(f"{path} holds no LoRA of a transformer, only {_first(text) or 'nothing'}")
    config = _peft_config(path, metadata)
    pairs = {module: _pair(path, module, parts, config) for module, parts in modules.items()}
    note = f"{len(text)} tensors of text encoders are not fused: {_first(text)}"
    return Lora(path, pairs, (note,) if text else ())


def _open(path: Path) -> tuple[dict[str, Stored], Mapping[str, str]]:
    if not path.is_file():
        raise InputError(f"{path} is no file; name a LoRA's .safetensors file")
    try:
        file = safe_open(path, framework="pt")
        return {key: _stored(path, file, key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as broken:
        raise InputError(
            f"{path} is damaged or not safetensors, the only form a LoRA is read from: {broken}"
        ) from broken


def _stored(path: Path, file: Any, key: str) -> Stored:
    if not key.isprintable() or len(key) > MOST_NAME:
        raise InputError(f"{path} is damaged: it names a tensor {key[:40]!r}; download it again")
    view = file.get_slice(key)
    shape, code = tuple(view.get_shape()), view.get_dtype()
    if code not in DTYPES:
        raise InputError(
            f"{path} stores {key} as {code}; a LoRA of {', '.join(DTYPES)} is expected"
        )
    dtype, size = DTYPES[code]
    return Stored(shape, dtype, math.prod(shape) * size, lambda: file.get_tensor(key))


def _part(path: Path, key: str) -> tuple[str, str]:
    if found := names.split(key):
        return found
    what = names.other_method(key) or "more than a LoRA"
    raise InputError(
        f"{path} is {what} ({key}); only plain LoRA can be fused here: merge this one with the "
        "tool that trained it and give the merged checkpoint"
    )


def _peft_config(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """PEFT's LoraConfig, where the file or its neighbour carries one."""
    beside = path.with_name(PEFT_CONFIG)
    text = metadata.get(PEFT_METADATA, "{}")
    try:
        if path.name == PEFT_FILE and beside.is_file():
            text = beside.read_text("utf-8")
        found = parse_json(text)
    except (OSError, ValueError) as broken:
        raise InputError(f"the PEFT config of {path} cannot be read: {broken}") from broken
    if not isinstance(found, dict):
        raise InputError(f"the PEFT config of {path} is a {type(found).__name__}, not an object")
    config = {key.removeprefix("transformer."): value for key, value in found.items()}
    if config.get("use_dora") or config.get("peft_type") not in (None, "LORA"):
        raise InputError(f"the PEFT config of {path} is of another method than plain LoRA")
    return config


def _pair(path: Path, module: str, parts: Mapping[str, Stored], config: Mapping[str, Any]) -> Pair:
    if missing := {"down", "up"} - parts.keys():
        raise InputError(f"{path} has no {' and no '.join(sorted(missing))} matrix for {module}")
    down, up = parts["down"], parts["up"]
    rank = down.shape[0] if len(down.shape) > 1 else 0
    if not rank or len(up.shape) < 2 or up.shape[1] != rank or math.prod(up.shape[2:]) != 1:
        raise InputError(
            f"{path}: the matrices of {module}, {up.shape} and {down.shape}, have no common rank"
        )
    if (alpha := parts.get("alpha")) is not None:
        if math.prod(alpha.shape) != 1:
            raise InputError(f"{path}: alpha of {module} has shape {alpha.shape}, not one number")
        scale = float(alpha.read()) / rank
    else:
        scale = _peft_scale(path, module, rank, config)
    if not math.isfinite(scale):
        raise InputError(f"{path}: alpha of {module} is NaN or infinite")
    return Pair(down, up, scale)


def _peft_scale(path: Path, module: str, rank: int, config: Mapping[str, Any]) -> float:
    alpha = config.get("lora_alpha", rank)
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or any(re.search(r"[^\w.]", name) for name in patterns):
        raise InputError(f"{path}: alpha_pattern of its PEFT config is no table of module names")
    for ending, own in patterns.items():
        if f".{module}".endswith(f".{ending}"):
            alpha = own
    if type(alpha) not in (int, float) or not abs(alpha) < MOST_ALPHA:
        raise InputError(
            f"{path}: alpha {str(alpha)[:20]!r} in its PEFT config is no number in use"
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


# Fusing


def fuse(weights: Weights, loras: Sequence[tuple[Lora, float]]) -> Weights:
    """The weights with every LoRA added at its strength; nothing is read before it is asked for.

    A changed tensor reads as float32, all others are passed on as they are; `dtype` and `nbytes`
    stay those of the stored base. InputError if a LoRA does not fit the model name for name and
    shape for shape; at reading, if it holds NaN or infinities.
    """
    changes: dict[str, list[_Change]] = {}
    for lora, strength in loras:
        if not math.isfinite(strength):
            raise InputError(f"strength {strength} of {lora.path} is not a finite number")
        for name, change in _placed(lora, strength, weights).items():
            changes.setdefault(name, []).append(change)
    return {name: _changed(stored, changes.get(name, ())) for name, stored in weights.items()}


@dataclass(frozen=True)
class _Change:
    """What one LoRA adds to one tensor: `factor` times some rows of `up` times `down`."""

    where: str
    pair: Pair
    rows: slice
    shift_first: bool
    factor: float

    def read(self) -> Tensor:
        down, up = (stored.read().float().flatten(1) for stored in (self.pair.down, self.pair.up))
        if self.shift_first:
            up = up.roll(len(up) // 2, 0)
        return check_finite(self.where, self.factor * up[self.rows] @ down)


def _changed(stored: Stored, changes: Sequence[_Change]) -> Stored:
    def read() -> Tensor:
        total = stored.read().float()
        for change in changes:
            total = total + change.read().view(stored.shape)
        return total

    return dataclasses.replace(stored, read=read) if changes else stored


def _placed(lora: Lora, strength: float, weights: Weights) -> dict[str, _Change]:
    """The change of every tensor that a LoRA touches."""
    known = {
        names.flat(name.removesuffix(".weight")): name
        for name, stored in weights.items()
        if name.endswith(".weight") and stored.shape
    }
    if lost := [m for m in lora.pairs if not known.keys() >= set(names.linears(m))]:
        raise InputError(_misfit(lora, lost, weights, known.values()))
    found: dict[str, _Change] = {}
    for module, pair in lora.pairs.items():
        ours = [known[linear] for linear in names.linears(module)]
        _check_size(lora, module, {name: weights[name].shape for name in ours})
        start = 0
        for name in ours:
            if name in found:
                raise InputError(f"{lora.path} changes {name} twice, again as {module}; keep one")
            rows = slice(start, start := start + weights[name].shape[0])
            found[name] = _Change(
                f"the change of {module} in {lora.path}",
                pair,
                rows,
                names.shift_first(module),
                strength * pair.scale,
            )
    return found


def _check_size(lora: Lora, module: str, ours: Mapping[str, tuple[int, ...]]) -> None:
    pair = lora.pairs[module]
    theirs = (pair.up.shape[0], math.prod(pair.down.shape[1:]))
    rows = sum(shape[0] for shape in ours.values())
    if theirs[0] != rows or any(math.prod(shape[1:]) != theirs[1] for shape in ours.values()):
        sizes = ", ".join(f"{name} {shape}" for name, shape in ours.items())
        raise InputError(
            f"{lora.path} was trained for another size: its {module} changes a weight of "
            f"{theirs}, this model has {sizes}"
        )


def _misfit(lora: Lora, lost: Sequence[str], weights: Weights, known: Collection[str]) -> str:
    modulation = [m for m in lost if any(map(names.is_modulation, names.linears(m)))]
    if STEP_TABLE in weights and modulation:
        return (
            f"{lora.path} changes the modulation ({_first(modulation)}), which a Static-LN student "
            "keeps as a table; fuse it into the teacher before the cut"
        )
    if len(lost) == len(lora.pairs):
        return (
            f"{lora.path} is for another family: it changes {_first(lost)}; this model holds "
            f"{_first(known)}"
        )
    return (
        f"{lora.path} fits this model only in part, {len(lost)} of its {len(lora.pairs)} modules "
        f"are not in it: {_first(lost)}; fuse it into the model it was trained for"
    )


def _first(keys: Collection[str]) -> str:
    return ", ".join(list(keys)[:3]) + (", ..." if len(keys) > 3 else "")
