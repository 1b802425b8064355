"""Plug-ins are found by name, unread, and a missing package is one sentence."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from nanoflux_mobile import plugins
from nanoflux_mobile.errors import InputError

FILES = {
    "__init__.py": "",
    "_private.py": "raise RuntimeError('a private module was imported')",
    "broken.py": "raise RuntimeError('imported')",
    "bare.py": "import a_package_nobody_has",
    "ours.py": "import nanoflux_mobile.a_module_nobody_wrote",
    "needs_onnx.py": "import onnx.helper",
    "quantised/__init__.py": "import ai_edge_quantizer.recipe",
    "good/__init__.py": "answer = 42",
    "notes.txt": "",
    "loose_folder/inner.py": "",
}
METADATA = [
    "torch>=2",
    "ai-edge-quantizer==0.10.*; extra == 'litert'",
    'onnx>=1.20 ; python_version >= "3.11" and extra == "onnx"',
    "tensorflow-cpu>=2; extra == 'tensorflow'",
]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, text in FILES.items():
        path = tmp_path / "shop" / "gadgets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "shop" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(metadata, "requires", lambda _: METADATA)
    for absent in ("onnx", "ai_edge_quantizer"):
        monkeypatch.setitem(sys.modules, absent, None)
    yield "shop.gadgets"
    for loaded in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[loaded]


def test_names_are_sorted_public_and_unread(package: str) -> None:
    expected = ("bare", "broken", "good", "needs_onnx", "ours", "quantised")
    assert plugins.names(package) == expected
    assert not any(name.startswith(f"{package}.") for name in sys.modules)


def test_names_of_a_real_package() -> None:
    assert {"coreml", "litert"} <= set(plugins.names("nanoflux_export.targets"))
    assert "nanoflux" in plugins.names("nanoflux_mobile.families")


def test_load_imports_only_the_one(package: str) -> None:
    assert plugins.load(package, "good").answer == 42
    assert f"{package}.broken" not in sys.modules


@pytest.mark.parametrize("name", ["god", "", "_private", "good.answer", "../good", "notes"])
def test_an_unknown_name_lists_the_known(package: str, name: str) -> None:
    sentence = f"unknown gadget {name!r}; known: bare, broken, good, needs_onnx, ours, quantised"
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        plugins.load(package, name)


@pytest.mark.parametrize(
    ("name", "missing", "wanted"),
    [
        ("needs_onnx", "onnx", "nanoflux-mobile[onnx]"),
        ("quantised", "ai_edge_quantizer", "nanoflux-mobile[litert]"),
        ("bare", "a_package_nobody_has", "a_package_nobody_has"),
    ],
)
def test_a_missing_package_names_what_to_install(
    package: str, name: str, missing: str, wanted: str
) -> None:
    sentence = f"{missing} is not installed; install it with: pip install '{wanted}'"
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        plugins.load(package, name)


def test_faults_of_our_own_stay_what_they_are(package: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_module_nobody_wrote"):
        plugins.load(package, "ours")
    with pytest.raises(RuntimeError, match="imported"):
        plugins.load(package, "broken")


@pytest.mark.usefixtures("package")
def test_a_distribution_named_after_its_build() -> None:
    fault = plugins.missing_dependency(ModuleNotFoundError(name="tensorflow.lite"))
    assert fault is not None
    assert "nanoflux-mobile[tensorflow]" in str(fault)


def test_without_installed_metadata_the_module_itself_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    fault = plugins.missing_dependency(ModuleNotFoundError(name="coremltools"))
    assert str(fault).endswith("pip install 'coremltools'")
