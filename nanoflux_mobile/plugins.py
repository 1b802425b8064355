"""Parts found by the name of their file or folder: a new one is a new file and no edit."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from importlib import metadata
from types import ModuleType

from nanoflux_mobile.errors import InputError

DISTRIBUTION = "nanoflux-mobile"
_OWN = ("nanoflux_mobile", "nanoflux_export", "nanoflux_benchmarks")
_EXTRA = re.compile(r"""([\w.-]+).*\bextra\s*==\s*["']([\w-]+)["']""")


def names(package: str) -> tuple[str, ...]:
    """The public modules and sub-packages of `package`, sorted; none of them is imported."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return tuple(
        sorted(m.name for m in pkgutil.iter_modules(folders or []) if not m.name.startswith("_"))
    )


def load(package: str, name: str) -> ModuleType:
    """The module `name` of `package`, imported.

    Raises:
        InputError: no such module (the message lists them), or one that needs something which is
            not installed (the message says what to install).
    """
    known = names(package)
    if name not in known:
        kind = package.rpartition(".")[2].removesuffix("s")
        raise InputError(f"unknown {kind} {name!r}; known: {', '.join(known) or 'none'}")
    try:
        return importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if fault := missing_dependency(error):
            raise fault from error
        raise


def missing_dependency(error: ModuleNotFoundError) -> InputError | None:
    """What to install so that the failed import works; None when the missing module is ours."""
    module = (error.name or "").partition(".")[0]
    if not module or module in _OWN:
        return None
    extra = _extra_of(module)
    wanted = f"{DISTRIBUTION}[{extra}]" if extra else module
    return InputError(f"{module} is not installed; install it with: pip install '{wanted}'")


def _extra_of(module: str) -> str | None:
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    matches = filter(None, map(_EXTRA.match, requirements))
    extras = {_normal(match[1]): match[2] for match in matches}
    # A distribution may be named after its build, such as tensorflow-cpu for tensorflow.
    return extras.get(_normal(module)) or next((e for e in extras.values() if e == module), None)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
