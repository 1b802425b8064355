"""A teacher's answers, kept on disk: the dear half of every distillation step, paid for once.

Batch i is the same for every stage and every baseline, so what the teacher said to it can be read
back. Tensors are stored in half precision and are given in it the first time, too: whether an
answer was read or made must not change a run by a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nanoflux_mobile.storage import write_file

Tensors = Mapping[str, Tensor]
NAMES = ("x_BSC", "text_BTJ", "pooled_BP", "velocity")
"""What is recorded of a batch."""
_MOST = torch.finfo(torch.float16).max


def as_kept(tensor: Tensor) -> Tensor:
    """A tensor as it is stored: float16, or float32 where a value is too large for it.

    Text states of large T5 encoders have such channels; they would come back as infinities.
    """
    fits = not tensor.numel() or not tensor.abs().max() > _MOST
    return tensor.to(torch.float16 if fits else torch.float32)


@dataclass(frozen=True)
class Answers:
    """Up to `count` recorded batches in a folder; batch i of a run is i modulo count.

    Any number of processes may share the folder: answers appear whole, and all make the same.
    """

    folder: Path
    count: int
    names: tuple[str, ...] = NAMES

    def index(self, step: int) -> int:
        """Which of the recorded batches a step uses."""
        return step % self.count

    def get(self, index: int, make: Callable[[], Tensors]) -> Tensors:
        """The tensors of a batch, float32 with the stored values.

        They are made where they are missing, damaged, or of other names than `names`.
        """
        path = self.folder / f"{index:06}.safetensors"
        stored = _read(path)
        if stored.keys() != set(self.names):
            stored = {k: as_kept(v).cpu().contiguous() for k, v in make().items()}
            write_file(path, save(stored))
        return {name: tensor.float() for name, tensor in stored.items()}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError):
        return {}
