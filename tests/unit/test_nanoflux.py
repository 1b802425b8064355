"""The FLUX transformer against diffusers' FluxTransformer2DModel on the same saved weights.

Shapes: B batch, S image tokens, T text tokens, L = T + S, C token channels, K head width, J text
width, P pooled width, N modulation rows, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_mobile.checkpoint import load_weights, read_json, sizes
from nanoflux_mobile.compress.static_ln import step_rows, to_static
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.nanoflux_layers import Rope, rope_tables, rotate
from nanoflux_mobile.models.token_resampling import Downsampler, Upsampler, low_ids
from nanoflux_mobile.weights import network

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

FLOAT32 = 1e-4
"""Outputs are of the order of 1; the two sides sum in other orders, over at most eight blocks."""
ROUNDING = 2e-6
"""A few units of the last place of float32, for single operations on values of the order of 1."""

TINY = FluxConfig(
    in_channels=16,
    num_layers=2,
    num_single_layers=3,
    attention_head_dim=16,
    num_attention_heads=3,
    joint_attention_dim=20,
    pooled_projection_dim=12,
    guidance_embeds=False,
    axes_dims_rope=(4, 6, 6),
)
CONFIGS = {
    "tiny": TINY,
    "guidance": replace(TINY, guidance_embeds=True),
    "released axes": replace(
        TINY, attention_head_dim=128, num_attention_heads=1, axes_dims_rope=(16, 56, 56)
    ),
    "uneven axes": replace(
        TINY, attention_head_dim=24, num_attention_heads=2, axes_dims_rope=(2, 8, 14)
    ),
    "deep and narrow": replace(
        TINY, num_layers=1, num_single_layers=7, attention_head_dim=8, axes_dims_rope=(2, 2, 4)
    ),
    "double blocks only": replace(TINY, num_layers=3, num_single_layers=0),
    "single blocks only": replace(TINY, num_layers=0, num_single_layers=2),
}


@dataclass(frozen=True)
class Case:
    """Inputs of one call, in the units of both sides: times in [0, 1], guidance as users say it."""

    x_BSC: Tensor
    text_BTJ: Tensor
    pooled_BP: Tensor
    t_B: Tensor
    guidance_B: Tensor | None
    ids_LA: Tensor


def make_case(cfg: FluxConfig, batch: int = 2, rows: int = 3, columns: int = 5) -> Case:
    rng = torch.Generator().manual_seed(11)
    words, cells = 7, rows * columns
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
    ids = torch.cat((torch.zeros(cells, 1), grid.reshape(-1, 2).float()), 1)
    return Case(
        torch.randn(batch, cells, cfg.in_channels, generator=rng),
        torch.randn(batch, words, cfg.joint_attention_dim, generator=rng),
        torch.randn(batch, cfg.pooled_projection_dim, generator=rng),
        torch.tensor([1.0, 0.37, 0.002][:batch]),
        torch.tensor([3.5, 1.0, 7.25][:batch]) if cfg.guidance_embeds else None,
        torch.cat((torch.zeros(words, 3), ids)),
    )


def oracle_config(cfg: FluxConfig) -> dict:
    names = list(FluxConfig.__dataclass_fields__)
    return {name: getattr(cfg, name) for name in names[: names.index("static_steps")]}


@pytest.fixture(scope="module")
def oracle(off_initial: Callable[[nn.Module, int], nn.Module]) -> Callable[..., nn.Module]:
    """diffusers' model with random weights, made once for each config."""
    from diffusers import FluxTransformer2DModel

    made: dict[FluxConfig, FluxTransformer2DModel] = {}

    def make(cfg: FluxConfig) -> FluxTransformer2DModel:
        if cfg not in made:
            torch.manual_seed(0)
            made[cfg] = off_initial(FluxTransformer2DModel(**oracle_config(cfg)), 1)
        return made[cfg]

    return make


def theirs(model: FluxTransformer2DModel, case: Case) -> Tensor:
    words = case.text_BTJ.shape[1]
    with torch.no_grad():
        return model(
            hidden_states=case.x_BSC,
            encoder_hidden_states=case.text_BTJ,
            pooled_projections=case.pooled_BP,
            timestep=case.t_B,
            guidance=case.guidance_B,
            txt_ids=case.ids_LA[:words],
            img_ids=case.ids_LA[words:],
            return_dict=False,
        )[0]


