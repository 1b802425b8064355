"""The command line loads one verb, and every end has its exit code and one sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from nanoflux_mobile import __version__, cli
from nanoflux_mobile.errors import CheckFailed, InputError

SHOP = '''
from typing import Annotated
import typer
from nanoflux_mobile.errors import CheckFailed, InputError

def sell(
    thing: str,
    count: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
) -> None:
    """Sell a thing, such as: nanoflux sell apple --count 3"""
    print(f"sold {count} {thing}")

def close(how: str) -> None:
    """End in one of many ways."""
    ends = {
        "check": CheckFailed("psnr_db is 12.0; the floor is 60.0"),
        "input": InputError("unknown recipe 'x';\\nknown: tiny"),
        "no-evidence": typer.Exit(2),
        "keyboard": KeyboardInterrupt(),
        "abort": typer.Abort(),
        "package": ModuleNotFoundError("No module named 'onnx'", name="onnx"),
        "bug": ZeroDivisionError("a bug"),
        "own-import": ModuleNotFoundError("no", name="nanoflux_mobile.nowhere"),
    }
    raise ends[how]
'''


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str, str]]:
    """Calls main with a table of three verbs; gives the exit code, stdout and stderr."""
    (tmp_path / "corner_shop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "corner_shop", raising=False)
    monkeypatch.setattr(
        cli,
        "VERBS",
        (
            cli.Verb("sell", "Sell a thing.", "corner_shop:sell"),
            cli.Verb("close", "End in one of many ways.", "corner_shop:close"),
            cli.Verb("haunted", "Cannot be imported.", "a_module_nobody_has:boo"),
        ),
    )

    def call(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        out, err = capsys.readouterr()
        return end.value.code, out, err

    return call


def test_a_verb_runs_with_its_own_options(run) -> None:
    assert run("sell", "apple", "--count", "3") == (0, "sold 3 apple\n", "")


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_lists_the_verbs_and_imports_none(run, arguments: list[str]) -> None:
    code, out, _ = run(*arguments)
    assert code == 0
    assert out.index("Sell a thing.") < out.index("End in one of many ways.")
    assert "Cannot be imported." in out
    assert "corner_shop" not in sys.modules


def test_help_of_a_verb_shows_its_function(run) -> None:
    code, out, _ = run("sell", "--help")
    assert code == 0
    assert "nanoflux sell apple --count 3" in out
    assert "How many of them." in out


def test_version(run) -> None:
    assert run("--version") == (0, f"nanoflux {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sel"], ["sel", "nanoflux --help"]),
        (["--frob"], ["--frob", "nanoflux --help"]),
        (["sell"], ["THING", "nanoflux sell --help"]),
        (["sell", "apple", "--cuont", "2"], ["--cuont", "--count", "nanoflux sell --help"]),
        (["sell", "apple", "--count", "many"], ["--count", "integer"]),
        (["sell", "apple", "--count", "0"], ["--count", "1"]),
        (["sell", "apple", "pear"], ["pear"]),
    ],
)
def test_wrong_usage_exits_3_with_one_line(run, arguments: list[str], words: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (InputError.exit_code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(word.lower() in err.lower() for word in words), err


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("check", CheckFailed.exit_code, "error: psnr_db is 12.0; the floor is 60.0\n"),
        ("input", InputError.exit_code, "error: unknown recipe 'x'; known: tiny\n"),
        ("no-evidence", 2, ""),
        ("keyboard", 130, "error: interrupted\n"),
        ("abort", 130, "error: interrupted\n"),
    ],
)
def test_every_end_has_its_code_and_one_line(run, how: str, code: int, line: str) -> None:
    assert run("close", how) == (code, "", line)


def test_a_missing_package_names_its_extra(run) -> None:
    code, _, err = run("close", "package")
    assert code == InputError.exit_code
    assert err.startswith("error: onnx is not installed; install it with: pip install ")


@pytest.mark.parametrize(
    ("how", "bug"), [("bug", ZeroDivisionError), ("own-import", ModuleNotFoundError)]
)
def test_bugs_keep_their_traceback(run, how: str, bug: type[Exception]) -> None:
    with pytest.raises(bug):
        run("close", how)


def test_the_error_line_is_red_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, object]] = []
    monkeypatch.setattr(typer, "secho", lambda text, **style: shown.append(style))
    assert cli._fail("no", 3) == 3
    assert shown == [{"fg": "red", "err": True}]


HEAVY = ("torch", "numpy", "coremltools", "litert_torch", "nanoflux_export", "nanoflux_benchmarks")


@pytest.mark.parametrize("argument", ["--help", "--version", "no-such-verb"])
def test_the_first_words_load_nothing_heavy(argument: str) -> None:
    program = (
        "import sys\n"
        "from nanoflux_mobile.cli import main\n"
        "try: main([sys.argv[1]])\n"
        f"finally: print('LOADED', *(m for m in {HEAVY} if m in sys.modules))\n"
    )
    root = Path(cli.__file__).parents[1]
    command = [sys.executable, "-c", program, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.stdout.splitlines()[-1:] == ["LOADED"], done.stderr
