"""Cut 6 of NanoFLUX: a small text encoder that speaks to a denoiser taught by a large one.

FLUX.1 goes from T5-XXL (4.8 B parameters) to T5-Large and two linears up to T5-XXL's 4096 channels
(0.36 B). Vocabulary and tokenizer stay, so both encoders read the same ids. The small one is a
pretrained T5 where there is one. Where there is none, it is cut out of the large one:

* layers spread evenly over the large one's, the first and the last among them;
* of every head the first channels, of every MLP the first hidden units;
* of the residual stream the directions that the embeddings and all layers write along most, after
  its norms' weights have gone into the linears that follow, so that turning the stream is allowed;
* the projection starts as the linear way back, because gelu(x) - gelu(-x) = x.

Taught the tiny family's states for as long, such a start comes to a quarter of the error of one
drawn at random, and to four fifths of that of one that keeps the first channels of the stream.

Shapes: N vocabulary, D width of the large stream, d of the small one, H heads, K head width,
F hidden units, P channels of the states that a denoiser reads.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from nanoflux_mobile.checkpoint import fitted
from nanoflux_mobile.checkpoint import sizes as sizes_in
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.t5 import T5Config, T5Encoder
from nanoflux_mobile.weight_files import KeyMap, read_json, read_weights
from nanoflux_mobile.weights import Network, Stored, Weights

T5_DEFAULTS = {"feed_forward_proj": "relu", "relative_attention_max_distance": 128}
"""What transformers assumes where an older config.json is silent."""


@dataclass(frozen=True)
class Sizes:
    """What may differ between two T5 encoders of one vocabulary, by the names of config.json."""

    num_layers: int
    d_model: int
    d_ff: int
    num_heads: int
    d_kv: int

    def __post_init__(self) -> None:
        """Refuse a size below 1."""
        for name, count in dataclasses.asdict(self).items():
            if count < 1:
                raise ValueError(f"{name} is {count}; give a whole number from 1")


def sizes_of(cfg: T5Config) -> Sizes:
    """The sizes of an encoder."""
    return Sizes(**{f.name: getattr(cfg, f.name) for f in dataclasses.fields(Sizes)})


def cut_out(large: Network[T5Encoder], wanted: Sizes) -> Network[T5Encoder]:
    """The large encoder at smaller sizes, giving states of the same width; nothing is read yet.

    InputError for a size above the large one's, or for sizes that make no smaller network.
    """
    old = large.skeleton.cfg
    for name, count in dataclasses.asdict(wanted).items():
        if count > getattr(old, name):
            raise InputError(
                f"the small text encoder is to have {name} {count}, the one that it is cut out of "
                f"has {getattr(old, name)}; give at most that, or a pretrained encoder"
            )
    cfg = dataclasses.replace(old, **dataclasses.asdict(wanted), projection_width=old.states_width)
    read = partial(_read, large, cfg, cache(partial(_basis, large, cfg.d_model)))
    return _checked(large, _network(cfg, {}, read))


def pretrained(large: Network[T5Encoder], folder: Path, keys: KeyMap) -> Network[T5Encoder]:
    """The encoder of a T5 checkpoint folder, projected to the width of the large one's states.

    A whole T5 is accepted, of which the decoder is left alone; so is an encoder that was cut here
    before, whose projection stays. A new projection is drawn, always the same one. Weights are read
    when they are asked for.

    Args:
        large: the encoder that is to be replaced.
        folder: config.json and weights as transformers writes them.
        keys: how the names in the files differ from ours.

    Raises:
        InputError: no T5 checkpoint, another vocabulary, other states, or no smaller network.
    """
    where = f"{folder}/config.json"
    cfg = sizes_in(T5Config, {**T5_DEFAULTS, **read_json(folder / "config.json")}, where, {})
    old = large.skeleton.cfg
    if cfg.vocab_size != old.vocab_size:
        raise InputError(
            f"{where} says a vocabulary of {cfg.vocab_size} tokens, the teacher's has "
            f"{old.vocab_size}; give a T5 of the same tokenizer"
        )
    if cfg.projection_width not in (0, old.states_width):
        raise InputError(
            f"{where} says states of width {cfg.projection_width}, the teacher's have "
            f"{old.states_width}; give a T5 without a projection"
        )
    stored = read_weights(folder, keys)
    found = fitted(lambda: T5Encoder(cfg), stored, folder, complete=False)
    wider = dataclasses.replace(cfg, projection_width=old.states_width)
    return _checked(large, _network(wider, found.weights, partial(_drawn, wider)))


def _checked(large: Network[T5Encoder], small: Network[T5Encoder]) -> Network[T5Encoder]:
    if small.count() >= large.count():
        raise InputError(
            f"the small text encoder would have {small.count():,} parameters, the one it replaces "
            f"{large.count():,}; give smaller sizes"
        )
    return small


def _network(cfg: T5Config, present: Weights, read: Callable[[str], Tensor]) -> Network[T5Encoder]:
    """The encoder with the weights that are present; all others are what `read` makes of a name."""
    with torch.device("meta"):
        skeleton = T5Encoder(cfg).eval().requires_grad_(False)
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    made = {
        name: Stored(shape, "float32", 4 * math.prod(shape), partial(read, name))
        for name, shape in shapes.items()
    }
    return Network(skeleton, {**made, **present})


def _drawn(cfg: T5Config, name: str) -> Tensor:
    """A tensor of a projection at random, its outputs as large as its inputs."""
    cin = cfg.d_model if ".fc1." in name else cfg.projection_width
    if name.endswith("bias"):
        return torch.zeros(cfg.projection_width)
    rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn((cfg.projection_width, cin), generator=rng) * cin**-0.5


def _basis(large: Network[T5Encoder], width: int) -> Tensor:
    """The directions that embeddings and layers write along most, (D, d): principal components of
    all that writes into the stream, each writer counted as one."""
    writers = [large.tensor("shared.weight").T]
    for i in range(large.skeleton.cfg.num_layers):
        layer = f"encoder.block.{i}.layer"
        writers.append(large.tensor(f"{layer}.0.SelfAttention.o.weight"))
        writers.append(large.tensor(f"{layer}.1.DenseReluDense.wo.weight"))
    gram_DD = sum(w @ w.T / w.square().sum().clamp(min=1e-30) for w in writers)
    return torch.linalg.eigh(gram_DD).eigenvectors[:, -width:].flip(1)


def _layers(count: int, of: int) -> list[int]:
    """Which of the large encoder's layers stay: spread evenly, the ends among them."""
    return [round(i * (of - 1) / max(1, count - 1)) for i in range(count)]


