"""Cut C3: similar single blocks become one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nanoflux_mobile.compress.importance import inputs_of
from nanoflux_mobile.compress.merging import (
    Runs,
    Similarity,
    deleted,
    measure,
    merged,
    one_run,
    similar_runs,
)
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.weights import Network, network
from tests.unit.micro_flux import FLOAT32, FORMS, MICRO, TEXT, make, unread, velocity

SINGLES = "single_transformer_blocks."
COUNT = MICRO.num_single_layers
TWO_AND_ONE: Runs = ((0, 2), (2, 3))


def with_single_blocks(numbers: tuple[int, ...], cfg: FluxConfig = MICRO) -> Network[NanoFlux]:
    """The micro network with these of its single blocks, in this order, repeats allowed."""
    source = make(cfg).whole()
    with torch.device("meta"):
        model = NanoFlux(replace(cfg, num_single_layers=len(numbers))).eval()
    state = {n: t for n, t in source.state_dict().items() if not n.startswith(SINGLES)}
    for place, number in enumerate(numbers):
        block = source.single_transformer_blocks[number].state_dict()
        state |= {f"{SINGLES}{place}.{name}": tensor for name, tensor in block.items()}
    model.load_state_dict(state, assign=True)
    return network(model.requires_grad_(False))


def block(network: Network[NanoFlux], number: int) -> dict[str, torch.Tensor]:
    prefix = f"{SINGLES}{number}."
    names = [name for name in network.weights if name.startswith(prefix)]
    return {name.removeprefix(prefix): network.tensor(name) for name in names}


@pytest.mark.parametrize("form", ["AdaLN", "guidance"])
def test_the_mean_of_equal_blocks_is_that_block(form: str) -> None:
    before = with_single_blocks((0, 1, 1, 1, 2), FORMS[form])
    after = merged(before, one_run(5, 1, 4))
    expected = make(FORMS[form])
    assert after.skeleton.cfg == FORMS[form]
    for name in expected.weights:
        torch.testing.assert_close(after.tensor(name), expected.tensor(name), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        velocity(after.module), velocity(expected.module), rtol=0, atol=FLOAT32
    )


def test_a_block_is_the_mean_of_its_run() -> None:
    before, after = make(MICRO), merged(make(MICRO), TWO_AND_ONE)
    first, second, third = (block(before, i) for i in range(3))
    for name, tensor in block(after, 0).items():
        expected = torch.stack((first[name], second[name])).mean(0)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)
    for name, tensor in block(after, 1).items():
        assert torch.equal(tensor, third[name])
    for name in set(after.weights) - {n for n in after.weights if n.startswith(SINGLES)}:
        assert torch.equal(after.tensor(name), before.tensor(name)), name


def test_deleting_keeps_the_first_block_of_every_run() -> None:
    after = deleted(make(MICRO), ((0, 1), (1, 3)))
    expected = with_single_blocks((0, 1))
    assert after.weights.keys() == expected.weights.keys()
    for name in expected.weights:
        assert torch.equal(after.tensor(name), expected.tensor(name)), name


def test_averaging_leaves_the_blocks_it_was_made_from() -> None:
    before = make(MICRO)
    kept = {name: stored.read().clone() for name, stored in before.weights.items()}
    merged(before, one_run(COUNT, 0, 3)).whole()
    for name, tensor in kept.items():
        assert torch.equal(before.tensor(name), tensor), name


def test_no_runs_of_more_than_one_change_nothing() -> None:
    before = make(MICRO)
    for way in (merged, deleted):
        after = way(before, one_run(COUNT, 1, 2))
        assert after.skeleton.cfg == MICRO
        assert torch.equal(velocity(after.module), velocity(before.module))


def test_flux_goes_from_38_single_blocks_to_24() -> None:
    """One run of 15, as the paper's counts imply."""
    cuts = one_run(38, 7, 22)
    assert len(cuts) == 24
    assert cuts[6:9] == ((6, 7), (7, 22), (22, 23))


SCORES = st.lists(st.floats(-1, 1), min_size=2, max_size=40)


@given(SCORES, st.data())
def test_runs_cover_every_block_once_and_leave_as_many_as_asked(scores, data) -> None:
    text = data.draw(st.lists(st.floats(-1, 1), min_size=len(scores), max_size=len(scores)))
    blocks = data.draw(st.integers(1, len(scores) - 1))
    found = similar_runs(Similarity(tuple(scores), tuple(text)), blocks)
    assert len(found) == blocks
    assert [i for run in found for i in range(*run)] == list(range(len(scores)))
    least = [min(pair) for pair in zip(scores, text, strict=True)]
    seams = [least[i] + least[i + 1] for i in range(len(least) - 1)]
    apart = {stop - 1 for _, stop in found[:-1]}
    joined = set(range(len(seams))) - apart
    assert min(seams[i] for i in joined) >= max((seams[i] for i in apart), default=-2)