def ours(model: NanoFlux, case: Case) -> Tensor:
    rope = rope_tables(case.ids_LA, model.cfg.axes_dims_rope)
    rows = model.modulations(case.t_B, case.pooled_BP, case.guidance_B)
    return model(case.x_BSC, case.text_BTJ, rows, rope)


def loaded(folder: Path) -> NanoFlux:
    fixed = {"patch_size": 1, "out_channels": None}
    cfg = sizes(FluxConfig, read_json(folder / "config.json"), "config.json", fixed)
    return load_weights(lambda: NanoFlux(cfg), folder)


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
def test_a_checkpoint_saved_by_diffusers_gives_the_same_velocity(oracle, tmp_path, cfg):
    reference, case = oracle(cfg), make_case(cfg)
    reference.save_pretrained(tmp_path)
    model = loaded(tmp_path)
    assert model.cfg == cfg
    expected = theirs(reference, case)
    assert expected.std() > 0.05, "an oracle that says nothing proves nothing"
    velocity = ours(model, case)
    assert velocity.shape == case.x_BSC.shape
    assert (velocity - expected).abs().max() <= FLOAT32


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 8, 2), (3, 4, 4)])
def test_batches_and_shapes_of_any_size(oracle, tmp_path, size):
    reference, case = oracle(TINY), make_case(TINY, *size)
    reference.save_pretrained(tmp_path)
    assert (ours(loaded(tmp_path), case) - theirs(reference, case)).abs().max() <= FLOAT32


def test_sharded_weights_are_put_together(oracle, tmp_path):
    oracle(TINY).save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 3
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").is_file()
    expected, state = oracle(TINY).state_dict(), loaded(tmp_path).state_dict()
    assert expected.keys() == state.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights_are_widened_exactly(tmp_path, dtype):
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    reference = FluxTransformer2DModel(**oracle_config(TINY)).to(dtype)
    reference.save_pretrained(tmp_path)
    state = loaded(tmp_path).state_dict()
    for key, tensor in reference.state_dict().items():
        assert state[key].dtype == torch.float32
        assert torch.equal(state[key], tensor.float()), key


def test_loaded_weights_are_frozen_and_ready_to_run(oracle, tmp_path):
    oracle(TINY).save_pretrained(tmp_path)
    model = loaded(tmp_path)
    assert not model.training
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())


def oracle_rows(
    norm: Callable[[Tensor], Tensor | tuple[Tensor, ...]], cfg: FluxConfig
) -> list[Tensor]:
    """Shift, scale, then what else diffusers' norm returns, read off from how it treats two inputs.

    A constant token is zero after layer norm, so its output is the shift; a token of ones and
    minus ones is its own layer norm and shows the scale.
    """
    token_B1D = torch.tensor([1.0, -1.0]).repeat(cfg.width // 2).expand(2, 1, -1)
    with torch.no_grad():
        flat, moved = norm(torch.zeros_like(token_B1D)), norm(token_B1D)
    shift, *rest = flat if isinstance(flat, tuple) else (flat,)
    moved = moved[0] if isinstance(moved, tuple) else moved
    return [shift[:, 0], ((moved - shift) * token_B1D - 1)[:, 0], *rest]


def test_modulation_rows_come_in_the_order_of_the_blocks(oracle, tmp_path):
    cfg, case = CONFIGS["guidance"], make_case(CONFIGS["guidance"])
    reference = oracle(cfg)
    reference.save_pretrained(tmp_path)
    with torch.no_grad():
        c_BD = reference.time_text_embed(1000 * case.t_B, 1000 * case.guidance_B, case.pooled_BP)
    norms = [n for b in reference.transformer_blocks for n in (b.norm1, b.norm1_context)]
    norms += [block.norm for block in reference.single_transformer_blocks]
    expected = [row for n in norms for row in oracle_rows(partial(n, emb=c_BD), cfg)]
    expected += oracle_rows(lambda x: reference.norm_out(x, c_BD), cfg)
    rows_BND = loaded(tmp_path).modulations(case.t_B, case.pooled_BP, case.guidance_B)
    assert rows_BND.shape == (2, cfg.modulation_rows, cfg.width)
    assert len(expected) == cfg.modulation_rows == 12 * 2 + 3 * 3 + 2
    for i, row in enumerate(expected):
        assert (rows_BND[:, i] - row).abs().max() <= ROUNDING, f"row {i}"
    differences = torch.cdist(rows_BND[0], rows_BND[0]) + torch.eye(cfg.modulation_rows)
    assert differences.min() > 0.1, "rows are distinct, so a wrong order would show"


@pytest.mark.parametrize("axes", [(4, 6, 6), (16, 56, 56), (2, 8, 14)])
def test_rope_tables_are_those_of_diffusers(axes):
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    ids_LA = torch.randint(0, 128, (50, 3), generator=torch.Generator().manual_seed(2)).float()
    cos, sin = FluxPosEmbed(theta=10000, axes_dim=axes)(ids_LA)
    ours_cos, ours_sin = rope_tables(ids_LA, axes)
    assert ours_cos.shape == ours_sin.shape == (50, sum(axes) // 2)
    for mine, other in ((ours_cos, cos), (ours_sin, sin)):
        assert mine.dtype == torch.float32
        assert (mine.repeat_interleave(2, 1) - other).abs().max() <= ROUNDING


def test_rotation_is_that_of_diffusers():
    from diffusers.models.embeddings import apply_rotary_emb

    rng = torch.Generator().manual_seed(3)
    x_BHLK = torch.randn(2, 3, 9, 16, generator=rng)
    angle = 6 * torch.rand(9, 8, generator=rng)
    tables = (angle.cos(), angle.sin())
    expected = apply_rotary_emb(x_BHLK, tuple(t.repeat_interleave(2, 1) for t in tables))
    assert (rotate(x_BHLK, tables) - expected).abs().max() <= ROUNDING


def test_keys_and_shapes_at_the_released_widths_are_those_of_diffusers():
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        reference = FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True)
        model = NanoFlux(FluxConfig(64, 2, 2, 128, 24, 4096, 768, True, (16, 56, 56)))
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, reference)]
    assert shapes[0] == shapes[1]
    assert {
        "transformer_blocks.1.attn.to_add_out.weight",
        "single_transformer_blocks.1.proj_out.bias",
        "time_text_embed.timestep_embedder.linear_1.weight",
    } < shapes[0].keys()


