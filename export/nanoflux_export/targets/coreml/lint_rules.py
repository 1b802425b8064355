"""What keeps a graph off Apple's Neural Engine (ANE), makes it wrong there, or slow.

Nothing here was seen on a device: Apple states some of it, others measured the rest, and each rule
says where.
"""

from __future__ import annotations

from nanoflux_export.findings import SQUARES_TO, Advice, Rule
from nanoflux_export.targets.coreml import lint_checks as checks
from nanoflux_export.targets.coreml.lint_checks import everywhere, ops, over, per_weight
from nanoflux_export.targets.coreml.lint_graph import File

_APPLE = "https://machinelearning.apple.com/research/neural-engine-transformers"
_ENGINE_RULES = "https://www.skills.sh/apple/coreai-models/model-authoring"
_UNSUPPORTED = "https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md"
_OTHER_OFF = (
    *("scatter", "scatter_nd", "scatter_along_axis", "topk", "argsort", "non_zero", "one_hot"),
    *("cumsum", "lstm", "gru", "rnn", "while_loop", "cond", "custom", "resample"),
)
OFF_ENGINE = ("gather", "gather_nd", "gather_along_axis", "tile", *_OTHER_OFF)
"""Ops that the ANE does not take."""

FLEXIBLE = "ane/flexible-shape"
"""The rule that says a file has sizes left open."""

