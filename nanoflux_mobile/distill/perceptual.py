"""How alike two pictures look: distances between features of a network, the way of LPIPS.

Features are brought to unit length over the channels of each place, subtracted and squared, every
channel weighed; that is summed over channels and maps and averaged over places (Zhang et al.,
2018). Two networks give features:

LPIPS itself, VGG16 with its learned weights of channels, where a file of them is given. Nothing is
downloaded, and the file is safetensors, so nothing is unpickled. Its keys are those of torchvision
and lpips: `features.N.weight` and `.bias` (or `net.sliceK.N.*`) for the 13 convolutions,
`lin0.model.1.weight` to `lin4.model.1.weight`, (1, C, 1, 1) each, for the channels. So
`safetensors.torch.save_model(lpips.LPIPS(net="vgg"), "lpips.safetensors")` writes one.

Otherwise a small one trained here, on the pictures at hand, to fill squares that were taken out of
them (Pathak et al., 2016). It needs no labels, so scenes and folders of pictures are one case, and
unlike contrastive training it teaches no network to overlook colour. Its channels weigh alike.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from nanoflux_mobile.checkpoint import fitted
from nanoflux_mobile.distill.learning import TrainConfig
from nanoflux_mobile.distill.lessons import STRIDE
from nanoflux_mobile.distill.trainer import Lesson, train
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.weight_files import KeyMap, read_weights
from nanoflux_mobile.weights import Network

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG16's convolutions; LPIPS looks at the last map of each group."""
LPIPS_KEYS = KeyMap(
    prefixes=(
        *((f"net.slice{k}.", "features.") for k in range(1, 6)),
        *((f"lin{k}.model.1.", f"lins.{k}.") for k in range(5)),
    )
)
MEAN, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""What LPIPS subtracts from red, green and blue in [-1, 1], and what it divides them by."""
EPS = 1e-8
"""Added to a squared length, so that features that are all zero keep a gradient."""
HOLE, TAKEN = 8, 0.25
"""Pixels along the side of a hole, and the share of a picture that holes take."""


@dataclass(frozen=True)
class Perceptual:
    """A distance of pictures (B, 3, H, W) in [-1, 1]; `theirs` gets no gradient.

    features: maps (B, C, h, w), fine to coarse. weights: for each map what a channel counts, (C,).
    """

    features: Callable[[Tensor], Sequence[Tensor]]
    weights: Sequence[Tensor]

    def __call__(self, ours_BCHW: Tensor, theirs_BCHW: Tensor) -> Tensor:
        """The mean distance of a batch, a scalar, 0 for equal pictures."""
        with torch.no_grad():
            wanted = [_unit(found) for found in self.features(theirs_BCHW)]
        pairs = zip(self.features(ours_BCHW), wanted, self.weights, strict=True)
        gaps = [
            torch.einsum("bchw,c->bhw", (_unit(a) - b).square(), weight).mean()
            for a, b, weight in pairs
        ]
        return torch.stack(gaps).sum()


def _unit(map_BCHW: Tensor) -> Tensor:
    map_BCHW = map_BCHW.float()
    return map_BCHW * (map_BCHW.square().sum(1, keepdim=True) + EPS).rsqrt()


class Lpips(nn.Module):
    """VGG16 up to its last convolution, and a weight for each channel of five of its maps."""

    def __init__(self, widths: Sequence[Sequence[int]] = VGG16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.ends: list[int] = []
        cin = 3
        for group in widths:
            layers += [nn.MaxPool2d(2)] if layers else []
            for cout in group:
                layers += [nn.Conv2d(cin, cout, 3, padding=1), nn.ReLU()]
                cin = cout
            self.ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.lins = nn.ModuleList(nn.Conv2d(group[-1], 1, 1, bias=False) for group in widths)

    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """The maps that LPIPS compares."""
        mean, spread = (pixels_BCHW.new_tensor(v)[:, None, None] for v in (MEAN, SPREAD))
        x, found = (pixels_BCHW - mean) / spread, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.ends:
                found.append(x)
        return found


def open_lpips(path: Path, widths: Sequence[Sequence[int]] = VGG16) -> Network[Lpips]:
    """LPIPS out of a file, of which no weight is read yet; keys beyond its own are passed over.

    Raises:
        InputError: no such file, not safetensors, or not VGG16's and LPIPS' weights.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        raise InputError(
            f"{path} is no safetensors file; give one with the weights of VGG16 and LPIPS, or "
            'lpips = "" for features that are trained here'
        )
    stored = read_weights(path, LPIPS_KEYS)
    return fitted(lambda: Lpips(widths), stored, path, complete=False)


