"""From a torch module in mobile form to a float32 .tflite file."""

from __future__ import annotations

import logging
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from nanoflux_export.graph import MobileGraph
from nanoflux_export.targets.litert.model_file import SIGNATURE, check_signature, read_model
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Component

_DTYPES = {"float32": torch.float32, "int32": torch.int32}
_SILENCE = {"LITERT_TORCH_SHOW_PROGRESS": "n", "TF_CPP_MIN_LOG_LEVEL": "1"}


def convert(graph: MobileGraph, out: Path) -> None:
    """Write `graph` to `out` with float32 weights; the file appears whole or not at all.

    Its signature takes and returns tensors under the names, shapes and types of the component.
    The module is put into evaluation mode.

    Raises:
        InputError: the component asks for a type that is neither float32 nor int32, or declares
            outputs that are not what the module returns.
    """
    samples = _samples(graph.component)
    with _quiet(), torch.no_grad():
        import litert_torch

        module = _Named(graph).eval()
        converter = litert_torch.signature(SIGNATURE, module, sample_kwargs=samples)
        # The default way keeps several copies of the weights: five times the time, twice the
        # memory, the same ops.
        model = converter.convert(lightweight_conversion=True)
        with _whole_file(out) as part:
            model.export(str(part))
            check_signature(read_model(part), graph.component)


class _Named(nn.Module):
    """The module with tensors by name: LiteRT takes a signature's names from a dict."""

    def __init__(self, graph: MobileGraph) -> None:
        super().__init__()
        self.module = graph.module
        self.inputs = [spec.name for spec in graph.component.inputs]
        self.outputs = [spec.name for spec in graph.component.outputs]

    def forward(self, **tensors: Tensor) -> dict[str, Tensor]:
        values = self.module(*(tensors[name] for name in self.inputs))
        values = (values,) if isinstance(values, Tensor) else values
        return dict(zip(self.outputs, values, strict=True))


def _samples(component: Component) -> dict[str, Tensor]:
    for spec in (*component.inputs, *component.outputs):
        if spec.dtype not in _DTYPES:
            raise InputError(
                f"{component.name}.{spec.name} is {spec.dtype}; "
                f"LiteRT graphs take and return {', '.join(_DTYPES)}"
            )
    return {
        spec.name: torch.zeros(spec.shape, dtype=_DTYPES[spec.dtype]) for spec in component.inputs
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress on stdout and notes about the converter's own parts; errors pass."""
    level = logging.root.manager.disable
    added = {name: value for name, value in _SILENCE.items() if name not in os.environ}
    logging.disable(max(level, logging.WARNING))
    os.environ.update(added)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        for name in added:
            del os.environ[name]


@contextmanager
def _whole_file(out: Path) -> Iterator[Path]:
    """A path beside `out` that takes its place when the block ends well.

    The converter writes gigabytes by itself, so the bytes never pass through Python.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
