"""A saved .mlpackage on disk: its manifest, its model proto and the folder of its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoflux_export.targets.coreml.quiet import quiet
from nanoflux_mobile.errors import InputError, NanofluxError

MANIFEST = "Manifest.json"
DATA = "Data"


@dataclass(frozen=True)
class Package:
    """What one .mlpackage holds."""

    path: Path
    model: Any  # coremltools.proto.Model_pb2.Model, always of the ML Program kind
    model_folder: Path  # what "@model_path" stands for inside the program


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while `path` is decoded into one InputError that names it."""
    try:
        yield
    except NanofluxError:
        raise
    except Exception as error:  # a damaged file can break any layer below; all mean the same
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise InputError(
            f"{path} cannot be read as a Core ML package ({reason[0]}); "
            "copy it again whole, or export it again"
        ) from error


def open_package(path: Path) -> Package:
    """Read the manifest and the model proto of the .mlpackage at `path`.

    Raises:
        InputError: no such package, a damaged one, or a model that is not an ML Program.
    """
    if not (path / MANIFEST).is_file():
        raise InputError(f"{path} is not a Core ML package: it has no {MANIFEST} inside")
    with reading(path):
        model_path = _model_path(path)
        model = _parse(model_path)
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise InputError(
            f"{model_path} holds {kind or 'no model'}, not an ML Program; "
            "convert it with convert_to='mlprogram'"
        )
    return Package(path, model, model_path.parent)


def inside(folder: Path, relative: str) -> Path:
    """`folder`/`relative`, refused when it points out of `folder` or at no file."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"{folder} names a file outside itself ({relative}); do not use it")
    if not path.is_file():
        raise InputError(f"{folder} lacks the file {relative}; copy the package again whole")
    return path


def _model_path(path: Path) -> Path:
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    root = manifest["rootModelIdentifier"]
    return inside(path / DATA, manifest["itemInfoEntries"][root]["path"])


def _parse(model_path: Path) -> Any:
    with quiet():
        from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString(model_path.read_bytes())
    return model
