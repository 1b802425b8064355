"""Where the weights of a part lie, in one file or in many, and JSON beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.gguf import read_gguf
from nanoflux_mobile.safetensors_file import read_safetensors
from nanoflux_mobile.scaled_weights import unscaled
from nanoflux_mobile.strict_json import parse_json
from nanoflux_mobile.weights import Stored, Weights

WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
VARIANTS = tuple(name.partition(".")[0] for name in WEIGHT_FILES)
"""How the names of all files begin that diffusers and transformers write, of any precision."""
READERS: Mapping[str, Callable[[Path], Weights]] = {
    ".safetensors": read_safetensors,
    ".gguf": read_gguf,
}
"""The formats weights are read from, by the ending of the file's name."""


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


SAME = KeyMap()
"""Every key keeps its name."""


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


def read_weights(place: Path, keys: KeyMap = SAME) -> Weights:
    """The weights in a file or in a part's folder under our names; none is read yet.

    8-bit tensors come multiplied by their scales. InputError names what is missing, damaged or
    there twice.
    """
    found: dict[str, Stored] = {}
    for file in [place] if place.is_file() else _files(place):
        for key, stored in unscaled(READERS[file.suffix](file)).items():
            name = keys.ours(key)
            if name in found:
                raise InputError(f"{file} holds {key}, a second {name}; keep one of them")
            if name is not None:
                found[name] = stored
    return found


def _files(folder: Path) -> list[Path]:
    """The files of one set of weights: diffusers' own, or the only other there is."""
    if not folder.is_dir():
        raise InputError(f"{folder} is missing; is this a whole checkpoint folder?")
    own = _own_files(folder)
    others = sorted(
        file
        for file in folder.iterdir()
        if file.suffix in READERS and file not in own and not file.name.startswith(VARIANTS)
    )
    if found := own or others[:1]:
        if strays := [file for file in others if file not in found]:
            raise InputError(
                f"{folder} holds {found[0].name} and {strays[0].name}; keep the weights you mean"
            )
        return found
    raise InputError(
        f"{folder} holds no weights: expected {' or '.join(WEIGHT_FILES)}, "
        f"or one file of any name in {' or '.join(READERS)}"
    )


def _own_files(folder: Path) -> list[Path]:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return _shards(index)
    return []


def _shards(index: Path) -> list[Path]:
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(n, str) for n in named.values()):
        raise InputError(f"{index} has no weight_map from tensor to file name; download it again")
    if any(Path(n).name != n or Path(n).suffix not in READERS for n in named.values()):
        raise InputError(f"{index} names a file outside its folder or of no known format")
    shards = [index.with_name(name) for name in sorted(set(named.values()))]
    if lost := [shard.name for shard in shards if not shard.is_file()]:
        raise InputError(
            f"{index.parent} lacks {len(lost)} of {len(shards)} shards: {', '.join(lost[:3])}; "
            "download them again"
        )
    return shards
