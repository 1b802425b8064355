"""The words of the command line are frozen: scripts in the wild call them."""

from __future__ import annotations

import pytest

from nanoflux_mobile.cli import VERBS, Verb, main

FROZEN = (
    *("demo", "list", "doctor", "compress", "export", "verify", "generate", "inspect"),
    *("predict", "bench", "gate"),
)


def test_the_verbs_and_their_order_are_frozen() -> None:
    assert tuple(verb.name for verb in VERBS) == FROZEN


def test_every_verb_has_one_plain_sentence() -> None:
    for verb in VERBS:
        assert verb.help.endswith("."), verb.name
        assert "\n" not in verb.help, verb.name
        assert len(verb.help) <= 60, f"{verb.name} does not fit on one line of 80 columns"


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_resolves_and_its_help_shows_an_example(
    verb: Verb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main([verb.name, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    usage, _, description = out.partition(f"nanoflux {verb.name} ")
    assert usage.strip() == "Usage:"
    assert f"nanoflux {verb.name}" in description, "the docstring gives an example"
