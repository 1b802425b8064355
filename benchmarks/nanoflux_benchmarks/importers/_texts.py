"""The texts in a file, a folder or a zip: bounded, in memory, and no name in it used as a path."""

from __future__ import annotations

import codecs
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.report import MOST_BYTES

HEAD = 1 << 16
MOST_FILES = 20_000
MOST_TOTAL = 4 * MOST_BYTES
"""Of a zip, and of all texts in one folder or zip once inflated."""

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_ENCRYPTED = 1
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, IndexError)


@dataclass(frozen=True)
class Text:
    """A text file: how errors call it, its folder, its own name, its content.

    Not `intact`: it holds bytes that are no UTF-8, which logs often do; U+FFFD stands for them.
    """

    where: str
    folder: str
    name: str
    content: str
    intact: bool


@dataclass(frozen=True)
class _File:
    where: str
    folder: str
    name: str
    open: Callable[[], IO[bytes]]


def texts(path: Path) -> tuple[Text, ...]:
    """Every text in a file, a zip, or a folder of both (links are left out), by their names.

    Raises:
        InputError: it cannot be read, is encrypted, or holds more than any result does.
    """
    with ExitStack() as stack:
        try:
            return tuple(_bounded(_files(path, stack), path))
        except _BROKEN_ZIP as broken:
            raise InputError(f"cannot read {path} as a zip: {broken}; fetch it again") from broken
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"cannot read {path}: {reason}; name a readable file") from error


def _files(path: Path, stack: ExitStack) -> Iterator[_File]:
    if path.is_dir():
        return _in_folder(path, stack)
    if not path.is_file():
        raise InputError(f"{path} is no file or folder; name a report, or results that hold one")
    return _opened(path, path.name, "", stack)


def _opened(path: Path, where: str, folder: str, stack: ExitStack) -> Iterator[_File]:
    """A file itself, or what a zip holds; a zip inside of a zip stays closed."""
    with path.open("rb") as file:
        packed = file.read(4) in _ZIP
    if not packed:
        return iter([_File(shown(where), folder, path.name, _opener(path))])
    if path.stat().st_size > MOST_TOTAL:
        raise InputError(f"{path} has over {MOST_TOTAL >> 20} MiB; unpack it and name the report")
    return _in_zip(stack.enter_context(zipfile.ZipFile(path)), where)


def _in_folder(folder: Path, stack: ExitStack) -> Iterator[_File]:
    for root, folders, names in os.walk(folder, onerror=_refuse):
        folders.sort()
        for path in (Path(root, name) for name in sorted(names)):
            if path.is_file() and not path.is_symlink():
                yield from _opened(path, str(path.relative_to(folder)), root, stack)


def _opener(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


def _refuse(error: OSError) -> None:
    raise error


def _in_zip(archive: zipfile.ZipFile, where: str) -> Iterator[_File]:
    for info in sorted(archive.infolist(), key=lambda info: info.filename):
        if info.flag_bits & _ENCRYPTED:
            raise InputError(f"{where} is encrypted; unpack it and name the report")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{where} is packed in a rare way; unpack it and name the report")
        if not info.is_dir():
            name = PurePosixPath(info.filename.replace("\\", "/"))
            shown_name = f"{shown(where)}:{shown(name.name)}"
            inside = f"{where}:{name.parent}"  # files of one folder of one zip belong together
            yield _File(shown_name, inside, name.name, partial(archive.open, info))


def _bounded(files: Iterable[_File], path: Path) -> Iterator[Text]:
    total = 0
    for count, file in enumerate(files):
        if count >= MOST_FILES:
            raise InputError(f"{path} holds over {MOST_FILES} files; name the report itself")
        if (data := _data(file)) is None:
            continue
        total += len(data)
        if total > MOST_TOTAL:
            limit = f"{MOST_TOTAL >> 20} MiB"
            raise InputError(f"{path} holds over {limit} of text; name the report itself")
        yield _text(file, data)


def _data(file: _File) -> bytes | None:
    """The bytes of a text; None when they are a picture, a film or a program."""
    with file.open() as stream:
        data = stream.read(HEAD)
        if b"\0" in data and data[:2] not in _UTF16:
            return None
        data += stream.read(MOST_BYTES + 1 - len(data))
    if len(data) > MOST_BYTES:
        raise InputError(f"{file.where} has over {MOST_BYTES >> 20} MiB; no report or log has")
    return data


def _text(file: _File, data: bytes) -> Text:
    # Windows PowerShell writes UTF-16 when it redirects what a tool prints.
    encoding = "utf-16" if data[:2] in _UTF16 else "utf-8-sig"
    try:
        content, intact = data.decode(encoding), True
    except UnicodeDecodeError:
        content, intact = data.decode(encoding, "replace"), False
    return Text(file.where, file.folder, file.name, content, intact)


def shown(name: str) -> str:
    """A name from outside as an error may print it: no control characters, not endless."""
    return re.sub(r"[^\x20-\x7e]", "?", name)[:200]