RULES: tuple[Rule[File], ...] = (
    Rule(
        "ane/rank",
        "error",
        "Core ML has no tensors of more than five axes and refuses to load the file",
        "reshape to four axes",
        _ENGINE_RULES,
        everywhere(checks.many_axes),
    ),
    Rule(
        "ane/dimension-limit",
        "error",
        "the compiler of the ANE stops at sizes beyond N 65536, C 65536, and D, H, W 16384",
        "split the tensor into chunks",
        "https://github.com/FluidInference/FluidAudio/issues/121",
        everywhere(checks.large_axes),
    ),
    Rule(
        FLEXIBLE,
        "error",
        "a function with sizes left open runs on the CPU",
        "export one function per size",
        "https://github.com/apple/coremltools/issues/2370",
        everywhere(checks.open_sizes),
    ),
    Rule(
        "ane/weight-file-2-gib",
        "error",
        "the compiler of the ANE refuses a weight file of more than 2 GiB",
        "store fewer bits or split the graph into chunks",
        "https://github.com/apple/coremltools/pull/2593",
        over(1 << 31),
    ),
    Rule(
        "ane/weight-file-1-gb",
        "warning",
        "iOS 18 is reported to refuse a weight file of more than 1 GB",
        "split the graph into chunks below 1 GB",
        "https://github.com/Anemll/Anemll/issues/28",
        over(10**9, 1 << 31),
    ),
    Rule(
        "ane/several-fused-attentions",
        "error",
        "with two large fused attentions in a function its compilation fails, without a word",
        "write attention as 4-D matmul, softmax, matmul",
        "https://github.com/kasper0406/stablehlo-coreml/pull/89",
        everywhere(checks.several_attentions),
    ),
    Rule(
        "ane/fused-attention",
        "warning",
        "only large fused attentions were placed on the ANE",
        "write attention as 4-D matmul, softmax, matmul",
        "https://github.com/vx-lang/Vx/issues/437",
        everywhere(checks.one_attention),
    ),
    Rule(
        "ane/infinite-mask",
        "error",
        "at or below -65504 half precision is infinite, and a softmax over it is not a number",
        "mask with -40000",
        _ENGINE_RULES,
        everywhere(checks.low_masks),
    ),
    Rule(
        "ane/float32",
        "warning",
        "the ANE computes in half precision: the op runs on the CPU",
        "convert with compute_precision FLOAT16 and keep values below 65504",
        _ENGINE_RULES,
        everywhere(checks.float32_ops),
    ),
    Rule(
        "ane/linear-layer",
        "warning",
        "the ANE wants (batch, channels, 1, tokens) and convolutions: a linear layer is slower",
        "write projections as 1x1 Conv2d on (batch, channels, 1, tokens)",
        _APPLE,
        ops("linear"),
    ),
    Rule(
        "ane/io-last-axis",
        "warning",
        "rows of inputs and outputs are padded to 64 bytes: this last axis needs a copy",
        "give inputs and outputs a last axis that is a multiple of 32 values",
        _APPLE,
        everywhere(checks.ragged_edges),
    ),
    Rule(
        "ane/singleton-last-axis",
        "warning",
        "a last axis of 1 is padded to 64 bytes: 32 times the memory and traffic",
        "keep tokens, not a 1, on the last axis",
        _APPLE,
        everywhere(checks.singleton_axes),
    ),
    Rule(
        "ane/ragged-last-axis",
        "warning",
        "every row is padded to 64 bytes, and the padding is computed too",
        "pad the token count to a multiple of 32",
        _APPLE,
        everywhere(checks.ragged_axes),
    ),
    Rule(
        "ane/token-lookup",
        "note",
        "rows of a table are looked up on the CPU, before the ANE begins",
        "leave it where it runs once for each prompt, else look them up on the host",
        _UNSUPPORTED,
        everywhere(checks.lookups),
    ),
    Rule(
        "ane/gather",
        "warning",
        "indexing with a tensor runs on the CPU: a round trip between processors",
        "cut with slices, or index on the host",
        _UNSUPPORTED,
        everywhere(checks.gathers),
    ),
    Rule(
        "ane/tile",
        "warning",
        "an expanded tensor is written out by the CPU: a round trip between processors",
        "let the next op broadcast",
        "https://github.com/roboflow/rf-detr/pull/1495",
        ops("tile"),
    ),
    Rule(
        "ane/off-engine",
        "warning",
        "the op runs on the CPU: a round trip between processors",
        "compute it on the host, or once before the steps",
        _UNSUPPORTED,
        ops(*_OTHER_OFF),
    ),
    Rule(
        "ane/spread-constant",
        "warning",
        "a constant is stored once for every place it is used at, and read from memory each time",
        "store it with a 1 on the axes it repeats along",
        _APPLE,
        everywhere(checks.spread_constants),
    ),
    Rule(
        "ane/group-norm",
        "warning",
        "GroupNorm is taken apart into reshapes to five axes and means, each a copy",
        "normalise (1, groups, channels / groups, pixels) by single-axis means",
        _ENGINE_RULES,
        everywhere(checks.grouped_means),
    ),
    Rule(
        "ane/dilated-convolution",
        "warning",
        "convolutions with holes run elsewhere",
        "use undilated kernels",
        _UNSUPPORTED,
        everywhere(checks.dilated),
    ),
    Rule(
        "ane/einsum",
        "warning",
        "only the form of Apple's own attention is known to stay on the ANE",
        "use bchq,bkhc->bkhq and bkhq,bchk->bchq, or 4-D matmul",
        "https://github.com/apple/ml-stable-diffusion/blob/main/"
        "python_coreml_stable_diffusion/attention.py",
        everywhere(checks.odd_einsums),
    ),
    Rule(
        "ane/last-axis-moved",
        "warning",
        "a transpose or reshape that changes the last axis is a copy through memory",
        "let matmul transpose, and split heads on the channel axis",
        _APPLE,
        everywhere(checks.last_axis_moved),
    ),
    Rule(
        "ane/dma-notch",
        "warning",
        "weights of which a core streams whole MiB, within 16 KiB, arrive at a third of the speed",
        "store palettes, or split the layer along its input channels",
        "https://github.com/kasper0406/stablehlo-coreml/pull/110",
        per_weight(checks.in_notch),
    ),
    Rule(
        "ane/angles",
        "warning",
        "half precision has no room for the angle: a time embedding in the graph costs 26 dB",
        "compute sines and cosines on the host in float32 and feed them in",
        _ENGINE_RULES,
        ops("sin", "cos"),
    ),
    Rule(
        "ane/half-range",
        "note",
        f"beyond {SQUARES_TO} a value's square is infinite in half precision and its norm is 0",
        f"measure the range; where it passes {SQUARES_TO}, scale before squaring",
        "https://github.com/onnxruntime/mobius/pull/253",
        everywhere(checks.large_squares),
    ),
    Rule(
        "ane/subnormal-epsilon",
        "note",
        "half precision holds a scalar below 6.1e-5 badly or flushes it to 0",
        "use an epsilon of at least 6.2e-5 where the variance can come near 0",
        "https://github.com/hollance/neural-engine/blob/master/docs/16-bit.md",
        everywhere(checks.subnormals),
    ),
)
"""Every rule that the ops of a file can break, in the order of the report."""

CROSSINGS = Advice(
    "ane/crossings",
    "warning",
    "ops off the ANE split the graph: values pass between processors this often in a run",
    "mend what runs on the CPU, or move it before the first or behind the last op",
    _UNSUPPORTED,
)
"""Counts passes between processors, of which a function that only begins elsewhere has one."""

LEAVING = ("ane/float32", "ane/gather", "ane/off-engine", "ane/tile", "ane/token-lookup")
"""Rules of ops that run elsewhere."""
