"""Write an .mlpackage whole or not at all, and the same bytes for the same model every time."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from nanoflux_export.targets.coreml.package import MANIFEST, open_package
from nanoflux_mobile.storage import staged_folder, write_file

_DATE = "com.github.apple.coremltools.conversion_date"


def save(model: Any, out: Path) -> None:
    """Put a coremltools `MLModel` at `out`, replacing what is there.

    coremltools draws random identifiers, notes the day and writes protobuf maps in any order; here
    the identifiers follow from the paths, the day is left out and maps are sorted.
    """
    with staged_folder(out) as stage:
        written = stage / f"written{out.suffix}"
        model.save(str(written))
        for part in written.iterdir():
            os.rename(part, stage / part.name)
        written.rmdir()
        _settle_model(stage)
        _settle_manifest(stage)


def copy_package(source: Path, out: Path) -> None:
    """Put the package at `source`, as it is, at `out` too."""
    open_package(source)
    with staged_folder(out) as stage:
        shutil.copytree(source, stage, dirs_exist_ok=True)


def _settle_model(stage: Path) -> None:
    package = open_package(stage)
    package.model.description.metadata.userDefined.pop(_DATE, None)
    (path,) = package.model_folder.glob("*.mlmodel")
    write_file(path, package.model.SerializeToString(deterministic=True))


def _settle_manifest(stage: Path) -> None:
    manifest = json.loads((stage / MANIFEST).read_text(encoding="utf-8"))
    items = manifest["itemInfoEntries"]
    names = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, items[old]["path"])).upper() for old in items}
    manifest["itemInfoEntries"] = {names[old]: item for old, item in items.items()}
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    write_file(stage / MANIFEST, json.dumps(manifest, indent=4, sort_keys=True) + "\n")