def test_a_static_model_has_a_table_instead_of_adaln():
    cfg = replace(TINY, static_steps=4)
    with torch.device("meta"):
        static, adaln = NanoFlux(cfg).state_dict(), NanoFlux(TINY).state_dict()
    assert static.pop("step_table").shape == (4, cfg.modulation_rows, cfg.width)
    assert static.keys() < adaln.keys()
    assert not [key for key in static if "time" in key or "norm1" in key or "norm_out" in key]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ((4, 6, 4), r"sums to 14, but attention_head_dim is 16"),
        ((4, 6, 8), r"sums to 18"),
        ((), r"sums to 0"),
        ((5, 5, 6), r"must be even"),
        ((3, 7, 6), r"must be even"),
    ],
)
def test_axes_that_do_not_fill_a_head_with_pairs_are_refused(axes, words):
    with pytest.raises(ValueError, match=words):
        replace(TINY, axes_dims_rope=axes)


@pytest.mark.parametrize(("field", "value"), [("patch_size", 2), ("out_channels", 8)])
def test_settings_of_another_network_are_refused_by_name(oracle, tmp_path, field, value):
    oracle(TINY).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {field: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"{field} is {value}; only"):
        loaded(tmp_path)


LOW = replace(TINY, num_single_layers=4, low_resolution_blocks=(1, 3))
GRID = (4, 6)
WORDS = 7


@pytest.fixture(scope="module")
def low_model(off_initial: Callable[[nn.Module, int], nn.Module]) -> NanoFlux:
    """An AdaLN network whose blocks 1 and 2 of four run low; none of its weights is special."""
    torch.manual_seed(4)
    return off_initial(NanoFlux(LOW), 5).eval().requires_grad_(False)


def two_ropes(case: Case) -> tuple[Rope, Rope]:
    axes = LOW.axes_dims_rope
    return rope_tables(case.ids_LA, axes), rope_tables(low_ids(case.ids_LA, GRID), axes)


def step(model: NanoFlux, case: Case, rows_BND: Tensor, low: bool) -> Tensor:
    rope, low_rope = two_ropes(case)
    return model(case.x_BSC, case.text_BTJ, rows_BND, rope, low_rope if low else None, GRID)


