"""The CLIP text tower, of any size: FLUX reads its pooled state, SnapGen and SD3 its tokens too.

Module names are those of transformers' CLIPTextModelWithProjection, so its checkpoints load without
a key map (CLIP-L and CLIP-G, the bigG tower of OpenCLIP). CLIPTextModel is the same without
`text_projection`.

Shapes: B batch, S tokens, D model width, P width of the pooled state, H heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of a CLIP text tower, by the names of transformers' config.json.

    `projection_width` is ours, 0 for none: transformers' `projection_dim` stands in every config,
    also in those of towers without a projection.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    layer_norm_eps: float
    hidden_act: str
    eos_token_id: int
    projection_width: int = 0

    @property
    def pooled_width(self) -> int:
        """Channels of the pooled state."""
        return self.projection_width or self.hidden_size

    def __post_init__(self) -> None:
        """Refuse what this tower does not have: other activations, heads of unequal width."""
        if self.projection_width < 0:
            raise ValueError(f"projection_width {self.projection_width} is below 0, which is none")
        if self.hidden_act not in ("quick_gelu", "gelu"):
            raise ValueError(f"hidden_act {self.hidden_act!r} is not one of quick_gelu, gelu")
        heads = self.num_attention_heads
        if heads < 1 or self.hidden_size % heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not split into {heads} heads")


class Embeddings(nn.Module):
    """Token plus learned position."""

    def __init__(self, cfg: ClipConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.position_embedding = nn.Embedding(cfg.max_position_embeddings, cfg.hidden_size)

    def forward(self, ids_BS: Tensor) -> Tensor:
        """(B, S) -> (B, S, D)."""
        return self.token_embedding(ids_BS) + self.position_embedding.weight[: ids_BS.shape[1]]


class CausalAttention(nn.Module):
    """Each token sees itself and those before it."""

    def __init__(self, cfg: ClipConfig) -> None:
        super().__init__()
        width = cfg.hidden_size
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.heads = cfg.num_attention_heads

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Same shape in and out."""
        q, k, v = (
            f(x_BSD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        y_BHSK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(y_BHSK.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linears around the activation of the config."""

    def __init__(self, cfg: ClipConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(cfg.hidden_size, cfg.intermediate_size)
        self.fc2 = nn.Linear(cfg.intermediate_size, cfg.hidden_size)
        self.quick = cfg.hidden_act == "quick_gelu"

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Same shape in and out."""
        h = self.fc1(x_BSD)
        return self.fc2(h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


class Layer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, cfg: ClipConfig) -> None:
        super().__init__()
        self.self_attn = CausalAttention(cfg)
        self.layer_norm1 = nn.LayerNorm(cfg.hidden_size, cfg.layer_norm_eps)
        self.mlp = FeedForward(cfg)
        self.layer_norm2 = nn.LayerNorm(cfg.hidden_size, cfg.layer_norm_eps)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Same shape in and out."""
        x_BSD = x_BSD + self.self_attn(self.layer_norm1(x_BSD))
        return x_BSD + self.mlp(self.layer_norm2(x_BSD))


class Layers(nn.Module):
    """The list transformers calls `encoder.layers`."""

    def __init__(self, cfg: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.num_hidden_layers))


class TextTransformer(nn.Module):
    """Embeddings, layers, last norm."""

    def __init__(self, cfg: ClipConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(cfg)
        self.encoder = Layers(cfg)
        self.final_layer_norm = nn.LayerNorm(cfg.hidden_size, cfg.layer_norm_eps)


class ClipText(nn.Module):
    """Token ids to text states, per token and pooled."""

    def __init__(self, cfg: ClipConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.text_model = TextTransformer(cfg)
        width = cfg.projection_width
        self.text_projection = nn.Linear(cfg.hidden_size, width, bias=False) if width else None

    def states(self, ids_BS: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) ids -> token states (B, S, D) and the pooled state (B, P).

        Token states are what the layer before the last gives out, not normed: `hidden_states[-2]`
        of transformers. The pooled state is the last norm's output at the first end-of-text token,
        projected where the tower has a projection.
        """
        *lower, last = self.text_model.encoder.layers
        x_BSD = self.text_model.embeddings(ids_BS)
        for layer in lower:
            x_BSD = layer(x_BSD)
        y_BSD = self.text_model.final_layer_norm(last(x_BSD))
        y_BD = y_BSD[torch.arange(len(ids_BS)), self._ends(ids_BS)]
        return x_BSD, y_BD if self.text_projection is None else self.text_projection(y_BD)

    def forward(self, ids_BS: Tensor) -> Tensor:
        """(B, S) ids -> the pooled state alone, (B, P)."""
        return self.states(ids_BS)[1]

    def _ends(self, ids_BS: Tensor) -> Tensor:
        # Checkpoints saved before transformers 4.30 carry eos_token_id 2, which their vocabulary
        # does not use as the end of text; there it is the highest id.
        if self.cfg.eos_token_id == 2:
            return ids_BS.argmax(1)
        return (ids_BS == self.cfg.eos_token_id).int().argmax(1)
