"""What in a .tflite file a phone's GPU or CPU would refuse, get wrong or spend time on.

Google's own check (the Analyzer's gpu_compatibility) calls every graph compatible, so the rules
are ours. `GPU_OPS` are the ops for which LiteRT's open GPU delegate has a parser
(NewOperationParser of `_PARSER`); it also takes no tensor of more than four axes and, save for a
few ops, no integer value that is computed at run time. What is said of quantised weights was seen
on the WebGPU accelerator of ai-edge-litert 2.3.0 too, over software Vulkan.
"""

from __future__ import annotations

from collections.abc import Mapping

from nanoflux_export.findings import SQUARES_TO, Advice, Rule
from nanoflux_export.targets.litert import lint_checks as checks
from nanoflux_export.targets.litert.lint_checks import all_but, everywhere, ops, over, tensors
from nanoflux_export.targets.litert.lint_graph import File

_LITERT = "https://github.com/google-ai-edge/LiteRT"
_PARSER = f"{_LITERT}/blob/main/tflite/delegates/gpu/common/model_builder.cc"
_SAMPLE = (
    "https://github.com/google-ai-edge/litert-samples/tree/main/compiled_model_api/text_to_image/"
    "flux2_klein_kotlin_gpu"
)
_PARSED = """
ABS ADD ADD_N AVERAGE_POOL_2D BATCH_MATMUL CAST CONCATENATION CONV_2D COS CUMSUM DENSIFY
DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV ELU EQUAL EXP FLOOR FLOOR_DIV FLOOR_MOD
FULLY_CONNECTED GATHER GELU GREATER GREATER_EQUAL HARD_SWISH LEAKY_RELU LESS LESS_EQUAL LOG
LOGICAL_AND LOGISTIC LSTM MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL ONE_HOT
PACK PAD PADV2 POW PRELU QUANTIZE REDUCE_MAX REDUCE_MIN REDUCE_PROD RELU RELU6 RELU_0_TO_1
RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SELECT SELECT_V2 SIGN SIN
SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM
TANH TILE TRANSPOSE TRANSPOSE_CONV UNPACK
"""
GPU_OPS = frozenset(_PARSED.split())
"""Ops the GPU delegate can take."""

_OWN_RULES = frozenset({"BROADCAST_TO", "EMBEDDING_LOOKUP", "GATHER_ND", "STABLEHLO_SORT"})

