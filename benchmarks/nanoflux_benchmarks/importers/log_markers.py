"""A report in the lines of a log: logcat, syslog, Apple's unified log, or what a test printed.

Where a farm gives back nothing but a log, an app prints its `latency-report.json` in marker lines:

    NANOFLUX_REPORT <run_id> <i>/<n> <digest> <chunk>

`i` counts from 1 to `n`. `digest` is the first 16 hex digits of the sha256 of the whole text in
UTF-8. `chunk` is a part of the base64 (RFC 4648, padded) of those bytes: 720 characters in every
line but the last. So a line has at most 833 bytes: Apple's log cuts a message at about 1 kB,
logcat at about 4 kB. On Apple systems the message must be logged as public.

Reading takes the lines out of whatever surrounds them (timestamps, tags, colours, other runs), in
any order and any number of copies.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.report import LatencyReport, parse_report

NAME = "a log with NANOFLUX_REPORT lines"
MARKER = "NANOFLUX_REPORT"
CHUNK = 720
DIGEST = 16

_RUN_ID = r"[A-Za-z0-9_.-]{1,64}"
_BASE64 = r"[A-Za-z0-9+/]+={0,2}"
_LINE = re.compile(
    rf"{MARKER} ({_RUN_ID}) (\d{{1,6}})/(\d{{1,6}}) ([0-9a-f]{{{DIGEST}}}) ({_BASE64})", re.ASCII
)
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_MOST_NAMED = 5


@dataclass(frozen=True)
class _Run:
    """One printing of one report; `chunks` holds every distinct text that came as chunk i."""

    run_id: str
    count: int
    digest: str
    chunks: Mapping[int, frozenset[str]]


def marker_lines(text: str, run_id: str) -> tuple[str, ...]:
    """The lines an app prints for a report's text; each has at most 833 bytes, all ASCII.

    Raises:
        InputError: the run_id is no plain name of up to 64 characters.
    """
    if not re.fullmatch(_RUN_ID, run_id):
        raise InputError(f"run_id is {run_id!r}; use up to 64 letters, digits, '.', '_' and '-'")
    data = text.encode()
    digest, letters = _digest(data), base64.b64encode(data).decode("ascii")
    chunks = [letters[at : at + CHUNK] for at in range(0, len(letters), CHUNK)]
    return tuple(
        f"{MARKER} {run_id} {i}/{len(chunks)} {digest} {chunk}" for i, chunk in enumerate(chunks, 1)
    )


def recognises(head: str) -> bool:
    """Whether a text holds the marker."""
    return f"{MARKER} " in head


def read(text: str, where: str) -> LatencyReport:
    """The report of the one run that is whole in this log.

    Raises:
        InputError: no run is whole (the message says what is missing), several are (it names
            them), or what the lines hold is no report of that run.
    """
    runs = _runs(text)
    if not runs:
        raise InputError(
            f"{where} has {MARKER} lines, but none is legible; log them whole and as public"
        )
    whole = {(run.run_id, found) for run in runs if (found := _whole_text(run)) is not None}
    if not whole:
        faults = "; ".join(_fault(run) for run in runs[:_MOST_NAMED])
        more = f"; and {len(runs) - _MOST_NAMED} more runs" if len(runs) > _MOST_NAMED else ""
        raise InputError(f"{where} holds no whole report: {faults}{more}; take the log again")
    if len(whole) > 1:
        several = ", ".join(sorted(run_id for run_id, _ in whole)[:_MOST_NAMED])
        raise InputError(
            f"{where} holds {len(whole)} whole reports: {several}; keep the log of one"
        )
    ((run_id, whole_text),) = whole
    report = parse_report(whole_text, f"{where}, run {run_id}")
    if report.run_id != run_id:
        raise InputError(f"{where}, run {run_id}: run_id is {report.run_id!r}; print it as it is")
    return report


def _runs(text: str) -> list[_Run]:
    found: dict[tuple[str, int, str], dict[int, set[str]]] = {}
    for run_id, i, count, digest, chunk in _LINE.findall(_COLOURS.sub("", text)):
        if 1 <= int(i) <= int(count):
            chunks = found.setdefault((run_id, int(count), digest), {})
            chunks.setdefault(int(i), set()).add(chunk)
    return [
        _Run(*key, {i: frozenset(_uncut(chunks[i])) for i in sorted(chunks)})
        for key, chunks in found.items()
    ]


def _uncut(copies: Iterable[str]) -> Iterator[str]:
    """Copies of a chunk without those that are merely the beginning of a longer one."""
    longest = ""
    for copy in sorted(copies, reverse=True):
        if not longest.startswith(copy):
            longest = copy
            yield copy


def _whole_text(run: _Run) -> str | None:
    if len(run.chunks) < run.count or any(len(copies) > 1 for copies in run.chunks.values()):
        return None
    letters = "".join(chunk for copies in run.chunks.values() for chunk in copies)
    try:
        data = base64.b64decode(letters, validate=True)
        return data.decode() if _digest(data) == run.digest else None
    except (binascii.Error, UnicodeDecodeError):
        return None


def _fault(run: _Run) -> str:
    """What is wrong with a run that is not whole."""
    here = run.chunks
    cut = _spans(i for i in here if i < run.count and max(map(len, here[i])) < CHUNK)
    contradicting = _spans(i for i in here if len(here[i]) > 1)
    missing = _missing(run)
    faults = [
        f"lacks {missing}" if missing else "",
        f"has {cut} cut short" if cut else "",
        f"has contradicting copies of {contradicting}" if contradicting else "",
    ]
    told = ", ".join(filter(None, faults))
    return f"run {run.run_id} of {run.count} chunks {told or 'does not fit its digest'}"


def _missing(run: _Run) -> str:
    # Only the chunks that came are walked: a hostile line may claim a million.
    edges = [0, *run.chunks, run.count + 1]
    gaps = [(a + 1, b - 1) for a, b in pairwise(edges) if b - a > 1]
    return _joined(gaps)


def _spans(numbers: Iterable[int]) -> str:
    return _joined([(number, number) for number in numbers])


def _joined(spans: list[tuple[int, int]]) -> str:
    told = [f"{a}" if a == b else f"{a}-{b}" for a, b in spans[:_MOST_NAMED]]
    return ", ".join(told) + (" and more" if len(spans) > _MOST_NAMED else "")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGEST]
