"""The file `latency-report.json` that our own apps write: the contract itself, strict."""

from __future__ import annotations

import re

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.report import FILE, LatencyReport, parse_report, report_json

NAME = f"{FILE} of an app"

_SCHEMA = re.compile(r'"schema"\s*:\s*"latency-report/')
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def recognises(head: str) -> bool:
    """Whether a text is a JSON table with our schema in it."""
    return head.lstrip()[:1] == "{" and _SCHEMA.search(head) is not None


def read(text: str, where: str) -> LatencyReport:
    """The report, exactly as the contract has it.

    Raises:
        InputError: no JSON, or not this contract; the message names the field.
    """
    report = parse_report(text, where)
    if _SURROGATE.search(text):
        # JSON can spell half a character; a file of ours cannot hold it.
        try:
            report_json(report).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where} holds half a character; write whole ones") from error
    return report
