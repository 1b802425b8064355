"""Who may import whom: the contracts hold, and no module escapes them."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from nanoflux_mobile import plugins

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "nanoflux_mobile", ROOT / "export", ROOT / "benchmarks")
SHARED_WORDS = (
    *("spec", "manifest", "report", "cost", "parity", "plugins", "markup", "strict_json", "errors"),
)
RUNTIMES = {
    "coremltools": "coreml",
    "litert_torch": "litert",
    "litert_converter": "litert",
    "ai_edge_litert": "litert",
    "ai_edge_quantizer": "litert",
    "onnx": "onnx",
    "onnxruntime": "onnx",
}

VIOLATIONS = (  # file, line added to it, part of the contract's name, what the linter says
    ("nanoflux_mobile/errors.py", "import nanoflux_export", "do not know", "not allowed to import"),
    ("nanoflux_mobile/spec.py", "import nanoflux_mobile.models.t5", "shared words", "spec -> "),
    ("nanoflux_mobile/cli.py", "import torch", "command line", "nanoflux_mobile.cli -> torch"),
    (
        "nanoflux_mobile/models/t5.py",
        "import nanoflux_mobile.models.nanoflux",
        "a model stands",
        "nanoflux_mobile.models.t5 -> nanoflux_mobile.models.nanoflux",
    ),
    ("nanoflux_mobile/models/newcomer.py", "", "a model stands", "nanoflux_mobile.models.newcomer"),
    (
        "nanoflux_mobile/families/newcomer.py",
        "from nanoflux_mobile.families import nanoflux",
        "no family",
        "nanoflux_mobile.families.newcomer -> nanoflux_mobile.families.nanoflux",
    ),
    (
        "export/nanoflux_export/families/newcomer.py",
        "from nanoflux_export.families import nanoflux",
        "no mobile form",
        "nanoflux_export.families.newcomer -> nanoflux_export.families.nanoflux",
    ),
    (
        "export/nanoflux_export/targets/newcomer.py",
        "from nanoflux_export.targets import coreml",
        "no target",
        "nanoflux_export.targets.newcomer -> nanoflux_export.targets.coreml",
    ),
    (
        "export/nanoflux_export/targets/litert/newcomer.py",
        "def late():\n    import coremltools",
        "coremltools stays",
        "nanoflux_export.targets.litert.newcomer -> coremltools",
    ),
    (
        "export/nanoflux_export/targets/coreml/newcomer.py",
        "import litert_torch",
        "LiteRT packages stay",
        "nanoflux_export.targets.coreml.newcomer -> litert_torch",
    ),
    (
        "export/nanoflux_export/targets/coreml/newest.py",
        "import onnx",
        "ONNX packages stay",
        "nanoflux_export.targets.coreml.newest -> onnx",
    ),
    ("export/nanoflux_export/newcomer.py", "", "from the pipeline", "nanoflux_export.newcomer"),
    (
        "export/nanoflux_export/pipeline.py",
        "import nanoflux_export.commands",
        "from the pipeline",
        "nanoflux_export.pipeline -> nanoflux_export.commands",
    ),
    (
        "benchmarks/nanoflux_benchmarks/newcomer.py",
        "import torch\nimport nanoflux_mobile.models.t5",
        "benchmarks read",
        "nanoflux_benchmarks.newcomer -> nanoflux_mobile.models.t5",
    ),
)


def contracts() -> dict[str, dict[str, object]]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {c["name"]: c for c in config["tool"]["importlinter"]["contracts"]}


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules a file imports, anywhere in it; relative ones are refused."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield f"{node.module}.{node.names[0].name}"


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command as lint; lint()"
    paths = os.pathsep.join(str(root / part) for part in (".", "export", "benchmarks"))
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_contract_can_break(tmp_path: Path) -> None:
    """One copy of the packages with all of VIOLATIONS in it: each is found where it belongs."""
    for folder in SOURCES:
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("*.saf*"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path, line, _, _ in VIOLATIONS:
        with (tmp_path / path).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    broken = sections(lint(tmp_path).stdout)
    assert broken.keys() == contracts().keys()
    for path, _, contract, chain in VIOLATIONS:
        found = [body for name, body in broken.items() if contract in name]
        assert any(chain in body for body in found), f"{path}: {chain} not found in {found}"


def sections(report: str) -> dict[str, str]:
    """What the linter says of each broken contract, by its name."""
    pieces = re.split(r"-{9,}", " ".join(report.partition("Broken contracts")[2].split()))
    bodies = [piece.strip() for piece in pieces]
    return {
        name: bodies[i + 1]
        for i, piece in enumerate(bodies)
        for name in contracts()
        if piece.endswith(name)
    }


def test_every_family_and_target_is_under_a_contract() -> None:
    by_wildcard = {
        module
        for contract in contracts().values()
        if contract["type"] == "independence"
        for module in contract["modules"]
    }
    for package in ("nanoflux_mobile.families", "nanoflux_export.families"):
        assert f"{package}.*" in by_wildcard
    assert "nanoflux_export.targets.*" in by_wildcard
    models = contracts()["a model stands on parts, never on another family"]
    for family in plugins.names("nanoflux_mobile.families"):
        assert family in models["layers"][0], f"{family} is not in the layer of families"


def test_the_shared_words_need_the_standard_library_and_numpy_only() -> None:
    allowed = {*sys.stdlib_module_names, "numpy"}
    inside = {f"nanoflux_mobile.{word}" for word in SHARED_WORDS}
    for word in SHARED_WORDS:
        path = ROOT / "nanoflux_mobile" / f"{word}.py"
        for name in imported(path) if path.exists() else ():
            own = any(f"{name}.".startswith(f"{module}.") for module in inside)
            assert own or name.partition(".")[0] in allowed, f"{word}.py imports {name}"


def test_each_runtime_is_imported_by_its_own_target_only() -> None:
    for folder in SOURCES[:2]:
        for path in folder.rglob("*.py"):
            for name in imported(path):
                target = RUNTIMES.get(name.partition(".")[0])
                home = ROOT / "export" / "nanoflux_export" / "targets" / (target or "")
                assert target is None or path.is_relative_to(home), f"{path} imports {name}"
