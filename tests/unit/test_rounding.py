"""The eager twin of a saved file: which weights change, to what, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("numba")

from nanoflux_export.compression.coding import code, decode
from nanoflux_export.compression.palettes import palette
from nanoflux_export.compression.plan import Plan
from nanoflux_export.compression.rounding import rounded
from nanoflux_export.compression.selection import is_coded
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
    assert is_coded(parse_scheme(scheme), shape, axis) is chosen


def test_int8_is_the_grid_of_ai_edge_quantizer() -> None:
    pytest.importorskip("ai_edge_quantizer")
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor as aeq

    module = Layers()
    with torch.no_grad():
        module.linear.weight[5] = 0.0
    twin = rounded(module, parse_scheme("int8"), half_constants=False)
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


@pytest.mark.parametrize("text", ["int8", "int4", "int4-b32", "int4-b64"])
def test_integers_of_a_matrix_are_those_of_ai_edge_quantizer(text: str) -> None:
    """The function that its recipes for dynamic ranges quantise a weight with."""
    pytest.importorskip("ai_edge_quantizer")
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithms.uniform_quantize import naive_min_max_quantize as aeq
    from ai_edge_quantizer.algorithms.uniform_quantize.uniform_quantize_tensor import (
        uniform_dequantize,
    )

    module, scheme = nn.Linear(128, 48), parse_scheme(text)
    with torch.no_grad():
        module.weight[5] = 0.0
        module.weight *= torch.logspace(-3, 3, 48)[:, None]
    blocks = f"BLOCKWISE_{scheme.group}" if scheme.group else "CHANNELWISE"
    config = qtyping.TensorQuantizationConfig(
        num_bits=scheme.bits, symmetric=True, granularity=qtyping.QuantGranularity[blocks]
    )
    info = qtyping.OpInfo(
        None,
        qtyping.TFLOperationName.FULLY_CONNECTED,
        0,
        qtyping.OpQuantizationConfig(weight_tensor_config=config),
    )
    twin = rounded(module, scheme, half_constants=False)
    with np.errstate(invalid="ignore"):  # it divides zeros by a block scale of zero
        grid = aeq.get_tensor_quant_params(info, config, module.weight.detach().numpy())
    expected = uniform_dequantize(grid.quantized_data, grid)
    np.testing.assert_array_equal(twin.weight.detach().numpy(), expected)
    assert torch.equal(twin.bias, module.bias)


def test_litert_has_blocks_in_matrices_alone() -> None:
    module = Layers()
    module.point = nn.Conv2d(64, 48, 1)
    twin = rounded(module, parse_scheme("int4-b32"), half_constants=False)
    for name in ("conv", "grow", "tiny"):
        assert torch.equal(twin.get_submodule(name).weight, module.get_submodule(name).weight)
    for name in ("linear", "point"):
        rows = twin.get_submodule(name).weight.detach().reshape(48, 2, 32)
        assert all(run.unique().numel() <= 16 for run in rows.reshape(-1, 32))


@pytest.mark.parametrize(
    "text", ["int8", "int4-b16", "palette4-g8-v2-lut8", "sparse40-palette3-scaled", "sparse50-fp16"]
)
def test_core_ml_has_what_is_coded(text: str) -> None:
    module, scheme = Layers(), parse_scheme(text)
    twin = rounded(module, scheme)
    for name, axis in WEIGHTS.items():
        weight = module.get_submodule(name).weight.detach()
        coded = code(weight.half().float().numpy(), axis, scheme)
        stored = _half(weight).astype(np.float32) if coded is None else decode(coded)
        np.testing.assert_array_equal(twin.get_submodule(name).weight.detach().numpy(), stored)
    for name in ("linear.bias", "table", "tiny.weight"):
        expected = _half(module.state_dict()[name]).astype(np.float32)
        np.testing.assert_array_equal(twin.state_dict()[name].numpy(), expected)


@pytest.mark.parametrize("half_constants", [True, False])
def test_a_plan_says_how_each_layer_is_stored(half_constants: bool) -> None:
    module = Layers()
    weights = np.random.default_rng(0).lognormal(size=64)
    layers = {
        "block/linear.weight": parse_scheme("palette4-weighted"),
        "block/conv.weight": parse_scheme("int8"),
    }
    plan = Plan(parse_scheme("fp16"), layers, importance={"block/linear.weight": weights})
    twin = rounded(module, plan, "block", half_constants=half_constants)
    coded = code(
        _half(module.linear.weight).astype(np.float32), 0, layers["block/linear.weight"], weights
    )
    assert coded is not None
    np.testing.assert_array_equal(twin.linear.weight.detach().numpy(), decode(coded))
    as_int8 = rounded(module, parse_scheme("int8"), half_constants=half_constants)
    assert torch.equal(twin.conv.weight, as_int8.conv.weight)
    np.testing.assert_array_equal(
        twin.words.weight.detach().numpy(), _half(module.words.weight).astype(np.float32)
    )
    assert torch.equal(
        rounded(module, plan, "other").linear.weight, module.linear.weight.half().float()
    )


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
