"""What a chain is compared with: cuts by the size of weights, and a network from nothing.

Shapes: D width, H heads, K head width.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nanoflux_mobile.compress.magnitude import magnitudes
from nanoflux_mobile.distill import desk as desks
from nanoflux_mobile.distill.stages import one_shot
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.weights import Network, in_memory
from tests.unit.micro_flux import FORMS, MICRO, make, unread, velocity

LOUD = 100.0
"""So much larger that no random weight comes near."""


class Parts:
    """As much of a checkpoint as this stage looks at."""

    def __init__(self, denoiser: Network) -> None:
        self.denoiser, self.flux = denoiser, denoiser.skeleton.cfg


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(one_shot, "with_network", lambda parts, network: Parts(network))


def desk_of(network: Network) -> desks.Desk:
    parts = Parts(network)
    parts.networks = parts
    return desks.Desk(parts, parts, None, None, 2, 4, 0, "cpu", {})


def scaled(network: Network, factors: dict[str, torch.Tensor]) -> Network:
    """The network with some tensors multiplied along their first axis."""
    weights = dict(network.weights)
    for name, factor in factors.items():
        tensor = network.tensor(name)
        weights[name] = in_memory(tensor * factor.view(-1, *[1] * (tensor.ndim - 1)))
    return Network(network.skeleton, weights)


def test_a_unit_counts_by_all_weights_that_read_or_write_it():
    network = make(MICRO)
    found = magnitudes(network)
    name = "transformer_blocks.0.ff.net"
    wrote = network.tensor(f"{name}.0.proj.weight").double().square().sum(1)
    bias = network.tensor(f"{name}.0.proj.bias").double().square()
    read = network.tensor(f"{name}.2.weight").double().square().sum(0)
    torch.testing.assert_close(found.units[0], wrote + bias + read)


def test_a_head_of_a_single_block_counts_by_values_and_its_share_of_the_last_linear():
    network = make(MICRO)
    last = "single_transformer_blocks.1"
    wrote = network.tensor(f"{last}.attn.to_v.weight").double().square().sum(1)
    bias = network.tensor(f"{last}.attn.to_v.bias").double().square()
    read = network.tensor(f"{last}.proj_out.weight").double().square().sum(0)[: MICRO.width]
    by_head = (wrote + bias + read).view(MICRO.num_attention_heads, -1).sum(1)
    torch.testing.assert_close(magnitudes(network).heads[MICRO.num_layers + 1], by_head)


@pytest.mark.parametrize("form", FORMS)
def test_every_axis_has_a_size_in_every_form(form):
    cfg = FORMS[form]
    found = magnitudes(make(cfg))
    assert found.residual.shape == found.condition.shape == (cfg.width,)
    assert bool((found.residual > 0).all())
    assert bool((found.condition > 0).all()) == (cfg.static_steps == 0)
    assert [len(scores) for scores in found.heads] == [cfg.num_attention_heads] * 4
    assert [len(scores) for scores in found.text_units] == [4 * cfg.width] * cfg.num_layers


def test_the_loudest_heads_and_blocks_stay():
    quiet = torch.ones(MICRO.width)
    loud = quiet.clone()
    loud[MICRO.attention_head_dim : 2 * MICRO.attention_head_dim] = LOUD  # the second head
    block = torch.full((MICRO.width,), LOUD)
    network = scaled(
        make(MICRO),
        {
            "transformer_blocks.0.attn.to_v.weight": loud,
            "single_transformer_blocks.2.proj_out.weight": block,
        },
    )
    settings = one_shot.Settings(heads="1", channels="8", blocks="2")
    student = one_shot.cut(desk_of(network), settings).denoiser
    cfg = student.skeleton.cfg
    assert (cfg.num_attention_heads, cfg.attention_head_dim, cfg.num_single_layers) == (1, 8, 2)
    assert student.tensor("transformer_blocks.0.attn.to_v.weight").abs().max() > LOUD / 10
    kept = student.tensor("single_transformer_blocks.1.proj_out.weight")
    assert kept.abs().max() > LOUD / 10
    assert bool(velocity(student.whole()).isfinite().all())


def test_a_network_from_nothing_starts_silent_and_the_same_for_a_seed():
    settings = one_shot.Settings(heads="2", channels="6", blocks="1", choose="random")
    one, other = (one_shot.cut(desk_of(unread(MICRO)), settings).denoiser for _ in range(2))
    assert velocity(one.whole()).abs().max() == 0
    for name in one.weights:
        assert torch.equal(one.tensor(name), other.tensor(name)), name


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"heads": "3"}, "heads"), ({"blocks": "1/2"}, "blocks"), ({"channels": "7"}, "channels")],
)
def test_sizes_that_are_no_smaller_network_are_refused(changed, said):
    settings = replace(one_shot.Settings(heads="2", channels="8", blocks="2"), **changed)
    with pytest.raises(InputError, match=said):
        one_shot.outline(Parts(unread(MICRO)), settings)
