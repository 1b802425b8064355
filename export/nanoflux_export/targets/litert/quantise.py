"""A float32 .tflite file with its weights stored smaller.

What the quantiser does, measured on its 0.10.0 release:

* fp16: the weights of convolutions (plain, depthwise, transposed), FULLY_CONNECTED and
  EMBEDDING_LOOKUP are rounded to float16, nearest even, whatever their size, and a DEQUANTIZE op
  stands before each use. Biases and constants of other ops stay float32.
* int8: the weights of the same ops, and a constant side of BATCH_MATMUL, become int8 with one
  float32 scale per output channel (per row of an embedding), zero point 0, whatever their size:
  scale = max(max|w|, 1e-9) / 127, q = clip(rint(w / scale), -127, 127), all in float32 with
  ties to even. Activations stay float32 in the file; the runtime rounds them to int8 as it goes
  (dynamic range). Weights that are decompressed to float first hang the shader compiler of phone
  GPUs, so only this integer form ships.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from nanoflux_export.targets.litert.quantizer_fix import big_convolutions_quantise
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Scheme


def _everywhere(algorithm: str, weights: Mapping[str, Any], compute: str) -> list[dict[str, Any]]:
    op_config = {
        "weight_tensor_config": dict(weights),
        "compute_precision": compute,
        "explicit_dequantize": compute == "FLOAT",
        "skip_checks": False,
        "min_weight_elements": 0,
    }
    return [{"regex": ".*", "operation": "*", "algorithm_key": algorithm, "op_config": op_config}]


_RECIPES = {
    "fp16": _everywhere("float_casting", {"num_bits": 16, "dtype": "FLOAT"}, "FLOAT"),
    "int8": _everywhere(
        "min_max_uniform_quantize",
        {"num_bits": 8, "dtype": "INT", "symmetric": True, "granularity": "CHANNELWISE"},
        "INTEGER",
    ),
}


def check_scheme(scheme: Scheme) -> None:
    """Raise InputError unless LiteRT files can store weights as `scheme`."""
    if str(scheme) not in _RECIPES:
        known = ", ".join(_RECIPES)
        raise InputError(f"LiteRT files cannot store weights as {scheme}; accepted: {known}")


def quantise(source: Path, scheme: Scheme, out: Path) -> None:
    """Write the float32 file `source` to `out` with its weights stored as `scheme`."""
    from ai_edge_quantizer.quantizer import Quantizer

    # The quantiser draws a progress bar of its own in the middle of ours.
    with big_convolutions_quantise(), redirect_stderr(io.StringIO()):
        result = Quantizer(str(source), _RECIPES[str(scheme)]).quantize(
            enable_progress_bar=False, enable_progress_report=False
        )
    out.write_bytes(result.quantized_model)
