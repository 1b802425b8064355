"""Two small graphs in mobile form, converted once for all tests of the LiteRT target.

Shapes: D channels, S tokens, T text ids, H heads, K = D / H; activations are (1, channels, 1, S).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.graph import Runner, one_segment
from nanoflux_export.targets.litert.run import load
from nanoflux_export.targets.litert.write import write
from nanoflux_mobile.spec import Component, TensorSpec, parse_scheme

pytest.importorskip("litert_torch")

D, S, T, H, VOCABULARY = 32, 24, 8, 4, 50


class Block(nn.Module):
    """One transformer block over image tokens and the embeddings of text ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, D)
        self.qkv = nn.Conv2d(D, 3 * D, 1)
        self.up, self.down = nn.Conv2d(D, 4 * D, 1), nn.Conv2d(4 * D, D, 1)

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        text = self.embedding(ids).transpose(1, 2).unsqueeze(2)
        h = torch.cat((text, x), 3)
        h = h + self.attend(layer_norm(h))
        h = h + self.down(F.gelu(self.up(layer_norm(h)), approximate="tanh"))
        return h[:, :, :, T:], h[:, :, :, :T]

    def attend(self, h: Tensor) -> Tensor:
        q, k, v = (part.reshape(1, H, D // H, T + S) for part in self.qkv(h).chunk(3, 1))
        scores_OHQK = (q.transpose(2, 3) * (D // H) ** -0.5) @ k
        return (v @ scores_OHQK.softmax(3).transpose(2, 3)).reshape(1, D, 1, T + S)


def layer_norm(x: Tensor) -> Tensor:
    """Over channels, without weights."""
    centred = x - x.mean(1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-6)


class Decoder(nn.Module):
    """Latents to twice their size, by nearest neighbours and two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(F.silu(F.interpolate(self.first(z), scale_factor=2.0, mode="nearest")))


def _spec(name: str, *shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, tuple(f"axis {i}" for i in range(len(shape))), shape, dtype)  # type: ignore[arg-type]


BLOCK = Component(
    "denoiser",
    (_spec("latents", 1, D, 1, S), _spec("token_ids", 1, T, dtype="int32")),
    (_spec("velocity", 1, D, 1, S), _spec("text_states", 1, D, 1, T)),
)
DECODER = Component("decoder", (_spec("latents", 1, 4, 8, 8),), (_spec("image", 1, 3, 16, 16),))


@dataclass(frozen=True)
class Saved:
    """A module, its files by scheme, and inputs to run them with."""

    component: Component
    module: nn.Module
    files: Mapping[str, Path]
    inputs: Mapping[str, np.ndarray]

    def runner(self, scheme: str) -> Runner:
        return load(self.files[scheme], self.component)

    def expected(self, rounded: Callable[[Tensor], Tensor] | None = None) -> dict[str, np.ndarray]:
        """What torch says in float32; weights of convolutions and embeddings through `rounded`."""
        module = copy.deepcopy(self.module)
        with torch.no_grad():
            for part in module.modules():
                if rounded and isinstance(part, nn.Conv2d | nn.Embedding):
                    part.weight.copy_(rounded(part.weight))
            values = module(*(torch.from_numpy(value) for value in self.inputs.values()))
        values = (values,) if isinstance(values, Tensor) else values
        names = [spec.name for spec in self.component.outputs]
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}


def _saved(
    component: Component, module: nn.Module, folder: Path, inputs: Mapping[str, np.ndarray]
) -> Saved:
    files = {scheme: folder / f"{scheme}.tflite" for scheme in ("fp16", "int8")}
    write(one_segment(component, module), parse_scheme("fp16"), files["fp16"])
    # Decoders are not stored so, but this one has the kernels that no other graph has.
    anything = dataclasses.replace(component, name="denoiser")
    write(one_segment(anything, module), parse_scheme("int8"), files["int8"])
    return Saved(component, module, files, inputs)


def _normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="session")
def block(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The transformer block, saved as fp16 and int8."""
    torch.manual_seed(0)
    inputs = {
        "latents": _normal(1, D, 1, S, seed=1),
        "token_ids": np.array([[0, 3, 49, 7, 7, 1, 2, 0]], np.int32),
    }
    return _saved(BLOCK, Block(), tmp_path_factory.mktemp("block"), inputs)


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The decoder, saved as fp16 and int8."""
    torch.manual_seed(1)
    inputs = {"latents": _normal(1, 4, 8, 8, seed=2)}
    return _saved(DECODER, Decoder(), tmp_path_factory.mktemp("decoder"), inputs)
