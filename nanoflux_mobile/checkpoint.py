"""Checkpoint folders in diffusers' layout: configs and memory-mapped weights, strictly used.

Every tensor of a file lands in exactly one place of the module, or the error lists what is left.
Files are data: safetensors and JSON only, nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import content_digest
from nanoflux_mobile.storage import file_sha256, write_file
from nanoflux_mobile.strict_json import from_plain, parse_json

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C")

WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
PIPELINES = {"FluxPipeline": "nanoflux"}
"""Family of each pipeline class that model_index.json may name."""


@dataclass(frozen=True)
class KeyMap:
    """How a file's key names differ from ours: prefixes to replace, whole keys to leave out."""

    prefixes: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def ours(self, key: str) -> str | None:
        """Our name of a file's key; None for one to leave out."""
        if key in self.ignored:
            return None
        for theirs, mine in self.prefixes:
            if key.startswith(theirs):
                return mine + key.removeprefix(theirs)
        return key


@dataclass(frozen=True)
class Checkpoint:
    """A folder of parts (transformer, vae, ...), each with its config; weights stay on disk."""

    path: Path
    family: str

    def has(self, part: str) -> bool:
        """Whether the folder has this part."""
        return (self.path / part).is_dir()

    def config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        """The JSON object `part/file`."""
        return read_json(self.path / part / file)

    def digest(self) -> str:
        """sha256 over every config and weight file, by relative name."""
        kept = (".json", ".safetensors", ".txt", ".model")
        files = sorted(p for p in self.path.rglob("*") if p.suffix in kept and p.is_file())
        return content_digest({str(p.relative_to(self.path)): file_sha256(p) for p in files})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError if it is missing or not one."""
    try:
        found = parse_json(path.read_text("utf-8"))
    except FileNotFoundError as missing:
        raise InputError(f"{path} is missing; is this a whole checkpoint folder?") from missing
    except (OSError, ValueError) as broken:
        raise InputError(f"{path} cannot be read as JSON: {broken}") from broken
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, expected a JSON object")
    return found


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder; InputError if there is none or its family is unknown."""
    if not path.exists():
        raise InputError(f"{path} does not exist; give a checkpoint folder in diffusers' layout")
    if not (path / "model_index.json").is_file():
        raise InputError(f"{path} is not a checkpoint: a folder with model_index.json is expected")
    name = read_json(path / "model_index.json").get("_class_name")
    if name not in tuple(PIPELINES):  # a tuple, because JSON can hold what no dict can look up
        known = ", ".join(PIPELINES)
        raise InputError(f"{path} holds a {name}, an unknown family; known pipelines: {known}")
    return Checkpoint(path, PIPELINES[name])


def sizes(cls: type[C], config: Mapping[str, Any], where: str, fixed: Mapping[str, Any]) -> C:
    """The fields of the dataclass `cls` out of a larger config.

    `fixed` holds settings that change the network and the only value we implement: a config that
    says otherwise is an error, one that is silent is not.
    """
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise InputError(f"{where}: {key} is {config[key]!r}; only {value!r} is supported")
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return from_plain(cls, {n: config[n] for n in names if n in config}, where)


def _shards(folder: Path) -> list[Path]:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return [folder / n for n in _shard_names(index)]
    raise InputError(f"{folder} holds no weights: expected {' or '.join(WEIGHT_FILES)}")


def _shard_names(index: Path) -> list[str]:
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(n, str) for n in named.values()):
        raise InputError(f"{index} has no weight_map from tensor to file name; download it again")
    if any(Path(n).name != n for n in named.values()):
        raise InputError(f"{index} names a file outside its folder; refusing to follow it")
    return sorted(set(named.values()))


def read_tensors(folder: Path, keys: KeyMap = KeyMap()) -> dict[str, Tensor]:
    """Every tensor of a part under our names, memory-mapped, in its stored dtype."""
    found: dict[str, Tensor] = {}
    with ExitStack() as opened:
        for shard in _shards(folder):
            try:
                file = opened.enter_context(safe_open(shard, framework="pt"))
                for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                    name = keys.ours(key)
                    if name in found:
                        raise InputError(f"{shard} holds {key}, a second {name}; keep one of them")
                    if name is not None:
                        found[name] = file.get_tensor(key)
            except (SafetensorError, OSError) as broken:
                raise InputError(
                    f"{shard} is damaged or not safetensors ({broken}); download it again"
                ) from broken
    return found


def load_weights(
    build: Callable[[], M], folder: Path, keys: KeyMap = KeyMap(), complete: bool = True
) -> M:
    """The module that `build` makes, holding a part's weights as float32.

    Built on the meta device, so nothing is allocated twice. With `complete` false the file may
    hold more than the module needs. InputError says why nothing can be built, or lists missing,
    unused and mis-shaped keys, and any tensor that is not floating point.
    """
    try:
        with torch.device("meta"):
            module = build()
    except (IndexError, RuntimeError, ValueError) as broken:
        raise InputError(f"{folder}/config.json describes no network: {broken}") from broken
    wanted = module.state_dict()
    stored = read_tensors(folder, keys)
    if not complete:
        stored = {k: v for k, v in stored.items() if k in wanted}
    _agree(wanted, stored, folder)
    state = {key: tensor.float() for key, tensor in stored.items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _agree(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor], folder: Path) -> None:
    problems = {
        "missing": sorted(wanted.keys() - stored.keys()),
        "unused": sorted(stored.keys() - wanted.keys()),
        "mis-shaped": [
            f"{k} {tuple(stored[k].shape)} instead of {tuple(wanted[k].shape)}"
            for k in sorted(wanted.keys() & stored.keys())
            if stored[k].shape != wanted[k].shape
        ],
        "not floating point": [
            f"{k} ({str(v.dtype).removeprefix('torch.')})"
            for k, v in sorted(stored.items())
            if v.dtype not in FLOATS
        ],
    }
    said = [f"{len(keys)} {kind}: {_first(keys)}" for kind, keys in problems.items() if keys]
    if said:
        raise InputError(f"the weights in {folder} do not fit its config.json; {'; '.join(said)}")


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, keys in the order given."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def save_part(
    module: nn.Module, folder: Path, config: Mapping[str, Any], dtype: torch.dtype
) -> None:
    """Write a module's config.json and weights, under the names it has here."""
    write_json(folder / "config.json", config)
    state = {k: v.detach().to(dtype).contiguous() for k, v in module.state_dict().items()}
    name = "model" if "model_type" in config else "diffusion_pytorch_model"
    save_file(state, folder / f"{name}.safetensors", {"format": "pt"})
