"""Progressive Token Downsampling: D and U come into a trained network, near its end first.

Put in at their final place at once they are unstable (the paper's own finding), so they start
around the last single block and D moves back a block at a time while U stays. D starts as the mean
of four tokens and U as bilinear interpolation, both residual blocks as the identity, so that a new
low step is a blurred one and not noise, or with a skip a full one whose late blocks saw a blurred
picture; how the paper starts them is not published.

Shapes: D width, T steps, N modulation rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models._blocks import SeparableConv
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.weights import Network, Stored, Weights

RESAMPLERS = ("downsampler.", "upsampler.")


def downsampled(
    network: Network[NanoFlux],
    start: int,
    share: float = 0.5,
    seed: int = 0,
    separable: bool = False,
    skip: bool = False,
) -> Network[NanoFlux]:
    """The network whose low steps run the single blocks from `start` to the last at half the side.

    Resamplers that are there keep their weights, as when D moves back; others are made new.

    Args:
        network: with or without resamplers, AdaLN or Static-LN.
        start: the first low block, 1 in the paper's final student.
        share: how much of the sampling, from its noisy end, takes low steps.
        seed: of the new first convolutions.
        separable: whether new resamplers have separable convolutions; others stay as they are.
        skip: whether image tokens also go round new resamplers; others stay as they are.

    Raises:
        InputError: a start beyond the last block.
    """
    old = network.skeleton.cfg
    if not 0 <= start < old.num_single_layers:
        raise InputError(
            f"token downsampling is to start at single block {start}; "
            f"this network has blocks 0 to {old.num_single_layers - 1}"
        )
    cfg = dataclasses.replace(
        old,
        low_resolution_blocks=(start, old.num_single_layers),
        low_resolution_share=share,
        separable_resamplers=old.separable_resamplers if old.downsamples else separable,
        low_resolution_skip=old.low_resolution_skip if old.downsamples else skip,
    )
    with torch.device("meta"):
        skeleton = NanoFlux(cfg).eval().requires_grad_(False)
    weights = dict(network.weights)
    if not old.downsamples:
        weights |= _new(network, skeleton, seed)
    return Network(skeleton, {name: weights[name] for name in skeleton.state_dict()})


def _new(network: Network[NanoFlux], skeleton: NanoFlux, seed: int) -> Weights:
    """The resamplers' first weights, and a step table with room for their rows; made when read."""
    shapes = skeleton.state_dict()
    built = cache(lambda: _resamplers(skeleton.cfg, seed))

    def made(name: str) -> Callable[[], Tensor]:
        return lambda: built()[name]

    reads = {name: made(name) for name in shapes if name.startswith(RESAMPLERS)}
    if "step_table" in shapes:
        reads["step_table"] = partial(_grown, network.weights["step_table"])
    return {
        name: Stored(tuple(shapes[name].shape), "float32", 4 * shapes[name].numel(), read)
        for name, read in reads.items()
    }


def _grown(table: Stored) -> Tensor:
    table_TND = table.read().float()
    zeros = table_TND.new_zeros(len(table_TND), 6, table_TND.shape[2])
    return torch.cat((table_TND[:, :-2], zeros, table_TND[:, -2:]), 1)


@torch.no_grad()
def _resamplers(cfg: FluxConfig, seed: int) -> dict[str, Tensor]:
    small = dataclasses.replace(
        cfg, num_layers=0, num_single_layers=1, low_resolution_blocks=(0, 1)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NanoFlux(small)
    down, up = model.downsampler, model.upsampler
    blocks = (down.resnet, up.resnet_low, up.resnet_full)
    # Of a separable convolution only the second half is silent: two zeros would never learn.
    silent = [getattr(block.conv2, "pointwise", block.conv2) for block in blocks]
    silent += [] if cfg.static_steps else [block.norm.linear for block in blocks]
    for parameter in (p for layer in silent for p in layer.parameters()):
        parameter.zero_()
    # Of a 3x3 kernel with padding 1 and stride 2, the last two rows and columns cover the cell.
    mean, middle = torch.zeros(3, 3), torch.zeros(3, 3)
    mean[1:, 1:], middle[1, 1] = 0.25, 1.0
    _set_kernel(down.conv, mean)
    _set_kernel(up.conv, middle)
    state = model.state_dict()
    return {name: state[name] for name in state if name.startswith(RESAMPLERS)}


def _set_kernel(conv: nn.Conv2d | SeparableConv, kernel: Tensor) -> None:
    """Every channel through one 3x3 kernel, and none into another."""
    last = conv if isinstance(conv, nn.Conv2d) else conv.pointwise
    eye = torch.eye(len(last.weight))[:, :, None, None]
    if isinstance(conv, nn.Conv2d):
        conv.weight.copy_(eye * kernel)
    else:
        conv.depthwise.weight.copy_(kernel.expand_as(conv.depthwise.weight))
        conv.pointwise.weight.copy_(eye)
    assert last.bias is not None
    last.bias.zero_()
