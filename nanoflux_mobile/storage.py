"""Files and folders that are whole or absent, whenever the process dies."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from nanoflux_mobile.errors import InputError

_CHUNK_BYTES = 1 << 20
_FULL = {
    errno.ENOSPC: "the disk is full; free some space and run again",
    errno.EDQUOT: "your disk quota is used up; free some space and run again",
    errno.EFBIG: "this file system takes no file that big; choose a folder on another one",
}
_REFUSED = {
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "permission denied; choose a folder you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another path",
    errno.EEXIST: "a part of this path is a file, not a folder; choose another path",
    errno.EISDIR: "it is a folder; choose a file name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOTEMPTY: "another run wrote it at the same time; run again",
}


def file_sha256(path: Path) -> str:
    """The sha256 of a file as 64 hex digits, read in pieces.

    Raises:
        InputError: `path` is no file, or one that may not be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise InputError(f"cannot read {path}: {error.strerror}; name a readable file") from error
    return digest.hexdigest()


def write_file(path: Path, data: bytes | str) -> None:
    """Put `data` (text as UTF-8) at `path`: readers see the old file or the new one, never a part.

    Missing parent folders are made.

    Raises:
        InputError: the disk is full or the place cannot be written.
    """
    write_with(path, lambda file: file.write(data.encode() if isinstance(data, str) else data))


def write_with(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """`write_file` for what is too large to hold as bytes: `write` gets the open file.

    Raises:
        InputError: the disk is full or the place cannot be written.
    """
    part = _beside(path, secrets.token_hex(4), "partial")
    with _explained(path, _FULL | _REFUSED):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            _sync(path.parent)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """An empty folder beside `final` that takes its place, whole, when the block ends well.

    An older folder at `final` is replaced, but only when the new one has everything visible at its
    top; when the block raises, it is left as it was. What a killed run left behind is cleared (or
    put back) by the next call for the same `final`.

    Raises:
        InputError: `final` is a file or holds something that is not ours to delete, the disk is
            full, or the place cannot be written.
    """
    final, token = final.resolve(), secrets.token_hex(4)
    stage, lock = _beside(final, token, "partial"), _beside(final, token, "lock")
    with _explained(final, _FULL | _REFUSED):
        _check_replaceable(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        _try_lock(held)
        with _explained(final, _FULL | _REFUSED):
            stage.mkdir()
        with _explained(final, _FULL):  # other errors in the block are not about `final`
            yield stage
        with _explained(final, _FULL | _REFUSED):
            _publish(stage, final, _beside(final, token, "replaced"))
    finally:
        _clear(final, token)
        os.close(held)


@contextmanager
def _explained(path: Path, reasons: dict[int, str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in reasons:
            raise
        raise InputError(f"cannot write {path}: {reasons[error.errno]}") from error


def _check_replaceable(final: Path) -> None:
    if final.exists() and not final.is_dir():
        raise InputError(f"{final} is a file; name a folder that is new or may be replaced")
    if any(place.is_relative_to(final) for place in (Path.cwd(), Path.home())):
        raise InputError(f"{final} holds the current or home folder; name a new folder inside it")


def _check_nothing_lost(stage: Path, final: Path) -> None:
    new = {path.name for path in stage.iterdir()}
    old = {path.name for path in final.iterdir()} if final.exists() else set()
    if strange := sorted(name for name in old - new if not name.startswith(".")):
        raise InputError(
            f"{final} holds {strange[0]!r}, which is not ours to delete; name a new folder"
        )


def _beside(path: Path, token: str, kind: str) -> Path:
    return path.with_name(f".{path.name}.{token}.{kind}")


def _publish(stage: Path, final: Path, aside: Path) -> None:
    _check_nothing_lost(stage, final)
    for path in (*stage.rglob("*"), stage):
        _sync(path)
    with suppress(FileNotFoundError):
        os.rename(final, aside)
    os.rename(stage, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _sweep(final: Path) -> None:
    """Clear after every run for `final` whose lock nobody holds any more."""
    lock_name = re.compile(rf"\.{re.escape(final.name)}\.([0-9a-f]{{8}})\.lock")
    matches = [lock_name.fullmatch(path.name) for path in final.parent.iterdir()]
    for match in filter(None, matches):
        with suppress(FileNotFoundError, PermissionError):
            held = os.open(final.with_name(match[0]), os.O_RDWR)
            try:
                if _try_lock(held):
                    _clear(final, match[1])
            finally:
                os.close(held)


def _try_lock(file: int) -> bool:
    # The kernel drops the lock when its process dies, however that happens. File systems without
    # locks refuse: then leftovers stay, and nothing that lives is ever removed.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it for this process; it is free again however the process ends.

    Raises:
        InputError: another process holds it, or the place cannot be written.
    """
    with _explained(folder, _FULL | _REFUSED):
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock_or_say(held, folder)
        yield
    finally:
        os.close(held)


def _lock_or_say(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as busy:
        raise InputError(
            f"another process works in {folder}; wait for it, stop it, or name another folder"
        ) from busy
    except OSError:
        pass  # a file system without locks: nothing is held there


def _clear(final: Path, token: str) -> None:
    aside = _beside(final, token, "replaced")
    if aside.exists() and not final.exists():
        os.rename(aside, final)
    for leftover in (aside, _beside(final, token, "partial")):
        shutil.rmtree(leftover, ignore_errors=True)
    _beside(final, token, "lock").unlink(missing_ok=True)
