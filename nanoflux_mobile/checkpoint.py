"""Checkpoints in every layout, opened without reading a weight, strictly used.

A folder in diffusers' layout, whose transformer may also be one file under Black Forest Labs'
names, or such a file alone. Every tensor of a file lands in exactly one place of the module, or the
error lists what is left. Files are data: safetensors, GGUF and JSON only, nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.flux_file import DIFFUSERS, FluxFile, flux_file
from nanoflux_mobile.safetensors_file import NOT_WEIGHTS, write_safetensors
from nanoflux_mobile.spec import content_digest
from nanoflux_mobile.storage import file_sha256, write_file
from nanoflux_mobile.strict_json import from_plain
from nanoflux_mobile.weight_files import READERS, SAME, KeyMap, read_json, read_weights
from nanoflux_mobile.weights import Network, Weights, held

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C")

PIPELINES = {"FluxPipeline": "nanoflux", "SnapGenPipeline": "snapgen"}
"""Family of each pipeline class that model_index.json may name."""
TRANSFORMER = "transformer"
MOST = 2**24
"""The largest size a config may give, an order above the largest vocabularies."""
MOST_BLOCKS = 128
"""The most blocks of one kind, of which each costs time before anything is compared."""
MOST_ENTRIES = 16
"""The longest list of sizes."""


@dataclass(frozen=True)
class Checkpoint:
    """Parts (transformer, vae, ...), each with its config; weights stay on disk.

    `path` is a folder, or a file that is the transformer alone.
    """

    path: Path
    family: str

    @property
    def is_file(self) -> bool:
        """Whether this is a transformer alone, which can be looked into but not drawn with."""
        return self.path.is_file()

    def place(self, part: str) -> Path:
        """The folder of a part, or the file that is the transformer."""
        return self.path if self.is_file else self.path / part

    def has(self, part: str) -> bool:
        """Whether the checkpoint has this part."""
        return part == TRANSFORMER if self.is_file else (self.path / part).is_dir()

    def config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        """The JSON object `part/file`; a FLUX transformer's sizes are read off where it lacks."""
        if part == TRANSFORMER and self._inferred:
            return self._flux.config()
        if self.is_file:
            raise InputError(
                f"{self.path} is a transformer alone; put it into the transformer folder of a "
                f"FLUX.1 checkpoint in diffusers' layout, in place of the weights there, for its "
                f"{part}, and give that checkpoint"
            )
        return read_json(self.path / part / file)

    def weights(self, part: str, keys: KeyMap = SAME) -> Weights:
        """The weights of a part under our names, none of them read yet."""
        if part == TRANSFORMER and self.family == "nanoflux":
            return self._flux.weights
        return read_weights(self.place(part), keys)

    @property
    def layout(self) -> str:
        """Whose names the transformer's tensors have in its file."""
        return self._flux.layout if self.family == "nanoflux" else DIFFUSERS

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What no file says and was found out, a sentence each."""
        if self.family != "nanoflux":
            return ()
        return self._flux.all_notes() if self._inferred else self._flux.notes

    def digest(self) -> str:
        """sha256 over every config and weight file, by relative name."""
        if self.is_file:
            return content_digest({self.path.name: file_sha256(self.path)})
        kept = (".json", ".txt", ".model", *READERS)
        files = sorted(p for p in self.path.rglob("*") if p.suffix in kept and p.is_file())
        return content_digest({str(p.relative_to(self.path)): file_sha256(p) for p in files})

    @cached_property
    def _flux(self) -> FluxFile:
        place = self.place(TRANSFORMER)
        return flux_file(read_weights(place), place)

    @property
    def _inferred(self) -> bool:
        place = self.place(TRANSFORMER)
        return self.family == "nanoflux" and not (place / "config.json").is_file()


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at a path; InputError if there is none or its family is unknown."""
    expected = f"a folder with model_index.json or a file in {' or '.join(READERS)}"
    if not path.exists():
        raise InputError(f"{path} does not exist; give a checkpoint: {expected}")
    if path.is_file() and path.suffix in READERS:
        alone = Checkpoint(path, "nanoflux")
        alone.weights(TRANSFORMER)  # refuses a file of another model at once
        return alone
    if not (path / "model_index.json").is_file():
        raise InputError(f"{path} is not a checkpoint: {expected} is expected")
    name = read_json(path / "model_index.json").get("_class_name")
    if name not in tuple(PIPELINES):  # a tuple, because JSON can hold what no dict can look up
        known = ", ".join(PIPELINES)
        raise InputError(f"{path} holds a {name}, an unknown family; known pipelines: {known}")
    return Checkpoint(path, PIPELINES[name])