def lpips(found: Network[Lpips], device: str) -> Perceptual:
    """LPIPS as a distance."""
    module = found.whole().to(device)
    lins = [module.get_parameter(f"lins.{k}.weight") for k in range(len(module.lins))]
    return Perceptual(module, [weight.flatten() for weight in lins])


class Filler(nn.Module):
    """Strided convolutions that fill holes; their maps at full to eighth size are features.

    They are `blocks`, which the trainer updates by Muon.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 48, 64)) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Conv2d(cin, cout, 3, stride=2 if i else 1, padding=1)
            for i, (cin, cout) in enumerate(pairwise((3, *widths)))
        )
        for block in self.blocks:
            nn.init.kaiming_normal_(block.weight)  # type: ignore[arg-type]
        self.widths, self.side = widths, 2 ** (len(widths) - 1)
        self.fill = nn.Conv2d(widths[-1], 3 * self.side**2, 3, padding=1)

    def features(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """A map per block."""
        found, x = [], pixels_BCHW
        for block in self.blocks:
            x = F.silu(block(x))
            found.append(x)
        return found

    def forward(self, holed_BCHW: Tensor) -> Tensor:
        """A picture with holes to a whole one, (B, 3, H, W) both."""
        whole = F.pixel_shuffle(self.fill(self.features(holed_BCHW)[-1]), self.side)
        return whole[..., : holed_BCHW.shape[2], : holed_BCHW.shape[3]]


def holed(pixels_BCHW: Tensor, rng: torch.Generator) -> Tensor:
    """The pictures with a quarter of their squares grey."""
    batch, _, height, width = pixels_BCHW.shape
    cells = -(-height // HOLE), -(-width // HOLE)
    kept = (torch.rand((batch, 1, *cells), generator=rng) >= TAKEN).float().to(pixels_BCHW.device)
    kept = kept.repeat_interleave(HOLE, 2).repeat_interleave(HOLE, 3)
    return pixels_BCHW * kept[..., :height, :width]


def trained_here(
    lessons: Dataset[Any],
    pixels: Callable[[Lesson], Tensor],
    config: TrainConfig,
    seed: int,
    out: Path,
    identity: Mapping[str, Any],
    on_step: Callable[[int], None] = lambda step: None,
) -> Perceptual:
    """Features of a network that has learned to fill holes; resumes from the folder `out`.

    Args:
        lessons: `lessons[step]` is the batch of a step.
        pixels: a batch to its pictures in [-1, 1].
        config: how long and how fast.
        seed: of weights and holes.
        out: the run's folder.
        identity: what the run is of, beside `config`.
        on_step: called with the number of finished steps.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Filler()

    def loss_of(lesson: Lesson, step: int) -> tuple[Tensor, dict[str, float]]:
        shown_BCHW = pixels(lesson).to(config.device)
        rng = torch.Generator().manual_seed(seed * STRIDE + step)
        error = (model(holed(shown_BCHW, rng)).float() - shown_BCHW).square().mean()
        return error, {}

    trained = train(model, lessons, loss_of, config, out, identity=identity, on_step=on_step)
    filler = cast(Filler, trained.eval().requires_grad_(False))
    counted = 1 / len(filler.widths)
    alike = [torch.full((width,), counted, device=config.device) for width in filler.widths]
    return Perceptual(filler.features, alike)
