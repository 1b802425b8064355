"""A small graph of two functions over shared weights, written once per scheme for all tests.

Shapes: D channels, T text ids, S image tokens (L of them in the function that sees fewer), H heads;
activations are (1, D, 1, length).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.compression.rounding import rounded
from nanoflux_export.graph import Function, MobileGraph, Segment
from nanoflux_mobile.spec import Component, Scheme, TensorSpec, parse_scheme

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

D, T, S, L, H, VOCABULARY = 16, 6, 12, 4, 2, 20
SCHEMES = ("fp16", "int8")


class Embed(nn.Module):
    """Ids and latents to one sequence each; the table of ids is also a plain weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, D)
        self.same = self.table
        self.first = nn.Conv2d(4, D, 1)

    def forward(self, latents: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        text = self.table(ids) + self.same(ids)
        return self.first(latents), text.transpose(1, 2).unsqueeze(2)


class Block(nn.Module):
    """Attention to text, a linear layer over the last axis, and tables of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Conv2d(D, D, 1), nn.Conv2d(D, 2 * D, 1, bias=False)
        self.up, self.down = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        self.gain = nn.Parameter(1 + 0.1 * torch.randn(1, D, 1, 1))
        self.register_buffer("shift", torch.randn(1, D, 1, 1), persistent=False)
        self.register_buffer("order", torch.randperm(D))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.gain + self.shift
        q = self.q(h).reshape(1, H, D // H, -1)
        k, v = (part.reshape(1, H, D // H, -1) for part in self.kv(y).split(D, 1))
        scores = (q.transpose(2, 3) @ k).softmax(3)
        x = x + (v @ scores.transpose(2, 3)).reshape(x.shape)[:, self.order]
        rows = F.gelu(self.up(x.squeeze(2).transpose(1, 2)), approximate="tanh")
        return x + self.down(rows).transpose(1, 2).unsqueeze(2)


class Head(nn.Module):
    """Tokens twice as many, by a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.ConvTranspose2d(D, 4, (1, 2), stride=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.spread(x)


def spec(name: str, *shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, tuple(f"axis {i}" for i in range(len(shape))), shape, dtype)  # type: ignore[arg-type]


def segments(
    chain: tuple[str, ...], modules: Mapping[str, nn.Module], built: Counter[str]
) -> tuple[Segment, ...]:
    """An Embed, the blocks named, and a Head."""

    def build(name: str) -> Callable[[], nn.Module]:
        def counted() -> nn.Module:
            built[name] += 1
            return modules[name]

        return counted

    wires = [f"x_{i}" for i in range(len(chain) + 1)]
    blocks = (
        Segment("block", name, build(name), (wires[i], "text"), (wires[i + 1],))
        for i, name in enumerate(chain)
    )
    return (
        Segment("embed", "embed", build("embed"), ("latents", "ids"), (wires[0], "text")),
        *blocks,
        Segment("head", "head", build("head"), (wires[-1],), ("velocity",)),
    )


def function(length: int, parts: tuple[Segment, ...]) -> Function:
    wires = {name: (1, D, 1, length) for part in parts for name in part.outputs}
    return Function(
        (spec("latents", 1, 4, 1, length), spec("ids", 1, T, dtype="int32")),
        (spec("velocity", 1, 4, 1, 2 * length),),
        parts,
        {name: shape for name, shape in wires.items() if name != "velocity"}
        | {"text": (1, D, 1, T)},
    )


@dataclass(frozen=True)
class Small:
    """The graph, its modules by the name of their weights, and how often each was built."""

    modules: Mapping[str, nn.Module]
    built: Counter[str] = field(default_factory=Counter)

    @property
    def graph(self) -> MobileGraph:
        full = segments(("blocks.0", "blocks.1", "blocks.2"), self.modules, self.built)
        low = segments(("blocks.0", "blocks.2"), self.modules, self.built)
        functions = {"step_full": function(S, full), "step_low": function(L, low)}
        return MobileGraph("denoiser", functions)

    def component(self, name: str) -> Component:
        made = self.graph.functions[name]
        return Component("denoiser", made.inputs, made.outputs)

    def inputs(self, name: str) -> dict[str, np.ndarray]:
        rng, length = np.random.default_rng(0), {"step_full": S, "step_low": L}[name]
        return {
            "latents": rng.standard_normal((1, 4, 1, length)).astype(np.float32),
            "ids": rng.integers(0, VOCABULARY, (1, T)).astype(np.int32),
        }

    def expected(self, name: str, scheme: Scheme) -> np.ndarray:
        """What torch computes, segment by segment, on the weights that the scheme stores."""
        values = {key: torch.from_numpy(value) for key, value in self.inputs(name).items()}
        with torch.no_grad():
            for part in self.graph.functions[name].segments:
                made = self.twin(part.weights, scheme)(*(values[key] for key in part.inputs))
                made = (made,) if isinstance(made, Tensor) else made
                values |= dict(zip(part.outputs, made, strict=True))
        return values["velocity"].numpy()

    def twin(self, weights: str, scheme: Scheme) -> nn.Module:
        return rounded(self.modules[weights], scheme, half_constants=False)


def make_small() -> Small:
    torch.manual_seed(0)
    blocks = {f"blocks.{i}": Block() for i in range(3)}
    return Small({"embed": Embed(), **blocks, "head": Head()})


@pytest.fixture(scope="session")
def small() -> Small:
    """The graph; tests must not change it."""
    return make_small()


@pytest.fixture(scope="session")
def saved(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Its folder by scheme; tests copy one before they change it."""
    from nanoflux_export.targets.onnx import target

    root = tmp_path_factory.mktemp("onnx")
    folders = {scheme: root / scheme / "denoiser.onnx" for scheme in SCHEMES}
    for scheme, out in folders.items():
        target.write(small.graph, parse_scheme(scheme), out)
    return folders