def sizes(cls: type[C], config: Mapping[str, Any], where: str, fixed: Mapping[str, Any]) -> C:
    """The fields of the dataclass `cls` out of a larger config.

    `fixed` holds settings that change the network and the only value we implement: a config that
    says otherwise is an error, one that is silent is not. So is a size no network has, before
    anything of that size is built.
    """
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise InputError(f"{where}: {key} is {config[key]!r}; only {value!r} is supported")
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    given = {n: config[n] for n in names if n in config}
    for name, count, most in _counts(given):
        if count > most:
            raise InputError(f"{where}: {name} is {count}; accepted: up to {most}")
    return from_plain(cls, given, where)


def _counts(given: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Every whole number and length of list, with the most it may be."""
    for name, value in given.items():
        if isinstance(value, list):
            yield f"the length of {name}", len(value), MOST_ENTRIES
        most = MOST_BLOCKS if "layers" in name or "transformers" in name else MOST
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int):
                yield name, item, most


def load_weights(
    build: Callable[[], M], folder: Path, keys: KeyMap = SAME, complete: bool = True
) -> M:
    """The module that `build` makes, holding a part's weights as float32; see `fitted`."""
    return fitted(build, read_weights(folder, keys), folder, complete).whole()


def fitted(
    build: Callable[[], M],
    stored: Weights,
    where: Path,
    complete: bool = True,
    layout: str = DIFFUSERS,
) -> Network[M]:
    """The network that `build` makes with the weights of `where`; none of them is read.

    `layout` is the one they were translated from, which errors mention beside our names. With
    `complete` false there may be more than the module needs. InputError says why nothing can be
    built, or lists missing, unused and mis-shaped keys, and any tensor that is not floating point.
    """
    try:
        with torch.device("meta"):
            module = build()
    except (IndexError, RuntimeError, ValueError) as broken:
        raise InputError(f"{where}/config.json describes no network: {broken}") from broken
    wanted = module.state_dict()
    if not complete:
        stored = {k: v for k, v in stored.items() if k in wanted}
    _agree(wanted, stored, where, layout)
    return Network(module.eval().requires_grad_(False), stored)


def _agree(wanted: Mapping[str, Tensor], stored: Weights, where: Path, layout: str) -> None:
    problems = {
        "missing": sorted(wanted.keys() - stored.keys()),
        "unused": sorted(stored.keys() - wanted.keys()),
        "mis-shaped": [
            f"{k} {stored[k].shape} instead of {tuple(wanted[k].shape)}"
            for k in sorted(wanted.keys() & stored.keys())
            if stored[k].shape != tuple(wanted[k].shape)
        ],
        "not floating point": [
            f"{k} ({v.dtype})" for k, v in sorted(stored.items()) if v.dtype in NOT_WEIGHTS
        ],
    }
    said = [f"{len(keys)} {kind}: {_first(keys)}" for kind, keys in problems.items() if keys]
    if said:
        told = "its config.json" if (where / "config.json").is_file() else "each other"
        source = where if layout == DIFFUSERS else f"{where}, translated from {layout},"
        raise InputError(f"the weights in {source} do not fit {told}; {'; '.join(said)}")


def _first(keys: list[str]) -> str:
    shown = [key if key.isprintable() and len(key) <= 100 else f"{key[:60]!r}" for key in keys[:3]]
    return ", ".join(shown) + (", ..." if len(keys) > 3 else "")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, keys in the order given."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def save_part(
    part: nn.Module | Network[Any], folder: Path, config: Mapping[str, Any], dtype: torch.dtype
) -> None:
    """Write the config.json and the weights of a module or network, under the names it has here.

    Weights go to the disk one by one, so a network may be larger than memory.
    """
    write_json(folder / "config.json", config)
    weights = held(part) if isinstance(part, nn.Module) else part.weights
    name = "model" if "model_type" in config else "diffusion_pytorch_model"
    write_safetensors(folder / f"{name}.safetensors", weights, dtype)
