"""The denoiser that runtimes are compared on, and each runtime behind one function.

Shapes: B batch (1), C token channels, S image tokens, J text width, T text tokens, D width,
N modulation rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nanoflux_export.compression.plan import Plan
from nanoflux_export.families.nanoflux import denoiser_function
from nanoflux_export.graph import MAIN, MobileGraph, one_segment
from nanoflux_export.targets.litert import target
from nanoflux_export.targets.litert.convert import convert
from nanoflux_export.torch_run import Whole
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.nanoflux_layers import Rope, rope_tables
from nanoflux_mobile.sampler import image_ids, text_ids
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme
from nanoflux_mobile.weights import network

OURS = "LiteRT int8 (ours)"
OPSET = 20

Inputs = Mapping[str, np.ndarray]
Engine = Callable[[Inputs], np.ndarray]


@dataclass(frozen=True)
class Scale:
    """A denoiser to compare with: its sizes, and tokens of text and along a side of the picture."""

    cfg: FluxConfig
    text: int
    side: int


SCALES = {
    "tiny": Scale(FluxConfig(16, 1, 1, 16, 4, 32, 0, False, (4, 6, 6), 1), 16, 8),
    "block": Scale(FluxConfig(64, 0, 1, 64, 24, 768, 0, False, (16, 24, 24), 1), 256, 16),
}


class LinearForm(nn.Module):
    """The model as trained, behind the inputs and outputs of the shipped graph."""

    def __init__(self, model: NanoFlux, rope: Rope) -> None:
        """Shares the model's weights."""
        super().__init__()
        self.model = model
        self.cos, self.sin = (nn.Parameter(table, requires_grad=False) for table in rope)

    def forward(self, latents: Tensor, text_states: Tensor, step_table: Tensor) -> Tensor:
        """(B, C, 1, S), (B, J, 1, T), (B, D, 1, N) -> velocity (B, C, 1, S)."""
        x_BSC, y_BTJ, rows_BND = (
            value.squeeze(2).transpose(1, 2) for value in (latents, text_states, step_table)
        )
        v_BSC = self.model(x_BSC, y_BTJ, rows_BND, (self.cos, self.sin))
        return v_BSC.transpose(1, 2).unsqueeze(2)


class SpelledNorm(nn.Module):
    """An RMS norm in plain operations, for an exporter that does not know it whole."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        """Shares the norm's weight."""
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Over the last axis."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def spelled(module: nn.Module) -> nn.Module:
    """A copy of `module` whose RMS norms are spelled out."""
    module = copy.deepcopy(module)
    norms = [name for name, part in module.named_modules() if isinstance(part, nn.RMSNorm)]
    for name in norms:
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, SpelledNorm(module.get_submodule(name)))
    return module


@dataclass(frozen=True)
class Case:
    """What everybody runs: both forms over one set of weights, inputs, and a folder for files."""

    shipped: MobileGraph
    linear: MobileGraph
    module: LinearForm
    inputs: Inputs
    folder: Path

    @property
    def example(self) -> tuple[Tensor, ...]:
        """The inputs in the order of the module's arguments."""
        return tuple(torch.from_numpy(value) for value in self.inputs.values())


def make_case(scale: Scale, folder: Path) -> Case:
    """Random weights and inputs."""
    cfg, side = scale.cfg, scale.side
    torch.manual_seed(0)
    model = NanoFlux(cfg).eval().requires_grad_(False)
    ids = np.concatenate((text_ids(scale.text), image_ids(side, side)))
    rope = rope_tables(torch.from_numpy(ids), cfg.axes_dims_rope)
    shapes = {
        "latents": (1, cfg.in_channels, 1, side**2),
        "text_states": (1, cfg.joint_attention_dim, 1, scale.text),
        "step_table": (1, cfg.width, 1, cfg.modulation_rows),
    }
    axes = ("batch", "channels", "one", "length")
    specs = {name: TensorSpec(name, axes, shape, "float32") for name, shape in shapes.items()}
    output = TensorSpec("velocity", axes, shapes["latents"], "float32")
    component = Component("denoiser", tuple(specs.values()), (output,))
    draw = np.random.default_rng(0)
    inputs = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    function = denoiser_function(network(model), side**2, scale.text, rope)
    model.step_table = None  # an input here, and weights that nothing reads are refused
    module = LinearForm(model, rope).eval()
    shipped, linear = MobileGraph("denoiser", {MAIN: function}), one_segment(component, module)
    return Case(shipped, linear, module, inputs, folder)


