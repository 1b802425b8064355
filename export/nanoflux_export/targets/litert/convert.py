"""From a torch module in mobile form to a float32 .tflite file."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from nanoflux_export.graph import MAIN

_SILENCE = {"LITERT_TORCH_SHOW_PROGRESS": "n", "TF_CPP_MIN_LOG_LEVEL": "1"}


def convert(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], out: Path
) -> None:
    """Write a module to `out` with its weights as they are, under the signature `main`.

    The signature takes tensors named, shaped and typed as `inputs`, which the module takes in that
    order, and returns what the module does under the names `outputs`. The module is put into
    evaluation mode.
    """
    with _quiet(), torch.no_grad():
        import litert_torch

        named = _Named(module, tuple(inputs), tuple(outputs)).eval()
        converter = litert_torch.signature(MAIN, named, sample_kwargs=dict(inputs))
        # The default way keeps several copies of the weights: five times the time, twice the
        # memory, the same ops.
        converter.convert(lightweight_conversion=True).export(str(out))


class _Named(nn.Module):
    """The module with tensors by name: LiteRT takes a signature's names from a dict."""

    def __init__(
        self, module: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.module, self.inputs, self.outputs = module, inputs, outputs

    def forward(self, **tensors: Tensor) -> dict[str, Tensor]:
        values = self.module(*(tensors[name] for name in self.inputs))
        values = (values,) if isinstance(values, Tensor) else values
        return dict(zip(self.outputs, values, strict=True))


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
