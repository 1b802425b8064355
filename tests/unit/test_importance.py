"""Importance against gates that are really written into a network and really moved.

Shapes: B batch, D width, H heads, K head width, F hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nanoflux_mobile.compress.importance import Importance, inputs_of, measure
from nanoflux_mobile.models.nanoflux import NanoFlux
from tests.unit.micro_flux import FORMS, MICRO, make, velocity

SMALL = replace(MICRO, num_single_layers=2)
WIDTH, HEADS, INSIDE = SMALL.width, SMALL.num_attention_heads, SMALL.attention_head_dim
STEP = 1e-2
"""Of the finite differences: the third derivative adds 1e-4, rounding 1e-7 / 1e-2."""
APART = 0.02
"""Relative: twice the two errors above, as scores are squares."""

Gates = Mapping[str, Tensor]
"""Factors by kind: residual (D,), condition (D,), and "i.heads" (H,) and the like of blocks."""


@contextmanager
def gated(model: NanoFlux, gates: Gates) -> Iterator[None]:
    """While open, every candidate of a cut is multiplied by its gate."""

    def multiply(factor: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        return lambda _, inputs: (inputs[0] * factor, *inputs[1:])

    def channels(block: int) -> Tensor:
        heads = gates.get(f"{block}.heads", torch.ones(HEADS))
        return heads.repeat_interleave(INSIDE)

    def units(name: str) -> Tensor:
        return gates.get(name, torch.ones(4 * WIDTH))

    spots: list[tuple[nn.Module, Tensor]] = []
    for i, block in enumerate(model.transformer_blocks):
        spots += [(block.attn.to_out[0], channels(i)), (block.attn.to_add_out, channels(i))]
        spots += [(block.ff.net[2], units(f"{i}.units"))]
        spots += [(block.ff_context.net[2], units(f"{i}.text_units"))]
    for i, block in enumerate(model.single_transformer_blocks, len(model.transformer_blocks)):
        spots += [(block.proj_out, torch.cat((channels(i), units(f"{i}.units"))))]
    stream = gates.get("residual", torch.ones(WIDTH))
    spots += [(m, stream) for m in (*model.transformer_blocks, *model.single_transformer_blocks)]
    handles = [module.register_forward_pre_hook(multiply(gate)) for module, gate in spots]
    if not model.cfg.static_steps:
        condition = gates.get("condition", torch.ones(WIDTH))
        embed = model.time_text_embed
        handles += [embed.register_forward_hook(lambda _, inputs, out: out * condition)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def moved(model: NanoFlux, kind: str, count: int, index: int) -> Tensor:
    """What the velocity changes by when one gate moves: the derivative, (B, S, C)."""
    said = []
    for sign in (1, -1):
        gate = torch.ones(count)
        gate[index] += sign * STEP
        with gated(model, {kind: gate}):
            said.append(velocity(model))
    return (said[0] - said[1]) / (2 * STEP)


def kinds(model: NanoFlux, found: Importance) -> dict[str, Tensor]:
    """All scores by the names of gates."""
    named = {"residual": found.residual}
    if not model.cfg.static_steps:
        named["condition"] = found.condition
    for what in ("heads", "units", "text_units"):
        named |= {f"{i}.{what}": scores for i, scores in enumerate(getattr(found, what))}
    return named


@pytest.mark.parametrize("form", ["AdaLN", "Static-LN"])
def test_a_score_is_the_square_of_what_the_gate_moves(form: str) -> None:
    """Of a velocity of one number a sample, whose sign does not matter, so nothing is estimated."""
    model = make(replace(FORMS[form], num_single_layers=2)).module
    found = kinds(model, measure(model, [lambda: velocity(model)[:, 5, :1]]))
    assert found.keys() >= {"residual", "0.heads", "0.text_units", "1.heads", "2.units"}
    for kind, scores in found.items():
        for index in range(0, len(scores), 1 if len(scores) <= HEADS else 29):
            change_B = moved(model, kind, len(scores), index)[:, 5, 0]
            expected = change_B.square().sum().item()
            least = 1e-4 * scores.max().item()
            assert scores[index].item() == pytest.approx(expected, rel=APART, abs=least), kind


def test_random_signs_estimate_the_change_of_the_whole_velocity() -> None:
    """Hutchinson: over many signs it is the sum of squares over all tokens and channels.

    The square of a random sum is off by 1.4 of itself, so that of 128 signs for each of two samples
    by 12 % or less.
    """
    model, batch = make(SMALL).module, 128
    found = kinds(model, measure(model, [lambda: velocity(model, batch=batch)] * 2, seed=3))
    for kind, scores in found.items():
        for index in (0, len(scores) // 2):
            change = moved(model, kind, len(scores), index)
            expected = batch * change.square().sum().item()
            least = 1e-3 * scores.max().item()
            assert scores[index].item() == pytest.approx(expected, rel=0.4, abs=least), kind


def silenced(name: str, columns: slice) -> NanoFlux:
    """The network with some columns of a weight at zero."""
    model = make(SMALL).whole()
    weight = model.get_submodule(name).weight.clone()
    weight[:, columns] = 0
    model.get_submodule(name).load_state_dict({"weight": weight}, strict=False, assign=True)
    return model


def test_what_is_never_looked_at_has_no_importance() -> None:
    single = "single_transformer_blocks.1.proj_out"
    model = silenced(single, slice(INSIDE, 2 * INSIDE))
    found = measure(model, [lambda: velocity(model)])
    assert found.heads[2][1] == 0
    assert found.heads[2][0] > 0
    model = silenced(single, slice(WIDTH, WIDTH + 10))
    found = measure(model, [lambda: velocity(model)])
    assert not found.units[2][:10].any()
    assert found.units[2][10:].any()
    model = silenced("transformer_blocks.0.ff_context.net.2", slice(3, 5))
    found = measure(model, [lambda: velocity(model)])
    assert not found.text_units[0][3:5].any()
    assert found.text_units[0].any()


def test_text_that_no_later_block_meets_has_no_importance() -> None:
    """Without single blocks the last double block's text leads nowhere."""
    model = make(replace(MICRO, num_layers=2, num_single_layers=0)).module
    found = measure(model, [lambda: velocity(model)])
    assert found.text_units[0].any()
    assert not found.text_units[1].any()
    assert found.heads[1].all()