def litert(graph: MobileGraph, scheme: str, folder: Path, profile: str = "gpu") -> Engine:
    """A form of the denoiser as our exporter saves it, with weights stored as `scheme`."""
    function = graph.functions[MAIN]
    path = folder / f"{function.segments[0].kind}-{scheme}-{profile}.tflite"
    if scheme == "fp32":
        samples = {spec.name: torch.zeros(spec.shape) for spec in function.inputs}
        convert(Whole(function).eval(), samples, ["velocity"], path)
    else:
        target.write(graph, Plan(parse_scheme(scheme), {}, profile), path)
    run = target.load(path, Component(graph.name, function.inputs, function.outputs))
    return lambda inputs: run(inputs)["velocity"]


def eager(case: Case, dtype: torch.dtype) -> Engine:
    """PyTorch as it comes, in one type throughout."""
    module = case.module
    return _torch_engine(copy.deepcopy(module).to(dtype), dtype)


def compiled(case: Case) -> Engine:
    """torch.compile with its defaults; the first call compiles."""
    return _torch_engine(torch.compile(case.module), torch.float32)


def _torch_engine(module: Callable[..., Tensor], dtype: torch.dtype) -> Engine:
    @torch.inference_mode()
    def run(inputs: Inputs) -> np.ndarray:
        tensors = (torch.from_numpy(value).to(dtype) for value in inputs.values())
        return module(*tensors).float().numpy()

    return run


def onnx(case: Case, int8: bool) -> Engine:
    """ONNX Runtime on its CPU provider: float32, or its dynamic int8 with a scale per channel."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    dense, path = case.folder / "dense.onnx", case.folder / "int8.onnx"
    if not dense.exists():
        _export_onnx(case, dense)
    if int8:
        quantize_dynamic(dense, path, per_channel=True, weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        path if int8 else dense, options, providers=["CPUExecutionProvider"]
    )
    return lambda inputs: session.run(["velocity"], dict(inputs))[0]


def _export_onnx(case: Case, path: Path) -> None:
    torch.onnx.export(
        spelled(case.module),
        case.example,
        path,
        input_names=list(case.inputs),
        output_names=["velocity"],
        opset_version=OPSET,
        dynamo=False,  # the other exporter needs a package that is in no extra of ours
    )


def executorch(case: Case, int8: bool) -> Engine:
    """ExecuTorch with everything it can give to XNNPACK: float32, or dynamic int8 per channel."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(torch.get_num_threads())  # its pool counts the cores by itself
    program = torch.export.export(case.module, case.example)
    if int8:
        program = torch.export.export(_quantised(program, case), case.example)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    # The program owns the bytes its methods read, so it has to outlive them; it keeps each method.
    loaded = Runtime.get().load_program(lowered.to_executorch().buffer)

    def run(inputs: Inputs) -> np.ndarray:
        tensors = [torch.from_numpy(value) for value in inputs.values()]
        return loaded.load_method("forward").execute(tensors)[0].numpy()

    return run


def _quantised(program: torch.export.ExportedProgram, case: Case) -> nn.Module:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(
        get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    )
    prepared = prepare_pt2e(program.module(), quantizer)
    prepared(*case.example)
    return convert_pt2e(prepared)


ENGINES: dict[str, Callable[[Case], Engine]] = {
    OURS: lambda case: litert(case.shipped, "int8", case.folder),
    "LiteRT int8, cpu profile": lambda case: litert(case.shipped, "int8", case.folder, "cpu"),
    "LiteRT int4, cpu profile": lambda case: litert(case.shipped, "int4", case.folder, "cpu"),
    "LiteRT fp16": lambda case: litert(case.shipped, "fp16", case.folder),
    "LiteRT fp32": lambda case: litert(case.shipped, "fp32", case.folder),
    "LiteRT int8, linear form": lambda case: litert(case.linear, "int8", case.folder),
    "ONNX Runtime int8": lambda case: onnx(case, int8=True),
    "ONNX Runtime fp32": lambda case: onnx(case, int8=False),
    "ExecuTorch int8": lambda case: executorch(case, int8=True),
    "ExecuTorch fp32": lambda case: executorch(case, int8=False),
    "torch eager fp32": lambda case: eager(case, torch.float32),
    "torch eager bf16": lambda case: eager(case, torch.bfloat16),
    "torch.compile fp32": compiled,
}
