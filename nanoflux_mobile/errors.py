"""What can go wrong, by whose fault, and the exit code that says so."""

from __future__ import annotations


class NanofluxError(Exception):
    """Any failure this product explains in one sentence."""

    exit_code = 1


class CheckFailed(NanofluxError):
    """A check ran and its answer is no: parity below its floor, a hash that differs."""

    exit_code = 1


class InputError(NanofluxError):
    """What the user gave cannot be used; the message says what would be."""

    exit_code = 3