_GPU: tuple[Rule[File], ...] = (
    Rule(
        "gpu/broadcast-to",
        "error",
        "the GPU delegate refuses BROADCAST_TO, which GroupNorm and expand become",
        "let the next op broadcast, or store the spread constant",
        f"{_LITERT}/issues/9191",
        ops("BROADCAST_TO"),
    ),
    Rule(
        "gpu/gather-nd",
        "error",
        "the GPU delegate refuses GATHER_ND, which indexing with a tensor becomes",
        "cut with slices along one axis, or reorder the weights that make the values",
        _PARSER,
        ops("GATHER_ND"),
    ),
    Rule(
        "gpu/sort",
        "error",
        "no runtime has a kernel for STABLEHLO_SORT, which topk becomes",
        "sort on the host",
        _PARSER,
        ops("STABLEHLO_SORT"),
    ),
    Rule(
        "gpu/refused-op",
        "error",
        "the GPU delegate has no parser for the op and refuses it",
        "express it with ops the GPU delegate has, or keep it out of the graph",
        _PARSER,
        all_but(GPU_OPS | _OWN_RULES),
    ),
    Rule(
        "gpu/token-lookup",
        "note",
        "token ids are looked up on the CPU, before the GPU begins",
        "leave it where it runs once for each prompt, else look them up on the host",
        _PARSER,
        everywhere(checks.lookups),
    ),
    Rule(
        "gpu/computed-integers",
        "warning",
        "integers that are computed at run time stay on the CPU: a round trip between processors",
        "compute it in float or on the host",
        _PARSER,
        everywhere(checks.computed_integers),
    ),
    Rule(
        "gpu/rank",
        "error",
        "GPUs slice and reshape at most four axes: the delegate refuses the op",
        "fold axes together",
        f"{_LITERT}/issues/2540",
        tensors(lambda tensor: len(tensor.shape) > 4),
    ),
    Rule(
        "gpu/dynamic-shape",
        "error",
        "shaders are compiled for fixed shapes: the delegate refuses open ones",
        "give every axis its length",
        _PARSER,
        tensors(lambda tensor: tensor.dynamic),
    ),
    Rule(
        "gpu/wide-values",
        "error",
        "no accelerator takes 64-bit tensors",
        "use int32 and float32",
        _PARSER,
        tensors(checks.is_wide),
    ),
    Rule(
        "gpu/quantised-dense",
        "error",
        "a FULLY_CONNECTED of integer weights before an elementwise op stops the GPU's compiler",
        "write the layer as a 1x1 convolution",
        f"{_LITERT}/issues/9277",
        everywhere(checks.quantised_dense),
    ),
    Rule(
        "gpu/constant-beside-batch",
        "error",
        "the GPU delegate computes wrong numbers, silently, where a value of lower rank meets a "
        "constant that varies along more than its last axis",
        "reshape both so that a batch of one comes first, as (1, rows, 1, columns)",
        f"{_LITERT}/issues/8980",
        everywhere(checks.constants_beside_batches),
    ),
    Rule(
        "gpu/decompressed-weights",
        "error",
        "integer weights that are made floats first are refused, or hang the GPU's compiler",
        "store weights for integer compute",
        f"{_LITERT}/issues/9523",
        everywhere(checks.decompressed),
    ),
    Rule(
        "gpu/blockwise-weights",
        "error",
        "weights with a scale per block abort the process in the GPU delegate",
        "use one scale per output channel, or the cpu profile",
        "https://github.com/webai-at-home/webai-at-home/issues/204",
        tensors(lambda tensor: tensor.blockwise),
    ),
    Rule(
        "gpu/infinite-mask",
        "error",
        "at or below -65504 half precision is infinite, and a softmax over it is not a number",
        "mask with -40000",
        _SAMPLE,
        everywhere(checks.low_masks),
    ),
    Rule(
        "gpu/file-2-gib",
        "error",
        "phones cannot load a file of more than 2 GiB",
        "store smaller weights or split the graph into chunks",
        _SAMPLE,
        over(1 << 31),
    ),
    Rule(
        "gpu/file-1-gib",
        "warning",
        "beyond 1 GiB the shaders of a file may not compile",
        "store smaller weights or split the graph into chunks",
        _SAMPLE,
        over(1 << 30, 1 << 31),
    ),
    Rule(
        "gpu/angles",
        "warning",
        "half precision has no room for the angle: a time embedding in the graph is 6 % off",
        "compute sines and cosines on the host in float32 and feed them in",
        _SAMPLE,
        ops("SIN", "COS"),
    ),
    Rule(
        "gpu/half-range",
        "note",
        f"beyond {SQUARES_TO} a value's square is infinite in half precision and its norm is 0",
        f"measure the range; where it passes {SQUARES_TO}, scale before squaring",
        _SAMPLE,
        everywhere(checks.large_squares),
    ),
    Rule(
        "gpu/subnormal-epsilon",
        "note",
        "half precision holds a scalar below 6.1e-5 badly or flushes it to 0",
        "use an epsilon of at least 6.2e-5 where the variance can come near 0",
        "https://www.w3.org/TR/WGSL/#floating-point-evaluation",
        everywhere(checks.subnormals),
    ),
    Rule(
        "gpu/transposes",
        "note",
        "each copies its tensor once",
        "change the layout once, at the border of the graph",
        "https://github.com/google-ai-edge/litert-torch/blob/main/docs/pytorch_converter/README.md",
        ops("TRANSPOSE"),
    ),
)
_CPU: tuple[Rule[File], ...] = (
    Rule(
        "cpu/sort",
        "error",
        "no runtime has a kernel for STABLEHLO_SORT, which topk becomes",
        "sort on the host",
        f"{_LITERT}/tree/main/tflite/kernels",
        ops("STABLEHLO_SORT"),
    ),
    Rule(
        "cpu/dynamic-int8-convolution",
        "warning",
        "with int8 weights and float values a decoder takes 1.7 times as long as with fp16",
        "store the decoder as fp16, or calibrate its activations (int8-a8)",
        "https://github.com/tensorflow/tensorflow/issues/51749",
        everywhere(checks.integer_convolutions),
    ),
)
RULES: Mapping[str, tuple[Rule[File], ...]] = {"gpu": _GPU, "cpu": _CPU}
"""The rules of each profile, in the order of the report."""

CROSSINGS = Advice(
    "gpu/crossings",
    "warning",
    "ops off the GPU split the graph: values pass between processors this often in a run",
    "mend what runs on the CPU, or move it before the first or behind the last op",
    _PARSER,
)
"""Counts passes between processors, of which a function that only begins elsewhere has one."""

LEAVING = (
    *("gpu/broadcast-to", "gpu/gather-nd", "gpu/sort", "gpu/refused-op", "gpu/token-lookup"),
    "gpu/computed-integers",
)
"""Rules of ops that run elsewhere."""
