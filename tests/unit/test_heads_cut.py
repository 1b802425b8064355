"""Cut C1: fewer heads. A network that holds a smaller one twice must give it back.

Shapes: D width, H heads, K head width, F hidden units.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanoflux_mobile.compress.heads import Kept, cut_heads, first, most_important, top
from nanoflux_mobile.compress.importance import measure
from nanoflux_mobile.compress.narrowing import BlockCut, Cut, keep, narrowed
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.weights import Network, in_memory
from tests.unit.micro_flux import FLOAT32, FORMS, MICRO, make, runs, unread, velocity

JOINED = "proj_out.weight"


def twice(small: Network[NanoFlux]) -> Network[NanoFlux]:
    """Twice the heads: everything is computed two times over, and the second is never looked at.

    Layer norm says the same of a vector and of that vector twice, so nothing else changes.
    """
    cfg = small.skeleton.cfg
    with torch.device("meta"):
        wide = NanoFlux(replace(cfg, num_attention_heads=2 * cfg.num_attention_heads)).eval()
    shapes = {name: tuple(p.shape) for name, p in wide.state_dict().items()}
    found = {n: in_memory(_twice(n, small.tensor(n), shape)) for n, shape in shapes.items()}
    return Network(wide, found)


def _twice(name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if name == "step_table":
        return x.repeat(1, 1, 2)
    if x.shape[0] < shape[0]:
        repeats = (1, 2, *[1] * (x.ndim - 1))
        x = x.unflatten(0, (_rows(name), -1)).repeat(repeats).flatten(0, 1)
    if x.ndim > 1 and x.shape[1] < shape[1]:
        parts = x.split([shape[0] // 2, x.shape[1] - shape[0] // 2], 1) if _joined(name) else (x,)
        x = torch.cat([torch.cat((part, torch.zeros_like(part)), 1) for part in parts], 1)
    return x


def _rows(name: str) -> int:
    """How many modulation rows lie below each other in a tensor."""
    known = {"norm1.": 6, "norm1_context.": 6, "norm_out.": 2, "resnet": 2, ".norm.linear": 3}
    if ".linear." not in name or "embed" in name:
        return 1
    return next(rows for part, rows in known.items() if part in name)


def _joined(name: str) -> bool:
    return name.startswith("single") and name.endswith(JOINED)


def hidden(small: Network[NanoFlux], seed: int = 3) -> tuple[Network[NanoFlux], Kept]:
    """Twice the network in another order, each block its own, and where the smaller one lies."""
    wide, rng = twice(small), torch.Generator().manual_seed(seed)
    cfg = wide.skeleton.cfg

    def order(count: int) -> Tensor:
        return torch.randperm(count, generator=rng)

    blocks = range(cfg.num_layers + cfg.num_single_layers)
    stream, condition = order(cfg.width), order(cfg.width)
    heads = [order(cfg.num_attention_heads) for _ in blocks]
    units = [order(4 * cfg.width) for _ in blocks]
    text_units = [order(4 * cfg.width) for _ in range(cfg.num_layers)]
    inside = torch.arange(cfg.attention_head_dim)
    channels = [(h[:, None] * cfg.attention_head_dim + inside).flatten() for h in heads]
    cuts = [
        BlockCut(
            keep(channels[i]),
            keep(channels[i]),
            keep(inside),
            keep(units[i]),
            keep(text_units[i]) if i < cfg.num_layers else None,
        )
        for i in blocks
    ]
    cut = Cut(keep(stream), keep(condition), keep(torch.arange(cfg.width)), cuts)

    def firsts(order_N: Tensor) -> Tensor:
        return (order_N < len(order_N) // 2).nonzero().flatten()

    kept = Kept(
        firsts(stream),
        firsts(condition),
        [firsts(h) for h in heads],
        [firsts(u) for u in units],
        [firsts(u) for u in text_units],
    )
    return narrowed(wide, cfg, cut), kept


def check_same(cut: Network[NanoFlux], small: Network[NanoFlux]) -> None:
    for low in runs(small.skeleton.cfg):
        expected = velocity(small.module, low)
        torch.testing.assert_close(velocity(cut.module, low), expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("form", FORMS)
def test_twice_a_network_says_what_it_says_itself(form: str) -> None:
    """Of the construction, by the model alone."""
    small = make(FORMS[form])
    check_same(twice(small), small)


@pytest.mark.parametrize("form", FORMS)
def test_the_first_heads_are_the_network_that_was_there_first(form: str) -> None:
    small = make(FORMS[form])
    cut = cut_heads(twice(small), MICRO.num_attention_heads)
    assert cut.skeleton.cfg == FORMS[form]
    for name in small.weights:
        assert torch.equal(cut.tensor(name), small.tensor(name)), name


@pytest.mark.parametrize("form", FORMS)
def test_heads_and_units_are_taken_where_they_lie_in_each_block(form: str) -> None:
    small = make(FORMS[form])
    wide, kept = hidden(small)
    assert not torch.equal(kept.heads[0], kept.heads[1]), "blocks must differ to prove anything"
    check_same(cut_heads(wide, MICRO.num_attention_heads, kept), small)


@pytest.mark.parametrize("form", ["AdaLN", "guidance", "Static-LN"])
def test_importance_finds_the_part_that_is_looked_at(form: str) -> None:
    """What nobody reads does not move the velocity, so the other half is kept.

    Residual channels are left out: layer norm looks at them all.
    """
    small = make(FORMS[form])
    wide, kept = hidden(small)
    model = wide.module
    measured = measure(model, [lambda: velocity(model)] * 2)
    found = most_important(wide.skeleton.cfg, MICRO.num_attention_heads, measured)
    looked_at = {name: getattr(kept, name) for name in ("heads", "units", "text_units")}
    if not FORMS[form].static_steps:
        looked_at["condition"] = [kept.condition]
    for name, blocks in looked_at.items():
        scored = [measured.condition] if name == "condition" else getattr(measured, name)
        for scores, index in zip(scored, blocks, strict=True):
            unread = torch.ones_like(scores, dtype=torch.bool).index_fill(0, index, False)
            assert not scores[unread].any(), name
            assert scores[index].any(), name
    known = replace(found, residual=kept.residual)
    check_same(cut_heads(wide, MICRO.num_attention_heads, known), small)


def test_the_papers_choice_takes_the_beginning_of_every_axis() -> None:
    wide = make(MICRO)
    cut, width = cut_heads(wide, 2), 16
    single = "single_transformer_blocks.1."
    joined = wide.tensor(single + "proj_out.weight")[:width]
    expected = torch.cat((joined[:, :width], joined[:, 24 : 24 + 4 * width]), 1)
    assert torch.equal(cut.tensor(single + "proj_out.weight"), expected)
    rows = wide.tensor("transformer_blocks.0.norm1.linear.weight").view(6, 24, 24)
    expected = rows[:, :width, :width].reshape(6 * width, width)
    assert torch.equal(cut.tensor("transformer_blocks.0.norm1.linear.weight"), expected)
    assert (cut.skeleton.cfg.num_attention_heads, cut.skeleton.cfg.width) == (2, width)
    assert cut.skeleton.cfg == replace(MICRO, num_attention_heads=2)


@pytest.mark.parametrize("heads", [-1, 0, 3, 4])
def test_as_many_heads_as_there_are_or_none_are_refused_before_any_reading(heads: int) -> None:
    with pytest.raises(InputError, match=rf"become {heads}, .* has 3; give 1 to 2"):
        cut_heads(unread(MICRO), heads)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.data())
def test_the_top_is_no_lower_than_the_rest_and_in_order(scores: list[int], data) -> None:
    count = data.draw(st.integers(1, len(scores)))
    chosen = top(torch.tensor(scores).float(), count).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == count
    rest = [score for i, score in enumerate(scores) if i not in chosen]
    assert not rest or min(scores[i] for i in chosen) >= max(rest)


def test_the_first_choice_has_a_place_for_every_block() -> None:
    chosen = first(MICRO, 2)
    assert [len(group) for group in (chosen.heads, chosen.units, chosen.text_units)] == [4, 4, 1]
