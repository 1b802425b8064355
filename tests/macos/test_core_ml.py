"""Core ML itself against our executor, on the packages of the micro bundle."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoflux_export.bundle import GOLDEN, open_bundle
from nanoflux_export.golden import load_golden, probes
from nanoflux_export.targets.coreml import target
from nanoflux_mobile.parity import psnr_db

pytestmark = [
    pytest.mark.macos,
    pytest.mark.skipif(platform.system() != "Darwin", reason="needs macOS: Core ML itself"),
]

FLOORS_DB = {"CPU_ONLY": 45.0, "ALL": 35.0}
"""Core ML computes in half precision, whose rounding depends on the order of sums: about 60 dB on
a CPU. Accelerators add up in other orders and widths again; a wrong graph gives under 20 dB."""


def predict(package: Path, inputs: Mapping[str, np.ndarray], unit: str) -> dict[str, Any]:
    """What Core ML answers on a compute unit."""
    import coremltools

    model = coremltools.models.MLModel(str(package), compute_units=coremltools.ComputeUnit[unit])
    found: dict[str, Any] = model.predict(dict(inputs))
    return found


@pytest.mark.parametrize("unit", FLOORS_DB)
@pytest.mark.parametrize("name", ["text_encoder", "denoiser", "decoder"])
def test_core_ml_answers_as_our_executor_does(micro, name: str, unit: str) -> None:
    bundle = open_bundle(micro.bundles["coreml"])
    (entry,) = (entry for entry in bundle.manifest.components if entry.name == name)
    (chunk,) = entry.chunks
    ours = target.load(bundle.path / chunk.path, entry.component)
    for inputs in probes(load_golden(bundle.path / GOLDEN))[name]:
        theirs = predict(bundle.path / chunk.path, inputs, unit)
        expected = ours(inputs)
        assert theirs.keys() == expected.keys()
        for output, value in expected.items():
            found = np.asarray(theirs[output], np.float32)
            assert found.shape == value.shape
            assert psnr_db(found, value) >= FLOORS_DB[unit], (name, output, unit)