def test_a_full_step_never_touches_the_resamplers(low_model):
    case = make_case(LOW, 2, *GRID)
    rows_BND = low_model.modulations(case.t_B, case.pooled_BP)
    plain = NanoFlux(replace(LOW, low_resolution_blocks=(0, 0)))
    kept = {k: v for k, v in low_model.state_dict().items() if "sampler" not in k}
    plain.load_state_dict(kept, strict=True)
    own_rows = torch.cat((rows_BND[:, :-8], rows_BND[:, -2:]), 1)
    assert torch.equal(plain.modulations(case.t_B, case.pooled_BP), own_rows)
    expected = plain(case.x_BSC, case.text_BTJ, own_rows, two_ropes(case)[0])
    assert torch.equal(step(low_model, case, rows_BND, low=False), expected)
    assert not torch.allclose(step(low_model, case, rows_BND, low=True), expected, atol=0.01)


def test_low_blocks_see_a_quarter_of_the_image_and_the_same_text(low_model):
    case, seen = make_case(LOW, 2, *GRID), []
    rows_BND = low_model.modulations(case.t_B, case.pooled_BP)
    blocks = low_model.single_transformer_blocks
    hooks = [
        block.register_forward_hook(lambda _, given, result: seen.append((given[0], result)))
        for block in blocks
    ]
    assert step(low_model, case, rows_BND, low=True).shape == case.x_BSC.shape
    for hook in hooks:
        hook.remove()
    full, small = WORDS + 24, WORDS + 6
    assert [given.shape[1] for given, _ in seen] == [full, small, small, full]
    for resampler in (0, 2):  # D runs after block 0, U after block 2
        before, after = seen[resampler][1], seen[resampler + 1][0]
        assert torch.equal(before[:, :WORDS], after[:, :WORDS])
        assert before.shape != after.shape


def test_rows_of_the_resamplers_stand_before_the_last_two(low_model):
    case = make_case(LOW)
    rows_BND = low_model.modulations(case.t_B, case.pooled_BP)
    assert rows_BND.shape[1] == LOW.modulation_rows == 12 * 2 + 3 * 4 + 6 + 2
    with torch.no_grad():
        c_BD = low_model.time_text_embed(case.t_B, case.pooled_BP, None)
        up = low_model.upsampler
        for i, block in enumerate((low_model.downsampler.resnet, up.resnet_low, up.resnet_full)):
            shift_scale = block.norm.linear(F.silu(c_BD)).unflatten(1, (2, -1))
            start = 12 * 2 + 3 * 4 + 2 * i
            assert torch.equal(rows_BND[:, start : start + 2], shift_scale)


@pytest.mark.parametrize("row", range(6))
def test_low_steps_read_every_row_of_the_resamplers_and_full_steps_none(low_model, row):
    case = make_case(LOW, 1, *GRID)
    rows_BND = low_model.modulations(case.t_B, case.pooled_BP)
    other = rows_BND.clone()
    other[:, 36 + row] += torch.linspace(-1, 1, LOW.width)
    for low in (False, True):
        same = torch.equal(*(step(low_model, case, rows, low) for rows in (rows_BND, other)))
        assert same == (not low)


def test_a_table_of_one_prompt_gives_the_velocities_of_adaln(low_model):
    case, sigmas = make_case(LOW, 1, *GRID), (1.0, 0.6, 0.2)
    table_TND = step_rows(network(low_model), sigmas, case.pooled_BP)
    student = to_static(network(low_model), table_TND).module
    left = [key for key in student.state_dict() if "norm.linear" in key or "time_" in key]
    assert left == [], "a Static-LN network projects nothing"
    assert "downsampler.conv.weight" in student.state_dict()
    for i, sigma in enumerate(sigmas):
        rows_BND = low_model.modulations(torch.tensor([sigma]), case.pooled_BP)
        for low in (False, True):
            expected = step(low_model, case, rows_BND, low)
            assert torch.equal(step(student, case, student.step_table[i : i + 1], low), expected)


