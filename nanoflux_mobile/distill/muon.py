"""Muon (Jordan et al., 2024) for kernels and matrices alike, in float32.

torch.optim.Muon takes matrices only and orthogonalises in bfloat16, which a CPU without bfloat16
arithmetic runs several times slower than a whole training step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic Newton-Schulz: steep at zero, every singular value ends within about [0.7, 1.2]."""


def orthogonalise(updates_NRC: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: (N, R, C) in and out."""
    a, b, c = COEFFICIENTS
    wide = updates_NRC.shape[1] <= updates_NRC.shape[2]
    x = updates_NRC if wide else updates_NRC.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.transpose(1, 2)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; sized so that AdamW's learning rates and decay carry over."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; equal shapes go together."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[(len(p), p[0].numel())].append(p)
            for shape, params in alike.items():
                directions = torch.stack([self._direction(p, group["momentum"]) for p in params])
                scale = 0.2 * max(shape) ** 0.5 * group["lr"]
                for p, update in zip(params, orthogonalise(directions), strict=True):
                    p.mul_(1.0 - group["lr"] * group["weight_decay"])
                    p.add_(update.view_as(p), alpha=-scale)

    def _direction(self, p: Tensor, momentum: float) -> Tensor:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        grad = p.grad if p.grad is not None else torch.zeros_like(p)
        state["momentum"].lerp_(grad, 1.0 - momentum)
        return grad.lerp(state["momentum"], momentum).reshape(len(p), -1)
