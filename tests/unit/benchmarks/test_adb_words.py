"""What is sent to a phone survives its shell, and what it says is understood or refused."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoflux_benchmarks.farms import turns
from nanoflux_benchmarks.farms.adb import words

TOKEN = "5f1c9a0e6b7d4a32"
LISTED = """* daemon not running; starting now at tcp:5037
* daemon started successfully
List of devices attached
R5CX10ABCDE\tdevice
192.168.0.7:5555\toffline
0A0B\tunauthorized
0C0D\tno permissions (user in plugdev group; are your udev rules wrong?); see [http://developer]
0E0F\trecovery

"""
BATTERY = "Current Battery Service state:\n  USB powered: true\n  status: 2\n  level: 83\n"
shell_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def sh(script: str) -> str:
    """What a POSIX shell prints for a script."""
    done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, check=False)
    return done.stdout.decode("utf-8")


@settings(max_examples=40)  # a process each
@given(text=shell_text, code=st.integers(0, 255))
def test_an_answer_comes_back_as_it_was_said(text: str, code: int) -> None:
    said = sh(words.marked(f"printf %s {shlex.quote(text)}; (exit {code})", TOKEN))
    assert words.answer(said, TOKEN) == words.Answer(text, code)


def test_both_streams_are_heard_and_stdin_is_empty() -> None:
    said = sh(words.marked("echo out; echo err >&2; cat; no_such_program # end", TOKEN))
    found = words.answer(said, TOKEN)
    assert found
    assert found.text.startswith("out\nerr\n")
    assert found.code == 127


@given(text=shell_text, code=st.integers(0, 255), data=st.data())
def test_an_answer_cut_short_is_none(text: str, code: int, data: st.DataObject) -> None:
    whole = f"{text}\n{TOKEN} {code}\n"
    end = data.draw(st.integers(0, len(whole) - 1))
    assert words.answer(whole, TOKEN) == words.Answer(text, code)
    assert words.answer(whole[:end], TOKEN) is None
    assert words.answer(f"{text}\n{TOKEN} x{code}\n", TOKEN) is None
    assert words.answer(whole, TOKEN[::-1]) is None


def test_devices_and_what_to_do_about_them() -> None:
    listed = words.devices(LISTED)
    assert [serial for serial, _ in listed] == [
        "R5CX10ABCDE", "192.168.0.7:5555", "0A0B", "0C0D", "0E0F",
    ]  # fmt: skip
    assert words.trouble("R5CX10ABCDE", listed) is None
    for serial, advice in (
        ("192.168.0.7:5555", "is offline; plug it in again"),
        ("0A0B", "does not trust this computer; unlock it"),
        ("0C0D", "may not be opened by this user; add a udev rule"),
        ("0E0F", "is in state 'recovery'; start it into Android"),
        ("other", "is not attached; attached: R5CX10ABCDE (device), 192.168.0.7:5555 (offline)"),
    ):
        assert (words.trouble(serial, listed) or "").startswith(f"{serial} {advice}")
    assert words.devices("List of devices attached\n\n") == ()
    assert "no device is attached" in words.attached(())


def test_facts_of_a_phone() -> None:
    said = "model=SM-S938B\nsoc=SM8750\nrelease=16\nfingerprint=a/b=c:16/D\n"
    found = words.facts(said, BATTERY, "IsStatusOverride: false\nThermal Status: 1\n")
    assert found == words.Facts("SM-S938B", "SM8750", "16", "a/b=c:16/D", 83, True, 1)
    assert str(found) == "SM-S938B (SM8750), Android 16: battery 83 %, charging, thermal status 1"
    bare = words.facts("model=Old\nsoc=\nrelease=9\n", "Can't find service", "Can't find service")
    assert bare == words.Facts("Old", "", "9", "", None, None, None)
    assert str(bare) == "Old, Android 9: battery unknown, thermal status unknown"


def test_the_script_for_properties_prints_what_facts_reads() -> None:
    said = sh(f"getprop() {{ echo \"of '$1'\"; }}; {words.properties_script()}")
    assert words.facts(said, "", "").fingerprint == "of 'ro.build.fingerprint'"


@given(st.text(), st.text(), st.text())
def test_whatever_a_phone_says_is_safe_to_print(a: str, b: str, c: str) -> None:
    assert str(words.facts(f"model={a}\nsoc={b}\n{c}", b, c)).isprintable()
    assert words.attached([(a, b)]).isprintable()
    assert all(line.isprintable() for line in words.last_lines(f"{a}\n{b}", c))
    assert (words.trouble(a, [("x", b)]) or "").isprintable() or not a.isprintable()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{'a1' * 32}  -\n", "a1" * 32),
        (f"{'a1' * 32} -", "a1" * 32),
        (f"{'a1' * 31}  -\n", None),
        (f"{'A1' * 32}  -\n", None),
        (f"{'a1' * 32}  -\n{'a1' * 32}  -\n", None),
        ("/system/bin/sh: can't open /x: No such file or directory\n", None),
        ("", None),
    ],
)
def test_a_hash_is_one_line(text: str, found: str | None) -> None:
    assert words.sha256(text) == found


def test_why_a_file_was_refused() -> None:
    said = "adb: error: failed to copy 'a' to '/b': remote write failed: No space left on device"
    assert words.refusal(said) == "its storage is full; free some space"
    assert words.refusal("1 file pushed, 0 skipped. 93.2 MB/s") is None


def test_the_last_lines_of_a_log_about_the_app() -> None:
    log = (
        "".join(f"{i} io.nanoflux.mobile {i}\n{i} other\n" for i in range(9)) + "io.nanoflux\x1b[2J"
    )
    assert words.last_lines(log, "io.nanoflux", 2) == ("8 io.nanoflux.mobile 8", "io.nanoflux?[2J")
    assert words.last_lines(log, "absent") == ()


@given(st.integers(1, 50), st.integers(1, 2))
def test_every_bundle_is_launched_once_a_turn(launches: int, bundles: int) -> None:
    order = list(turns(launches, bundles))
    assert sorted(order) == [(i, j) for i in range(launches) for j in range(bundles)]
    assert [i for i, _ in order] == sorted(i for i, _ in order)
    if bundles == 2:
        assert "".join("AB"[which] for _, which in order) == ("ABBA" * launches)[: 2 * launches]