def _read(
    large: Network[T5Encoder], cfg: T5Config, basis: Callable[[], Tensor], name: str
) -> Tensor:
    """A tensor of the encoder that is cut out."""
    old, kind = large.skeleton.cfg, name.split(".")[-2]
    if kind in ("layer_norm", "final_layer_norm"):
        # Directions left out were part of the mean square, so without them it is larger.
        return torch.full((cfg.d_model,), math.sqrt(old.d_model / cfg.d_model))
    if name.startswith("projection."):
        return _projection(large, cfg, basis, name)
    if kind == "shared":
        return large.tensor(name) @ basis()
    source = name
    if name.startswith("encoder.block."):
        number, rest = name.removeprefix("encoder.block.").split(".", 1)
        kept = _layers(cfg.num_layers, old.num_layers)[int(number)]
        source = f"encoder.block.{kept}.{rest}"
    tensor = large.tensor(source)
    if kind == "relative_attention_bias":
        return tensor[:, : cfg.num_heads]
    if kind in ("o", "wo"):
        return (basis().T @ _kept(tensor.T, kind, old, cfg).T).contiguous()
    norm_D = large.tensor(".".join(source.split(".")[:5]) + ".layer_norm.weight")
    return (_kept(tensor, kind, old, cfg) * norm_D) @ basis()


def _kept(rows: Tensor, kind: str, old: T5Config, cfg: T5Config) -> Tensor:
    """The rows of attention's channels or of hidden units that stay."""
    if kind.startswith("w"):
        return rows[: cfg.d_ff]
    heads_HKD = rows.unflatten(0, (old.num_heads, old.d_kv))
    return heads_HKD[: cfg.num_heads, : cfg.d_kv].flatten(0, 1)


def _projection(
    large: Network[T5Encoder], cfg: T5Config, basis: Callable[[], Tensor], name: str
) -> Tensor:
    """The large encoder's own projection, or two linears that are the linear way back.

    The way back takes two hidden channels for each direction, one for either sign; where there is
    no room for all, the last directions start unread. Channels left over start random and unheard.
    """
    first, width = ".fc1." in name, cfg.projection_width
    norm_D = large.tensor("encoder.final_layer_norm.weight")
    if large.skeleton.cfg.projection_width:
        tensor = large.tensor(name)
        return (tensor * norm_D) @ basis() if name.endswith("fc1.weight") else tensor
    if name.endswith("bias"):
        return torch.zeros(width)
    ways = min(cfg.d_model, width // 2)
    if first:
        there = torch.eye(cfg.d_model)[:ways]
        return torch.cat((there, -there, _drawn(cfg, name)[2 * ways :]))
    back_Pd = (norm_D[:, None] * basis())[:, :ways]
    return torch.cat((back_Pd, -back_Pd, torch.zeros(width, width - 2 * ways)), 1)