@given(st.integers(1, 40), st.data())
def test_one_run_covers_every_block_once(present: int, data) -> None:
    start = data.draw(st.integers(0, present - 1))
    stop = data.draw(st.integers(start + 1, present))
    found = one_run(present, start, stop)
    assert [i for run in found for i in range(*run)] == list(range(present))
    assert len(found) == present - (stop - start) + 1


@pytest.mark.parametrize(
    ("image", "text", "expected"),
    [
        ((0.1, 0.9, 0.95, 0.9, 0.1), (1, 1, 1, 1, 1), ((0, 1), (1, 4), (4, 5))),
        ((0.9, 0.9, 0.1, 0.8, 0.8), (1, 1, 1, 1, 1), ((0, 2), (2, 3), (3, 5))),
        ((1, 1, 1, 1, 1), (0.9, 0.9, 0.1, 0.8, 0.8), ((0, 2), (2, 3), (3, 5))),
        ((0.99, 0.99, 0.5, 0.5, 0.5), (0.1, 0.1, 0.5, 0.5, 0.5), ((0, 1), (1, 2), (2, 5))),
    ],
)
def test_the_most_similar_neighbours_are_joined(image, text, expected) -> None:
    """A block counts as similar only where image and text both are."""
    assert similar_runs(Similarity(image, text), 3) == expected


@pytest.mark.parametrize("blocks", [-1, 0, 3, 4])
def test_as_many_blocks_as_there_are_or_none_are_refused(blocks: int) -> None:
    alike = Similarity((0.9,) * COUNT, (0.9,) * COUNT)
    with pytest.raises(InputError, match=rf"become {blocks}, .* has 3; give 1 to 2"):
        similar_runs(alike, blocks)


@pytest.mark.parametrize(("start", "stop"), [(2, 2), (2, 1), (-1, 2), (1, 4)])
def test_a_run_of_no_blocks_is_refused(start: int, stop: int) -> None:
    with pytest.raises(InputError, match=f"blocks {start} to {stop} are no run of the 3"):
        one_run(COUNT, start, stop)


@pytest.mark.parametrize(
    "runs", [(), ((0, 2),), ((0, 1), (2, 3)), ((0, 2), (1, 3)), ((1, 3), (0, 1)), ((0, 4),)]
)
@pytest.mark.parametrize("way", [merged, deleted])
def test_runs_that_miss_a_block_are_refused_before_any_reading(way, runs: Runs) -> None:
    with pytest.raises(InputError, match="do not cover 3 single blocks once"):
        way(unread(MICRO), runs)


def test_an_empty_run_is_refused() -> None:
    with pytest.raises(InputError, match="do not cover"):
        merged(unread(MICRO), ((0, 2), (2, 2), (2, 3)))


@pytest.mark.parametrize("form", ["Static-LN", "AdaLN resampled", "Static-LN resampled"])
def test_blocks_are_not_merged_after_what_counts_them(form: str) -> None:
    with pytest.raises(InputError, match="before Static-LN and token downsampling, not after"):
        merged(unread(FORMS[form]), TWO_AND_ONE)


def test_similarity_is_the_cosine_of_what_enters_and_leaves_a_block() -> None:
    """Against the blocks' own inputs: the next block's is what the one before gave out."""
    model = make(MICRO).module
    found = measure(model, [lambda: velocity(model)] * 2, TEXT)
    with inputs_of(dict(enumerate(model.single_transformer_blocks))) as seen, torch.no_grad():
        velocity(model)
    for i in range(COUNT - 1):
        cosine = F.cosine_similarity(seen[i], seen[i + 1], dim=-1)
        assert found.image[i] == pytest.approx(cosine[:, TEXT:].mean().item(), abs=1e-5)
        assert found.text[i] == pytest.approx(cosine[:, :TEXT].mean().item(), abs=1e-5)
    assert found.image[0] != pytest.approx(found.text[0], abs=1e-3), "they must differ to tell"


def test_a_block_that_adds_nothing_is_similar_to_its_input() -> None:
    model = make(MICRO).whole()
    silent = model.single_transformer_blocks[1].proj_out
    zeros = {name: torch.zeros_like(p) for name, p in silent.named_parameters()}
    silent.load_state_dict(zeros, assign=True)
    found = measure(model, [lambda: velocity(model)], TEXT)
    assert (found.image[1], found.text[1]) == pytest.approx((1, 1), abs=1e-6)
    assert max(found.image[0], found.image[2], found.text[0], found.text[2]) < 0.999
    assert not any(part._forward_hooks for part in model.modules()), "no hook is left behind"
