"""The eager twin of a saved file: which weights change, to what, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("numba")

from nanoflux_export.compression.palettes import palette
from nanoflux_export.compression.rounding import rounded
from nanoflux_export.compression.selection import is_palettized
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Scheme, parse_scheme


class Layers(nn.Module):
    """One of each layer whose weight is compressed, and things that are not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(64, 32)
        self.linear = nn.Linear(64, 48)
        self.conv = nn.Conv2d(32, 48, 3)
        self.grow = nn.ConvTranspose2d(24, 48, 2)
        self.tiny = nn.Linear(8, 8)
        self.uneven = nn.Conv2d(512, 3, 1)
        self.norm = nn.LayerNorm(2048)
        self.register_buffer("table", torch.randn(1, 2048) / 3)
        self.register_buffer("places", torch.arange(4096).reshape(2, -1))


WEIGHTS = {"words": 0, "linear": 0, "conv": 0, "grow": 1}


def _half(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float16)


def test_fp16_rounds_every_number_and_leaves_the_module_alone() -> None:
    module = Layers()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    after = rounded(module, parse_scheme("fp16")).state_dict()
    for name, tensor in before.items():
        assert torch.equal(module.state_dict()[name], tensor)
        if tensor.is_floating_point():
            np.testing.assert_array_equal(after[name].numpy(), _half(tensor).astype(np.float32))
        else:
            assert torch.equal(after[name], tensor)


@pytest.mark.parametrize("text", ["palette4", "palette3-g8", "palette6-g16"])
def test_palettes_follow_the_output_channels(text: str) -> None:
    module, scheme = Layers(), parse_scheme(text)
    twin = rounded(module, scheme)
    for name, axis in WEIGHTS.items():
        source = np.moveaxis(_half(module.get_submodule(name).weight), axis, 0)
        made = np.moveaxis(twin.get_submodule(name).weight.detach().numpy(), axis, 0)
        for start in range(0, len(source), scheme.group or len(source)):
            part = slice(start, start + (scheme.group or len(source)))
            lut, indices = palette(source[part], scheme.bits)
            np.testing.assert_array_equal(made[part], lut[indices].astype(np.float32))


def test_what_palettes_do_not_pay_for_stays_half_precision() -> None:
    module = Layers()
    twin = rounded(module, parse_scheme("palette4-g16")).state_dict()
    for name in ("tiny.weight", "uneven.weight", "norm.weight", "table", "linear.bias"):
        expected = _half(module.state_dict()[name]).astype(np.float32)
        np.testing.assert_array_equal(twin[name].numpy(), expected)


@pytest.mark.parametrize(
    ("scheme", "shape", "axis", "chosen"),
    [
        ("palette4", (64, 64), 0, True),
        ("palette4", (4096,), 0, False),
        ("palette4", (31, 33), 0, False),  # 1,023 values
        ("palette4", (32, 32), 0, True),  # 1,024 values
        ("palette4-g16", (48, 64, 1, 1), 0, True),
        ("palette4-g16", (40, 64, 1, 1), 0, False),  # 40 channels leave 8 over
        ("palette4-g16", (40, 64, 2, 2), 1, True),
        ("palette8-g1", (64, 64), 0, False),  # 64 palettes of 512 bytes for 4,096 values
    ],
)
def test_which_weights_are_palettized(
    scheme: str, shape: tuple[int, ...], axis: int, chosen: bool
) -> None:
    assert is_palettized(parse_scheme(scheme), shape, axis) is chosen


def test_int8_is_the_grid_of_ai_edge_quantizer() -> None:
    pytest.importorskip("ai_edge_quantizer")
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor as aeq

    module = Layers()
    with torch.no_grad():
        module.linear.weight[5] = 0.0
    twin = rounded(module, parse_scheme("int8"))
    for name, axis in WEIGHTS.items():
        weight = module.get_submodule(name).weight.detach().numpy()
        others = tuple(at for at in range(weight.ndim) if at != axis)
        zero_point, scale = aeq.tensor_zp_scale_from_min_max(
            weight.min(others, keepdims=True),
            weight.max(others, keepdims=True),
            8,
            True,
            qtyping.QuantGranularity.CHANNELWISE,
        )
        grid = qtyping.UniformQuantParams(8, axis, scale, zero_point)
        expected = aeq.uniform_dequantize(aeq.uniform_quantize(weight, grid), grid)
        np.testing.assert_array_equal(twin.get_submodule(name).weight.detach().numpy(), expected)
    assert torch.equal(twin.linear.bias, module.linear.bias)
    assert torch.equal(twin.table, module.table)


def test_shared_weights_stay_shared() -> None:
    module = Layers()
    module.head = nn.Linear(32, 64, bias=False)
    module.head.weight = module.words.weight
    twin = rounded(module, parse_scheme("palette4-g16"))
    assert twin.head.weight is twin.words.weight


def test_refuses_values_beyond_half_precision_by_name() -> None:
    module = Layers()
    with torch.no_grad():
        module.conv.bias[3] = 70000.0
    with pytest.raises(InputError, match=r"conv\.bias holds 70000"):
        rounded(module, parse_scheme("fp16"))


def test_infinities_of_a_mask_pass() -> None:
    module = Layers()
    module.table[0, 0] = -torch.inf
    assert rounded(module, parse_scheme("fp16")).table[0, 0] == -torch.inf


def test_refuses_palettes_nobody_can_store() -> None:
    with pytest.raises(InputError, match="palette5"):
        rounded(Layers(), Scheme("palette", 5))
