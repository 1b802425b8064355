"""The command line, called in this process: converters are slow to import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from nanoflux_mobile.cli import main


@dataclass(frozen=True)
class Ended:
    """How a call of the command line ended."""

    code: object
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that say what went wrong."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]

    def refused(self, code: int, *words: str) -> None:
        """Assert an end with this code and one sentence that holds the words, no traceback."""
        assert self.code == code, self.err
        assert len(self.errors) == 1, self.err
        assert "Traceback" not in self.err
        assert all(word in self.errors[0] for word in words), self.errors[0]


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs one verb; an exception other than the exit is a bug and passes through."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return Ended(end.value.code, *capsys.readouterr())

    return call