def test_a_residual_block_is_norm_modulation_and_two_convolutions(low_model):
    block, rng = low_model.downsampler.resnet, torch.Generator().manual_seed(6)
    x_BSD = torch.randn(2, 24, LOW.width, generator=rng)
    rows_B2D = torch.randn(2, 2, LOW.width, generator=rng)
    x_BDHW = x_BSD.transpose(1, 2).reshape(2, LOW.width, *GRID)
    # A group norm of one group over the channels of a single cell is the layer norm of a token.
    cells = x_BSD.reshape(48, LOW.width)
    normed = F.group_norm(cells, 1, eps=1e-6).reshape(2, 24, -1).transpose(1, 2)
    shift, scale = (rows_B2D[:, i, :, None, None] for i in (0, 1))
    h = F.silu(normed.reshape(x_BDHW.shape) * (1 + scale) + shift)
    h = F.conv2d(h, block.conv1.weight, block.conv1.bias, padding=1)
    h = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    h = F.conv2d(F.silu(h), block.conv2.weight, block.conv2.bias, padding=1)
    expected = (x_BDHW + h).flatten(2).transpose(1, 2)
    assert (block(x_BSD, rows_B2D, GRID) - expected).abs().max() <= FLOAT32


def passing(resampler: nn.Module) -> nn.Module:
    """The resampler without its residuals, and with a convolution that copies its centre."""
    for name, p in resampler.named_parameters():
        nn.init.zeros_(p)
        if name == "conv.weight":
            nn.init.dirac_(p)
    return resampler.requires_grad_(False)


def test_tokens_lie_on_the_grid_row_by_row():
    tokens_BSD = torch.arange(24.0)[None, :, None].expand(1, 24, 2)
    rows_BND = torch.zeros(1, 2, 2)
    low = passing(Downsampler(2, adaln=False))(tokens_BSD, rows_BND, GRID)
    assert low[0, :, 0].tolist() == [0, 2, 4, 12, 14, 16]
    turned = passing(Downsampler(2, adaln=False))(tokens_BSD, rows_BND, GRID[::-1])
    assert turned[0, :, 0].tolist() == [0, 2, 8, 10, 16, 18]


def test_what_low_tokens_say_of_their_place_comes_up_as_that_of_full_ones():
    """Bilinear upsampling and the positions of low tokens agree on where a cell's middle is."""
    rows, columns = 6, 8
    grid = torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij"), -1)
    ids_LA = F.pad(torch.cat((torch.zeros(WORDS, 2), grid.reshape(-1, 2))), (1, 0))
    low = low_ids(ids_LA, (rows, columns))
    assert torch.equal(low[:WORDS], ids_LA[:WORDS])
    assert low[WORDS:, 1].tolist() == [0.5] * 4 + [2.5] * 4 + [4.5] * 4
    assert low[WORDS:, 2].tolist() == [0.5, 2.5, 4.5, 6.5] * 3
    up = passing(Upsampler(2, adaln=False))
    places = up(low[None, WORDS:, 1:], torch.zeros(1, 4, 2), (rows, columns))
    inner = places.reshape(rows, columns, 2)[1:-1, 1:-1]
    assert (inner - grid[1:-1, 1:-1]).abs().max() <= ROUNDING


@pytest.mark.parametrize(
    ("share", "steps", "low"),
    [(0.5, 10, 5), (0.5, 3, 2), (0.5, 1, 1), (0.07, 100, 7), (0.0, 10, 0), (1.0, 4, 4)],
)
def test_the_noisy_share_of_the_steps_runs_low(share, steps, low):
    assert replace(LOW, low_resolution_share=share).low_steps(steps) == low
    assert replace(TINY, low_resolution_share=share).low_steps(steps) == 0


@pytest.mark.parametrize("blocks", [(1, 5), (-1, 2), (2, 2), (3, 1)])
def test_low_blocks_that_are_no_range_are_refused(blocks):
    with pytest.raises(ValueError, match=r"no range of the 4 single blocks"):
        replace(LOW, low_resolution_blocks=blocks)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_share(share):
    with pytest.raises(ValueError, match=r"not 0 to 1"):
        replace(LOW, low_resolution_share=share)


@pytest.mark.parametrize(
    ("cfg", "grid", "words"),
    [
        (LOW, None, "24 image tokens are no square"),
        (LOW, (3, 8), "3 x 8 does not split"),
        (TINY, GRID, r"low_resolution_blocks is \(0, 0\)"),
    ],
)
def test_a_low_step_that_cannot_be_is_refused(cfg, grid, words):
    case, model = make_case(cfg, 1, *GRID), NanoFlux(cfg)
    rows_BND = torch.zeros(1, cfg.modulation_rows, cfg.width)
    with pytest.raises(ValueError, match=words):
        model(case.x_BSC, case.text_BTJ, rows_BND, *two_ropes(case), grid)
