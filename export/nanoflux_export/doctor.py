"""What is installed, what is missing, and the command that mends it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata

NEEDS: dict[str, tuple[str, ...]] = {
    "": ("torch", "numpy", "safetensors", "tokenizers", "pillow", "typer", "rich"),
    "coreml": ("coremltools", "numba"),
    "litert": ("litert-torch", "litert-converter", "ai-edge-litert", "ai-edge-quantizer"),
    "onnx": ("onnx", "onnxruntime"),
    "tensorflow": ("tensorflow-cpu",),
    "teacher": ("diffusers", "transformers"),
    "train": ("sentencepiece",),
}
"""Distributions of each extra; the core has no name."""


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was found, whether it serves, and the command that mends it."""

    area: str
    name: str
    found: str
    good: bool
    mend: str = ""


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _package(extra: str, distribution: str) -> Check:
    version = _version(distribution)
    target = f"'nanoflux-mobile[{extra}]'" if extra else "nanoflux-mobile"
    mend = "" if version else f"pip install -c constraints.txt {target}"
    return Check(extra or "core", distribution, version or "missing", bool(version), mend)


def _numpy() -> Check:
    version = _version("numpy") or "missing"
    old = version != "missing" and tuple(map(int, version.split(".")[:2])) < (2, 4)
    mend = "" if old else "pip install 'numpy<2.4'  # coremltools 9.0 fails on 2.4"
    return Check("coreml", "numpy below 2.4", version, old, mend)


def _core_ml() -> Check:
    mac = platform.system() == "Darwin"
    found = "available" if mac else "not on this system: packages run in our own executor"
    return Check("device", "Core ML itself", found, True)


def _software_gpu() -> Check:
    try:
        from nanoflux_export.targets.litert.gpu import GET_DRIVER, driver
    except ImportError:  # the extra's own rows say so
        return Check("litert", "a Vulkan driver", "not looked for without LiteRT", True)
    found = driver()
    where = found.icd if found else f"none, so no GPU checks of .tflite files: {GET_DRIVER}"
    return Check("litert", "a Vulkan driver", where, True)


def examine() -> tuple[Check, ...]:
    """Every check, in the order of the extras."""
    packages = [_package(extra, name) for extra, names in NEEDS.items() for name in names]
    return (*packages, _numpy(), _core_ml(), _software_gpu())
