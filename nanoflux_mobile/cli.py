"""The command line: a frozen table of verbs, each imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.main import get_command

from nanoflux_mobile import __version__, plugins
from nanoflux_mobile.errors import InputError, NanofluxError

INTERRUPTED = 130


@dataclass(frozen=True)
class Verb:
    """One word of the command line; `where` is "module:function", a function typer can read."""

    name: str
    help: str
    where: str


VERBS = (
    Verb("demo", "The whole way on the shipped tiny checkpoint.", "nanoflux_export.commands:demo"),
    Verb("list", "Families, plans, recipes and targets.", "nanoflux_export.commands:list_all"),
    Verb("doctor", "What is installed, what is missing.", "nanoflux_export.commands:doctor"),
    Verb("compress", "A teacher into a student, cut by cut.", "nanoflux_mobile.commands:compress"),
    Verb("export", "A checkpoint into phone bundles.", "nanoflux_export.commands:export"),
    Verb("verify", "Prove the files of a bundle right.", "nanoflux_export.commands:verify"),
    Verb("generate", "A picture from a prompt.", "nanoflux_export.commands:generate"),
    Verb("inspect", "What is inside a model file.", "nanoflux_export.commands:inspect"),
    Verb("predict", "A range of times, never a verdict.", "nanoflux_benchmarks.commands:predict"),
    Verb("bench", "Measure a bundle on a device.", "nanoflux_benchmarks.commands:bench"),
    Verb("gate", "Pass, fail or no evidence on latency.", "nanoflux_benchmarks.commands:gate"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb and exit.

    0 done, 1 a check failed, 2 no evidence (gate), 3 bad input or usage, 130 interrupted.
    `arguments` are those of the process by default. A verb sets another code with typer.Exit. Any
    exception that is not a NanofluxError is a bug and keeps its traceback.
    """
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments) or ["--help"]))


def _run(arguments: list[str]) -> int:
    chosen = next((word for word in arguments if not word.startswith("-")), "")
    try:
        command = get_command(_app(chosen))
        code = command.main(arguments, "nanoflux", standalone_mode=False)
    except NanofluxError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if not (fault := plugins.missing_dependency(error)):
            raise
        return _fail(str(fault), fault.exit_code)
    except typer.TyperException as error:
        return _fail(f"{error.format_message()} (see {_help(chosen)})", InputError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        return _fail("interrupted", code)
    return code if isinstance(code, int) else 0


def _app(chosen: str) -> typer.Typer:
    """All verbs by name and help; only the chosen one with its function and options."""
    app = typer.Typer(add_completion=False, callback=_options)
    for verb in VERBS:
        if verb.name == chosen:
            app.command(verb.name)(_function(verb))
        else:
            app.command(verb.name, help=verb.help)(_not_chosen)
    return app


def _function(verb: Verb) -> Callable[..., Any]:
    module, _, function = verb.where.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _not_chosen() -> None:
    """Stands in the table of verbs for a function that need not be imported."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nanoflux {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Phone-sized text-to-image models: made, converted and proven right."""


def _help(chosen: str) -> str:
    known = any(verb.name == chosen for verb in VERBS)
    return f"nanoflux {chosen} --help" if known else "nanoflux --help"


def _fail(message: str, code: int) -> int:
    typer.secho(f"error: {' '.join(message.splitlines())}", fg=typer.colors.RED, err=True)
    return code
