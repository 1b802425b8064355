"""How long it takes, and how much memory, to write a denoiser of any size; ours or the stock way.

    python large.py CHECKPOINT --target coreml --scheme palette4-g16 [--route ours|stock]

Prints one line of JSON: seconds, peak GiB of this process, bytes on disk, and the mean squared
error of the stored weights relative to their mean square. The stock way is what the tools'
documentation says: coremltools converts the whole module, then clusters its weights; litert-torch
converts it with default settings, then ai-edge-quantizer makes the weights int8.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nanoflux_export.bundle import target_named
from nanoflux_export.chunking import cut
from nanoflux_export.compression.rounding import output_axes
from nanoflux_export.graph import Function, MobileGraph, Segment
from nanoflux_export.torch_run import Whole
from nanoflux_mobile import plugins
from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.spec import Scheme, parse_scheme

Reader = Callable[[str], np.ndarray]


def denoiser(path: Path) -> MobileGraph:
    """The denoiser of a checkpoint of any family."""
    checkpoint = open_checkpoint(path)
    family, mobile = (
        plugins.load(package, checkpoint.family)
        for package in ("nanoflux_mobile.families", "nanoflux_export.families")
    )
    graph: MobileGraph = mobile.denoiser(family.load(checkpoint))
    return graph


def ours(graph: MobileGraph, target: Any, scheme: Scheme, folder: Path) -> list[Path]:
    """Segments linked into chunks."""
    files = []
    for i, chunk in enumerate(cut(graph, scheme, target.MAX_BYTES, target.WIRES)):
        files.append(folder / f"{i}{target.SUFFIX}")
        target.write(chunk, scheme, files[-1])
    return files


def stock(graph: MobileGraph, target: Any, scheme: Scheme, folder: Path) -> list[Path]:
    """The documented way of each runtime's own tools, on the function of full resolution."""
    function = list(graph.functions.values())[-1]
    module = Whole(function).eval()
    examples = tuple(torch.zeros(spec.shape) for spec in function.inputs)
    path = folder / f"stock{target.SUFFIX}"
    {"coreml": _stock_coreml, "litert": _stock_litert}[target.NAME](module, examples, scheme, path)
    return [path]


def _stock_coreml(module: nn.Module, examples: Any, scheme: Scheme, path: Path) -> None:
    import coremltools as ct

    optimize = ct.optimize.coreml
    with torch.no_grad():
        traced = torch.jit.trace(module, examples, check_trace=False)
    model = ct.convert(
        traced,
        inputs=[ct.TensorType(shape=tuple(x.shape)) for x in examples],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    if scheme.kind == "palette":
        how = optimize.OpPalettizerConfig(
            mode="kmeans",
            nbits=scheme.bits,
            granularity="per_grouped_channel" if scheme.group else "per_tensor",
            group_size=scheme.group or 32,
        )
        config = optimize.OptimizationConfig(global_config=how)
        model = optimize.palettize_weights(model, config)
    model.save(str(path))


def _stock_litert(module: nn.Module, examples: Any, scheme: Scheme, path: Path) -> None:
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    from nanoflux_export.targets.litert.quantizer_fix import big_convolutions_quantise

    dense = path.with_name("dense.tflite")
    litert_torch.convert(module, examples).export(str(dense))
    if str(scheme) != "int8":
        raise SystemExit(f"the stock way to {scheme} is not measured here, only int8")
    made = quantizer.Quantizer(str(dense), recipe.dynamic_wi8_afp32())
    with big_convolutions_quantise():  # without this mend the tool refuses these weights
        made.quantize().export_model(str(path))


def stock_reader(path: Path, function: Function) -> Reader:
    """A reader of what coremltools saved of `Whole`, by our names of the weights."""
    from nanoflux_export.targets.coreml.package import open_package
    from nanoflux_export.targets.coreml.program import read_function

    literals = read_function(open_package(path), "main").literals
    places = {segment.weights: i for i, segment in enumerate(function.segments)}

    def read(name: str) -> np.ndarray:
        weights, _, parameter = name.partition("/")
        stem = f"stages_{places[weights]}_{parameter.replace('.', '_')}_to_fp16"
        found = literals.get(f"{stem}_palettized") or literals[stem]
        return found.read().astype(np.float32)

    return read


def relative_error(graph: MobileGraph, readers: list[Reader]) -> float:
    """Mean squared error of every compressible weight over its mean square."""
    error, power = 0.0, 0.0
    for segment in _segments(graph):
        module = segment.build()
        axes = output_axes(module)
        for name, tensor in module.named_parameters():
            if id(tensor) in axes:
                source = tensor.numpy()
                stored = _first(readers, f"{segment.weights}/{name}").reshape(source.shape)
                error += float(np.square(stored - source, dtype=np.float64).sum())
                power += float(np.square(source, dtype=np.float64).sum())
    return error / power


def _segments(graph: MobileGraph) -> Iterator[Segment]:
    found = {s.weights: s for f in graph.functions.values() for s in f.segments}
    yield from found.values()


def _first(readers: list[Reader], name: str) -> np.ndarray:
    for read in readers:
        try:
            return read(name)
        except KeyError:
            continue
    raise SystemExit(f"no file holds {name}")


def main() -> None:
    """Run one route once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--target", choices=("coreml", "litert", "onnx"), required=True)
    parser.add_argument("--scheme", required=True)
    parser.add_argument("--route", choices=("ours", "stock"), default="ours")
    parser.add_argument("--keep", type=Path, help="write the files here and keep them")
    told = parser.parse_args()
    target, scheme = target_named(told.target), parse_scheme(told.scheme)
    graph = denoiser(told.checkpoint)
    with tempfile.TemporaryDirectory(dir=told.checkpoint.parent) as folder:
        begun = time.perf_counter()
        route = ours if told.route == "ours" else stock
        files = route(graph, target, scheme, told.keep or Path(folder))
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        parts = [p for f in files for p in ([f] if f.is_file() else f.rglob("*")) if p.is_file()]
        error = None
        if told.route == "ours":
            error = relative_error(graph, [target.stored(file) for file in files])
        elif target.NAME == "coreml":
            function = list(graph.functions.values())[-1]
            error = relative_error(graph, [stock_reader(files[0], function)])
        line = {
            "parameters": sum(s.parameters for s in _segments(graph)),
            "target": told.target,
            "scheme": told.scheme,
            "route": told.route,
            "seconds": round(seconds, 1),
            "peak_gib": round(peak, 2),
            "files": len(files),
            "bytes": sum(p.stat().st_size for p in parts),
            "relative_mse": error,
        }
    json.dump(line, sys.stdout)
    print()


if __name__ == "__main__":
    main()
