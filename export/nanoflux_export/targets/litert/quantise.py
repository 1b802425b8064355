"""A float32 .tflite file with its weights stored smaller, each layer as it is told.

What the quantiser does, measured on its 0.10.0 release:

* fp16: weights are rounded to float16, nearest even, and a DEQUANTIZE op stands before each use.
* int8: weights become int8 with one float32 scale per output channel (per row of an embedding),
  zero point 0: scale = max(max|w|, 1e-9) / 127, q = clip(rint(w / scale), -127, 127), all in
  float32 with ties to even. Activations stay float32 in the file; the runtime rounds them to int8
  as it goes (dynamic range). Weights that are decompressed to float first hang the shader compiler
  of phone GPUs, so only this integer form ships.
* int4: the same with 7 for 127, two weights to a byte, the first in the low half.
* int4 in blocks: a scale for every so many input channels, rounded to bfloat16 and stored in half
  precision, in a tensor of its own. FULLY_CONNECTED and EMBEDDING_LOOKUP alone.
* int8 with 8-bit activations: weights as in int8; what enters a layer and what leaves it is int8 in
  ranges fixed beforehand, and biases are int32 in steps of what enters times the weight's scale.

Whatever their size, biases and constants of other ops stay float32 but for the last.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from nanoflux_export.targets.litert.quantizer_fix import (
    big_convolutions_quantise,
    keep_tensors_apart,
)
from nanoflux_mobile.spec import Scheme

Ranges = Mapping[str, Mapping[str, Any]]
"""The least and the greatest value of tensors, by name, as the quantiser takes them."""
Step = Mapping[str, Any]
"""What the quantiser is to do with some ops."""


def layer_steps(schemes: Mapping[str, Scheme]) -> list[Step]:
    """The quantiser's steps for layers by the name of the tensor that each makes."""
    return [_step(f"^{re.escape(name)};$", "*", scheme) for name, scheme in schemes.items()]


def whole_steps(scheme: Scheme) -> list[Step]:
    """The quantiser's steps for everything between what enters and what leaves."""
    apart = [{"regex": ".*", "operation": edge, "algorithm_key": "no_quantize"} for edge in _EDGES]
    return [_step(".*", "*", scheme), *apart]


def quantise(source: Path, steps: Iterable[Step], out: Path, ranges: Ranges | None = None) -> None:
    """Write the float32 file `source` to `out` with its weights stored as the steps say."""
    from ai_edge_quantizer.quantizer import Quantizer

    quantizer = Quantizer(str(source), list(steps))
    keep_tensors_apart(quantizer)
    # The quantiser draws a progress bar of its own in the middle of ours.
    with big_convolutions_quantise(), redirect_stderr(io.StringIO()):
        result = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    out.write_bytes(result.quantized_model)


_EDGES = ("INPUT", "OUTPUT")
_ACTIVATIONS = {"num_bits": 8, "dtype": "INT", "symmetric": False, "granularity": "TENSORWISE"}


def _step(regex: str, operation: str, scheme: Scheme) -> Step:
    floats = scheme.kind == "fp16"
    granularity = f"BLOCKWISE_{scheme.group}" if scheme.group else "CHANNELWISE"
    weights = {"num_bits": 16, "dtype": "FLOAT"} if floats else _integers(scheme, granularity)
    config = {
        "weight_tensor_config": weights,
        "compute_precision": "FLOAT" if floats else "INTEGER",
        "explicit_dequantize": floats,
        "skip_checks": False,
        "min_weight_elements": 0,
    }
    if scheme.activations == 8:
        config["activation_tensor_config"] = dict(_ACTIVATIONS)
    return {
        "regex": regex,
        "operation": operation,
        "algorithm_key": "float_casting" if floats else "min_max_uniform_quantize",
        "op_config": config,
    }


def _integers(scheme: Scheme, granularity: str) -> dict[str, Any]:
    return {
        "num_bits": scheme.bits,
        "dtype": "INT",
        "symmetric": True,
        "granularity": granularity,
    }
