"""Linear layers as 1x1 convolutions over (1, C, 1, S).

The Neural Engine is built for this layout (Apple, "Deploying Transformers on the Apple Neural
Engine"), and LiteRT's GPU delegate miscompiles quantised FULLY_CONNECTED (LiteRT #9277, #9523)
where it runs CONV_2D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv1x1(linear: nn.Linear, rows: Tensor | None = None, scale: float = 1.0) -> nn.Conv2d:
    """A convolution with a linear layer's weights.

    Args:
        linear: the layer.
        rows: an order to put its outputs in.
        scale: a factor on its outputs, folded into weight and bias.
    """

    def changed(tensor: Tensor) -> Tensor:
        # Most layers change nothing; their weights, hundreds of megabytes in all, are not copied.
        ordered = tensor.detach() if rows is None else tensor.detach()[rows]
        return ordered if scale == 1.0 else ordered * scale

    with torch.device("meta"):
        conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
    state = {"weight": changed(linear.weight)[:, :, None, None]}
    if linear.bias is not None:
        state["bias"] = changed(linear.bias)
    conv.load_state_dict(state, assign=True)
    return conv.requires_grad_(False)
