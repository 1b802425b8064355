"""Latency reports from whatever a device, a farm or a tool left behind, in one contract.

One file per format, found by its name: `recognises(head)` says whether a text (its first 64 kB are
enough for most) looks like that format, `read(text, where)` gives the report in it, and `NAME` is
what people call it. A new format is a new file and no edit here. Only our own format is strict;
those of other makers may hold any key nobody asks for, and what they leave out is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from nanoflux_benchmarks.importers._merge import merge
from nanoflux_benchmarks.importers._texts import HEAD, Text, texts
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.plugins import load, names
from nanoflux_mobile.report import FILE, LatencyReport

__all__ = ["merge", "read_any"]

OWN = ("app", "log_markers")
"""Our own formats, in the order of trust: apps leave the same report in a file and in a log."""


def read_any(path: Path) -> LatencyReport:
    """The one report in a file of any known format, or in a folder or zip of such files.

    Where an app's own files lie, whatever else is there is left alone, and several files of one
    device, app and bundle become the launches of one report. Logs count only without such files,
    and those of other tools only without either.

    Raises:
        InputError: no report, a damaged one, or several that are not launches of one run.
    """
    found = _attached(texts(path))
    for read in (_own_files, _own_logs, _foreign_files):
        if reports := read(found, path):
            return reports[0] if len(reports) == 1 else merge(reports)
    formats = ", ".join(load(__name__, name).NAME for name in names(__name__))
    raise InputError(f"{path} holds no latency report; accepted: {formats}, or a folder or zip")


def _own_files(found: Iterable[Text], _: Path) -> list[LatencyReport]:
    # Farms often keep the same file twice.
    return list(dict.fromkeys(_read("app", text) for text in _recognised("app", found)))


def _own_logs(found: Iterable[Text], path: Path) -> list[LatencyReport]:
    logs = _recognised("log_markers", found)
    if not logs:
        return []
    # Several logs of one run complete each other: a chunk that one lost may be in another.
    where = logs[0].where if len(logs) == 1 else path.name
    return [load(__name__, "log_markers").read("\n".join(log.content for log in logs), where)]


def _foreign_files(found: Sequence[Text], path: Path) -> list[LatencyReport]:
    formats = [name for name in names(__name__) if name not in OWN]
    hits = [(text, name) for name in formats for text in _recognised(name, found)]
    if len(hits) > 1:
        several = ", ".join(sorted({text.where for text, _ in hits})[:5])
        raise InputError(f"{path} holds {len(hits)} results of other tools; name one of {several}")
    return [_read(name, text) for text, name in hits]


def _recognised(name: str, found: Iterable[Text]) -> list[Text]:
    # A log may be long before the report begins, and a key that names a format may come last.
    module = load(__name__, name)
    return [
        text
        for text in found
        if any(module.recognises(part) for part in (text.content[:HEAD], text.content))
    ]


def _read(name: str, text: Text) -> LatencyReport:
    if not text.intact and text.content.lstrip()[:1] in ("{", "["):
        raise InputError(f"{text.where} is not UTF-8 text, so it was damaged; fetch it again")
    report: LatencyReport = load(__name__, name).read(text.content, text.where)
    return report


def _attached(found: tuple[Text, ...]) -> tuple[Text, ...]:
    """Only our own attachments where `xcresulttool export attachments` listed what it exported."""
    attachments = load(__name__, "xcresult").attachments
    for manifest in (text for text in found if text.name == "manifest.json"):
        beside = {text.name: text for text in found if text.folder == manifest.folder}
        wanted: tuple[str, ...] = attachments(manifest.content, manifest.where)
        if missing := [name for name in wanted if name not in beside]:
            raise InputError(
                f"{manifest.where} lists {missing[0]!r}, which is not beside it as a text; "
                f"name the folder with the exported {FILE}"
            )
        if wanted:
            return tuple(beside[name] for name in wanted)
    return found
