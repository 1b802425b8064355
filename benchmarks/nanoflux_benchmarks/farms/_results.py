"""What may hold a report among the things that a farm gave back."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from nanoflux_benchmarks.importers._texts import texts
from nanoflux_benchmarks.importers.log_markers import MARKER
from nanoflux_benchmarks.importers.xcresult import attachments
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.report import FILE

_REPORT = f"{FILE.removesuffix('.json')}*.json"


def candidates(results: Path, logs: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """`(name, text)` of every report in a folder or zip, and of every log in which one was printed.

    A report is a file of that name, or an attachment that Xcode exported; `logs` are patterns of
    file names in small letters. Zips in the folder are looked into. Names are for people: nothing
    is opened by a name that came from inside of a zip or a file.

    Raises:
        InputError: there is neither, or the results cannot be read or are larger than any are.
    """
    found = False
    held = texts(results)
    exported = {
        (manifest.folder, name)
        for manifest in held
        if manifest.name == "manifest.json"
        for name in attachments(manifest.content, manifest.where)
    }
    for text in held:
        report = _fits(text.name, (_REPORT,)) or (text.folder, text.name) in exported
        if report or (_fits(text.name, logs) and f"{MARKER} " in text.content):
            found = True
            yield text.where, text.content
    if not found:
        raise InputError(
            f"{results} holds no {FILE} and no log with {MARKER}; "
            "the log of the run says why the app left none"
        )


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)