def test_batches_add_up_and_a_seed_repeats() -> None:
    model = make(SMALL).module
    one, again, other = (
        kinds(model, measure(model, [lambda: velocity(model)], seed)) for seed in (0, 0, 1)
    )
    for kind in one:
        assert torch.equal(one[kind], again[kind])
        assert not torch.equal(one[kind], other[kind])
    single = [lambda: velocity(model)[:, 5, :1]]
    once, twice = (kinds(model, measure(model, single * n)) for n in (1, 2))
    for kind in once:
        torch.testing.assert_close(twice[kind], 2 * once[kind])


def test_a_static_network_has_no_condition_to_cut() -> None:
    model = make(FORMS["Static-LN"]).module
    found = measure(model, [lambda: velocity(model)])
    assert found.condition.tolist() == [0] * WIDTH
    assert (len(found.heads), len(found.units), len(found.text_units)) == (4, 4, 1)


@pytest.mark.parametrize("grad", [True, False])
def test_measuring_leaves_the_network_as_it_was(grad: bool) -> None:
    model = make(SMALL).whole()
    model.proj_out.requires_grad_(grad)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    expected = velocity(model)
    with torch.no_grad():
        measure(model, [lambda: velocity(model)])
    assert torch.equal(velocity(model), expected)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
        assert p.requires_grad == (grad and name.startswith("proj_out."))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_hooks_go_when_a_run_fails() -> None:
    model = make(SMALL).whole()

    def fail() -> Tensor:
        velocity(model)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, [fail])
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


def test_inputs_are_what_a_module_is_given_last() -> None:
    layer = nn.Linear(2, 2)
    with inputs_of({"layer": layer}) as seen:
        for value in (1.0, 2.0):
            layer(torch.full((1, 2), value, requires_grad=True)).sum().backward()
    assert seen["layer"].tolist() == [[2, 2]]
    assert torch.equal(seen["layer"].grad, layer.weight.sum(0, keepdim=True))
