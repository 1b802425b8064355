"""Progressive Token Downsampling put into a network: what it says at first, and what it keeps.

Shapes: B batch, S image tokens, D width, h w rows and columns.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanoflux_mobile.compress.importance import inputs_of
from nanoflux_mobile.compress.token_downsampling import downsampled
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_layers import modulate
from nanoflux_mobile.weights import Network, held
from tests.unit.micro_flux import (
    FLOAT32,
    FORMS,
    MICRO,
    SIDE,
    TEXT,
    make,
    rows_of,
    unread,
    velocity,
)

PLAIN = ("AdaLN", "guidance", "Static-LN")


def blurred(x_BSD: Tensor) -> Tensor:
    """The mean of each four tokens, drawn up again bilinearly."""
    x_BDhw = x_BSD.transpose(1, 2).unflatten(2, (SIDE, SIDE))
    x_BDhw = F.interpolate(F.avg_pool2d(x_BDhw, 2), scale_factor=2.0, mode="bilinear")
    return x_BDhw.flatten(2).transpose(1, 2)


def silenced(network: Network[NanoFlux]) -> Network[NanoFlux]:
    """The same network with single blocks that add nothing."""
    model = network.whole()
    for block in model.single_transformer_blocks:
        zeros = {name: torch.zeros_like(p) for name, p in block.proj_out.named_parameters()}
        block.proj_out.load_state_dict(zeros, assign=True)
    return Network(network.skeleton, held(model))


@pytest.mark.parametrize("form", PLAIN)
@pytest.mark.parametrize("start", [0, 1, 2])
def test_full_steps_stay_as_they_are_to_the_bit(form: str, start: int) -> None:
    before = make(FORMS[form])
    after = downsampled(before, start)
    assert after.skeleton.cfg.low_resolution_blocks == (start, 3)
    assert torch.equal(velocity(after.module), velocity(before.module))
    assert not torch.equal(velocity(after.module, low=True), velocity(before.module))


@pytest.mark.parametrize("form", PLAIN)
@pytest.mark.parametrize("separable", [False, True])
def test_a_first_low_step_is_a_blurred_one(form: str, separable: bool) -> None:
    """With single blocks that add nothing: image tokens are blurred, and nothing else happens."""
    before = silenced(make(FORMS[form]))
    model = before.module
    with inputs_of({"singles": model.single_transformer_blocks[0]}) as seen:
        velocity(model)
    image, shift, scale = seen["singles"][:, TEXT:], *rows_of(model)[:, -2:].unbind(1)
    assert torch.equal(velocity(model), model.proj_out(modulate(image, shift, scale)))
    low = velocity(downsampled(before, 1, separable=separable).module, low=True)
    expected = model.proj_out(modulate(blurred(image), shift, scale))
    torch.testing.assert_close(low, expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("form", PLAIN)
@pytest.mark.parametrize("separable", [False, True])
def test_with_a_skip_a_low_step_of_blocks_that_add_nothing_is_a_full_one(
    form: str, separable: bool
) -> None:
    before = silenced(make(FORMS[form]))
    model = downsampled(before, 1, separable=separable, skip=True).module
    assert torch.equal(velocity(model, low=True), velocity(before.module))
    assert not torch.equal(velocity(downsampled(before, 1).module, True), velocity(before.module))


def test_a_skip_adds_what_the_low_blocks_changed() -> None:
    model = make(FORMS["resampled with a skip"]).module
    grid, rows_BND, made = (SIDE, SIDE), rows_of(model), {}
    parts = {"down": model.downsampler, "last": model.single_transformer_blocks[2]}
    hooks = [
        part.register_forward_hook(lambda _, given, out, name=name: made.update({name: out}))
        for name, part in parts.items()
    ]
    with inputs_of({"down": model.downsampler, "up": model.upsampler}) as seen:
        said = velocity(model, low=True)
    for hook in hooks:
        hook.remove()
    assert torch.equal(seen["up"], made["last"][:, TEXT:] - made["down"])
    raised = model.upsampler(seen["up"], rows_BND[:, -6:-2], grid)
    image = seen["down"] + raised
    assert raised.std() > 0.1 * image.std()
    shift, scale = rows_BND[:, -2:].unbind(1)
    assert torch.equal(said, model.proj_out(modulate(image, shift, scale)))


@pytest.mark.parametrize("form", PLAIN)
def test_low_blocks_meet_a_quarter_of_the_picture_and_all_of_the_text(form: str) -> None:
    model = downsampled(make(FORMS[form]), 1).module
    blocks = {str(i): block for i, block in enumerate(model.single_transformer_blocks)}
    with inputs_of({**blocks, "down": model.downsampler, "up": model.upsampler}) as seen:
        velocity(model, low=True)
    lengths = [seen[str(i)].shape[1] for i in range(3)]
    assert lengths == [TEXT + SIDE**2, TEXT + SIDE**2 // 4, TEXT + SIDE**2 // 4]
    assert seen["down"].shape[1] == SIDE**2
    assert seen["up"].shape[1] == SIDE**2 // 4
    # The mean of each cell of four, of exactly what D was given; text has gone round it.
    cells = seen["down"].unflatten(1, (SIDE // 2, 2, SIDE // 2, 2)).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(seen["1"][:, TEXT:], cells, rtol=0, atol=FLOAT32)


def test_text_goes_round_the_resamplers() -> None:
    """Whatever D and U do, single blocks that add nothing give the text out as it came in."""
    network = downsampled(silenced(make(MICRO)), 1)
    model = network.whole()
    noise = torch.Generator().manual_seed(2)
    state = model.state_dict()
    wild = {n: torch.randn(t.shape, generator=noise) for n, t in state.items() if "sampler." in n}
    model.load_state_dict({**state, **wild}, assign=True)
    with inputs_of(dict(enumerate(model.single_transformer_blocks))) as seen:
        velocity(model, low=True)
    assert torch.equal(seen[2][:, :TEXT], seen[0][:, :TEXT])
    assert not torch.equal(velocity(model, low=True), velocity(network.module, low=True))


def test_a_step_table_gets_its_six_rows_before_the_last_two() -> None:
    before = make(FORMS["Static-LN"])
    after = downsampled(before, 1)
    old, new = before.tensor("step_table"), after.tensor("step_table")
    assert new.shape == (2, 12 + 3 * 3 + 6 + 2, MICRO.width)
    assert torch.equal(new[:, :-8], old[:, :-2])
    assert torch.equal(new[:, -2:], old[:, -2:])
    assert not new[:, -8:-2].any()


@pytest.mark.parametrize(
    "form", ["AdaLN resampled", "separably resampled", "resampled with a skip"]
)
@pytest.mark.parametrize("start", [0, 2])
def test_moving_d_keeps_every_weight(form: str, start: int) -> None:
    before = make(FORMS[form])
    after = downsampled(before, start, share=0.25, seed=9)
    assert after.skeleton.cfg == replace(
        FORMS[form], low_resolution_blocks=(start, 3), low_resolution_share=0.25
    )
    assert after.weights.keys() == before.weights.keys()
    for name in before.weights:
        assert torch.equal(after.tensor(name), before.tensor(name)), name
    assert not torch.equal(velocity(after.module, True), velocity(before.module, True))


def test_what_is_new_is_of_the_kind_asked_for_and_what_is_there_stays() -> None:
    before = make(MICRO)
    full, small = (downsampled(before, 1, separable=kind) for kind in (False, True))
    assert "downsampler.conv.weight" in full.weights
    assert small.weights["downsampler.conv.depthwise.weight"].shape == (MICRO.width, 1, 3, 3)
    width = MICRO.width
    assert full.count() - small.count() == 8 * (9 * width**2 - (width**2 + 9 * width))
    assert downsampled(small, 2, separable=False).skeleton.cfg.separable_resamplers
    assert not downsampled(full, 2, separable=True).skeleton.cfg.separable_resamplers
    round_it = downsampled(before, 1, skip=True)
    assert round_it.weights.keys() == full.weights.keys()
    assert downsampled(round_it, 2).skeleton.cfg.low_resolution_skip
    assert not downsampled(full, 2, skip=True).skeleton.cfg.low_resolution_skip


def test_where_d_stands_does_not_matter_to_blocks_that_add_nothing() -> None:
    first, second = (downsampled(silenced(make(MICRO)), start).module for start in (0, 2))
    assert torch.equal(velocity(first, low=True), velocity(second, low=True))


def test_the_seed_alone_decides_the_new_convolutions() -> None:
    name = "upsampler.resnet_low.conv1.weight"
    torch.manual_seed(4)
    drawn = torch.rand(1)
    torch.manual_seed(4)
    one, again, other = (downsampled(make(MICRO), 1, seed=seed).tensor(name) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), drawn), "other random numbers are not disturbed"
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    # What a fresh convolution has: uniform within one over the root of the terms it sums.
    bound = (9 * MICRO.width) ** -0.5
    assert one.abs().max() <= bound
    assert one.std() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("form", PLAIN)
@pytest.mark.parametrize("separable", [False, True])
def test_resamplers_can_learn_from_the_first_step(form: str, separable: bool) -> None:
    """Convolutions that start at zero get gradients: nothing is blocked by two zeros in a row."""
    model = downsampled(make(FORMS[form]), 1, separable=separable).whole().requires_grad_(True)
    velocity(model, low=True).square().sum().backward()
    silent = [n for n, p in model.named_parameters() if "sampler." in n and not p.grad.any()]
    waiting = (".conv1.", ".norm.", ".conv2.depthwise.")
    assert all(any(part in name for part in waiting) for name in silent)


@pytest.mark.parametrize("form", [*PLAIN, "Static-LN resampled", "separably resampled"])
def test_nothing_is_read_and_all_sizes_are_right(form: str) -> None:
    cut = downsampled(unread(FORMS[form]), 1)
    shapes = {name: tuple(p.shape) for name, p in cut.skeleton.state_dict().items()}
    assert {name: stored.shape for name, stored in cut.weights.items()} == shapes
    with torch.device("meta"):
        said = NanoFlux(cut.skeleton.cfg)
    assert shapes == {name: tuple(p.shape) for name, p in said.state_dict().items()}


@pytest.mark.parametrize("start", [-1, 3, 4])
def test_a_start_beyond_the_blocks_is_refused_before_any_reading(start: int) -> None:
    with pytest.raises(InputError, match=f"start at single block {start}; .* has blocks 0 to 2"):
        downsampled(unread(MICRO), start)
