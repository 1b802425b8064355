"""The ranges of everything that flows through a segment, taken while it runs on samples.

ai-edge-quantizer calibrates on all intermediate tensors at once, which takes 9 GB for a decoder of
512 pixels. Its runtime can also note the least and the greatest value of each op's results as they
pass, in the memory that a plain run takes; its ranges are the same. Over several samples they are
joined, so no value that was seen is cut off.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import torch

from nanoflux_export.graph import MAIN
from nanoflux_export.targets.litert.quantise import Ranges, Step
from nanoflux_export.targets.litert.template import entry_name


def ranges_of(
    path: Path, samples: Iterable[tuple[np.ndarray, ...]], steps: Iterable[Step]
) -> Ranges:
    """The range of every computed tensor of a template's file, by name; empty without samples."""
    from ai_edge_quantizer.calibrator import CalibrationMode, Calibrator
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    manager = RecipeManager()
    manager.load_quantization_recipe(list(steps))
    mode, threads = CalibrationMode.CALIBRATION_PROFILER_BASED, torch.get_num_threads()
    with redirect_stderr(io.StringIO()):  # a progress bar for every sample
        calibrator = Calibrator(str(path), threads, mode, min_max_update)
        for sample in samples:
            named = {entry_name(at): value for at, value in enumerate(sample)}
            calibrator.calibrate({MAIN: [named]}, manager)
    found: Ranges = calibrator.get_model_qsvs()
    return found
