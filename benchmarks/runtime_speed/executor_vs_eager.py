"""How long the Core ML executor takes against PyTorch eager on the same graph, in one run.

    python benchmarks/runtime_speed/executor_vs_eager.py

Each graph is converted, saved, loaded and run in both engines by turns, on one thread; a line gives
each one's median over the turns and their ratio. On a busy machine believe the CPU columns, which
count only this process. Exit code 1 when a ratio is above 2.

Shapes: B batch (1), S tokens, D width, H heads, E width of a head.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import coremltools as ct
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_export.targets.coreml.executor import load

S, D, H = 320, 384, 6
E = D // H
TURNS = 15
LARGEST_RATIO = 2.0


class ChannelsBlock(nn.Module):
    """A transformer block as phones like it: (B, D, 1, S), 1x1 convolutions, rank 4 attention."""

    def __init__(self) -> None:
        """Random weights."""
        super().__init__()
        self.qkv, self.out = nn.Conv2d(D, 3 * D, 1), nn.Conv2d(D, D, 1)
        self.up, self.down = nn.Conv2d(D, 4 * D, 1), nn.Conv2d(4 * D, D, 1)

    def forward(self, x_BD1S: Tensor) -> Tensor:
        """Attention and MLP, each on the normalised input and added to it."""
        q, k, v = (part.reshape(1, H, E, S) for part in self.qkv(_norm(x_BD1S)).chunk(3, 1))
        weights_BHSS = (q.transpose(2, 3) @ k * E**-0.5).softmax(-1)
        y_BHES = v @ weights_BHSS.transpose(2, 3)
        x_BD1S = x_BD1S + self.out(y_BHES.reshape(1, D, 1, S))
        return x_BD1S + self.down(F.gelu(self.up(_norm(x_BD1S)), approximate="tanh"))


def _norm(x_BD1S: Tensor) -> Tensor:
    centred = x_BD1S - x_BD1S.mean(1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-5)


def _decoder() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(16, 64, 3, padding=1), nn.SiLU()),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.SiLU(), nn.Upsample(scale_factor=2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.SiLU(), nn.Upsample(scale_factor=2)),
        *(nn.Conv2d(64, 48, 3, padding=1), nn.PixelShuffle(4)),
    )


GRAPHS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "4 blocks, 320 tokens of 384": (
        lambda: nn.Sequential(*(ChannelsBlock() for _ in range(4))),
        (1, D, 1, S),
    ),
    "decoder, 24x24 to 384x384": (_decoder, (1, 16, 24, 24)),
}


def main() -> int:
    """Print one line a graph; 1 when the executor is slower than it should be."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'graph':30}{'eager ms':>10}{'executor':>10}{'ratio':>7}{'cpu ratio':>11}")
    ratios = [_compare(name, build().eval(), shape) for name, (build, shape) in GRAPHS.items()]
    return int(max(ratios) > LARGEST_RATIO)


def _compare(name: str, module: nn.Module, shape: tuple[int, ...]) -> float:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tensor = torch.from_numpy(x)
    with tempfile.TemporaryDirectory() as folder:
        run = load(_export(module, tensor, Path(folder) / "graph.mlpackage"))
        with torch.inference_mode():
            calls = (lambda: module(tensor), lambda: run(x=x))
            for call in (*calls, *calls):  # the first calls decode weights and fill caches
                call()
            times = [[_clocks(call) for call in calls] for _ in range(TURNS)]
    eager, ours, eager_cpu, ours_cpu = (
        statistics.median(turn[engine][clock] for turn in times)
        for clock in range(2)
        for engine in range(2)
    )
    cpu_ratio = ours_cpu / eager_cpu
    print(f"{name:30}{eager:10.1f}{ours:10.1f}{ours / eager:7.2f}{cpu_ratio:11.2f}")
    return cpu_ratio


def _clocks(call: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds on the wall and of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def _export(module: nn.Module, example: Tensor, path: Path) -> Path:
    ct.convert(
        torch.jit.trace(module, example),
        inputs=[ct.TensorType("x", example.shape)],
        outputs=[ct.TensorType("y", dtype=np.float32)],
        minimum_deployment_target=ct.target.iOS18,
    ).save(str(path))
    return path


if __name__ == "__main__":
    raise SystemExit(main())
