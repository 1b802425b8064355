"""Training: Muon against torch.optim.Muon, exact resume, the learning rate, token routing.

Shapes: N matrices, R rows, C columns, B batch, S image tokens, T text tokens.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

from nanoflux_mobile.data.captions import examples
from nanoflux_mobile.data.scenes import BACKGROUNDS, COLOURS, SHAPES, cells, render
from nanoflux_mobile.distill.muon import Muon, orthogonalise
from nanoflux_mobile.distill.tiny_teacher import CLASSES, Pupil, routed
from nanoflux_mobile.distill.trainer import (
    TrainConfig,
    learning_rate,
    make_optimizers,
    train,
)
from nanoflux_mobile.models.nanoflux import FluxConfig, NanoFlux, rope_tables

NEAR_ONE = (0.65, 1.25)
"""Five quintic steps do not converge: the published coefficients end between 0.7 and 1.2."""
BFLOAT16 = 0.02
"""Share of an update's norm: torch orthogonalises in bfloat16, in steps of 2**-8, five times."""
FLOAT32 = 1e-5
"""Share of the largest value: the same sums in another order."""


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_values(seed: int, rows: int, columns: int, low: float) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix with singular values from `low` to 1, and its singular vectors on both sides."""
    rank = min(rows, columns)
    left = torch.linalg.qr(normal(seed, rows, rank))[0]
    right = torch.linalg.qr(normal(seed + 1, columns, rank))[0]
    return left @ torch.diag(torch.linspace(low, 1, rank)) @ right.T, left, right


# Muon


@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 10_000),
)
def test_singular_values_end_near_one_and_vectors_stay(rows, columns, scale, seed):
    # 0.1 of the largest: after the division by the norm, five steps lift it up to the plateau.
    matrix, left, right = with_values(seed, rows, columns, low=0.1)
    found = orthogonalise(scale * matrix[None])[0]
    assert found.shape == matrix.shape
    seen = left.T @ found @ right
    values = torch.linalg.svdvals(found)
    assert values.min() >= NEAR_ONE[0]
    assert values.max() <= NEAR_ONE[1]
    # The diagonal of `seen` holds the values, in the vectors' own order; nothing lies beside it.
    assert (seen - seen.diagonal().diag()).abs().max() <= 1e-3


def test_a_stack_is_treated_matrix_by_matrix():
    stack = normal(0, 4, 6, 9)
    expected = torch.cat([orthogonalise(matrix[None]) for matrix in stack])
    assert (orthogonalise(stack) - expected).abs().max() <= FLOAT32


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5)])
def test_a_matrix_and_its_transpose_are_treated_alike(shape):
    x = normal(1, 1, *shape)
    expected = orthogonalise(x).transpose(1, 2)
    assert (orthogonalise(x.transpose(1, 2)) - expected).abs().max() <= 100 * FLOAT32


def test_a_gradient_of_zero_moves_nothing_but_the_decay():
    weight = nn.Parameter(normal(2, 4, 6))
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(weight.detach(), before * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_torch(shape, decay):
    ours, theirs = (nn.Parameter(normal(3, *shape)) for _ in range(2))
    start = ours.detach().clone()
    optimizers = (
        Muon([ours], lr=0.02, weight_decay=decay, momentum=0.95),
        torch.optim.Muon(
            [theirs], lr=0.02, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
    )
    for step in range(5):
        # One gradient for both: their own would drift apart with the weights.
        gradient = with_values(step, *shape, low=0.2)[0]
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = gradient.clone()
            optimizer.step()
    moved = (theirs.detach() - start).norm()
    assert moved > 0.1
    assert (ours.detach() - theirs.detach()).norm() <= BFLOAT16 * moved


def test_a_kernel_is_the_matrix_of_its_rows_and_equal_shapes_go_together():
    gradient = normal(4, 3, 8, 4, 3, 3)
    kernels = [nn.Parameter(normal(5, 8, 4, 3, 3)) for _ in range(3)]
    matrices = [nn.Parameter(kernel.detach().flatten(1).clone()) for kernel in kernels]
    for kernel, matrix, g in zip(kernels, matrices, gradient, strict=True):
        kernel.grad, matrix.grad = g.clone(), g.flatten(1)
        Muon([matrix], lr=0.1).step()
    Muon(kernels, lr=0.1).step()
    for kernel, matrix in zip(kernels, matrices, strict=True):
        assert (kernel.detach().flatten(1) - matrix.detach()).abs().max() <= FLOAT32


def test_parameters_without_a_gradient_stay():
    used, idle = nn.Parameter(normal(6, 3, 3)), nn.Parameter(normal(7, 3, 3))
    before = idle.detach().clone()
    used.grad = normal(8, 3, 3)
    Muon([used, idle], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(idle.detach(), before)


# The learning rate


CONFIG = TrainConfig(steps=1000, lr=0.02, warmup=50, decay=0.3)


def test_the_learning_rate_rises_rests_and_falls():
    rates = [learning_rate(CONFIG, step) for step in range(CONFIG.steps)]
    assert rates[0] == pytest.approx(0.02 / 50)
    assert all(a < b for a, b in pairwise(rates[:50]))
    assert set(rates[49:700]) == {0.02}
    steps_down = [a - b for a, b in pairwise(rates[700:991])]
    assert steps_down == pytest.approx([0.02 / 300] * 290)
    assert rates[-1] == pytest.approx(0.02 / 100)


@given(
    steps=st.integers(1, 500),
    warmup=st.integers(1, 600),
    decay=st.floats(0, 1),
    data=st.data(),
)
def test_the_learning_rate_is_never_above_the_peak_nor_zero(steps, warmup, decay, data):
    config = TrainConfig(steps=steps, lr=0.1, warmup=warmup, decay=decay)
    step = data.draw(st.integers(0, steps - 1))
    assert 0 < learning_rate(config, step) <= 0.1


# The trainer


class Small(nn.Module):
    """Something for each optimizer: matrices and a kernel in blocks, vectors, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.block = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.block_conv = nn.Conv1d(8, 8, 3, padding=1)
        self.out = nn.Linear(8, 1)

    def forward(self, ids_BS: Tensor) -> Tensor:
        x = self.block(self.embedding(ids_BS)).transpose(1, 2)
        return self.out(self.block_conv(x).transpose(1, 2))[..., 0]


SETTINGS = TrainConfig(steps=20, lr=0.02, warmup=5, ema=0.8, save_every_s=-1.0, log_every=5)
"""Saves after every step."""


class Lessons(Dataset[Tensor]):
    """Ids drawn from the seed and the step alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, step: int) -> Tensor:
        rng = torch.Generator().manual_seed(1000 * self.seed + step)
        return torch.randint(0, 10, (4, 6), generator=rng)


class Killed(Exception):
    """The process ends here."""


def new_small() -> Small:
    torch.manual_seed(0)
    return Small()


def run(
    out: Path, config: TrainConfig = SETTINGS, stop: int | None = None, seed: int = 1
) -> tuple[nn.Module, Small]:
    """Train, or be killed when step `stop` begins; returns the EMA weights and the model."""
    model = new_small()

    def loss_of(lesson: tuple[Tensor, ...], step: int) -> tuple[Tensor, dict[str, float]]:
        if step == stop:
            raise Killed
        (ids,) = lesson
        return (model(ids) - ids.float().cos()).square().mean(), {"figure": float(step)}

    return train(model, Lessons(seed), loss_of, config, out), model


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    for (name, mine), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name


def saved(out: Path) -> dict:
    return torch.load(out / "last.pt", weights_only=True)


@pytest.mark.parametrize("stops", [[10], [1], [3, 4, 19]], ids=str)
def test_a_killed_run_goes_on_as_if_it_had_never_stopped(tmp_path, stops):
    straight, straight_model = run(tmp_path / "straight")
    for stop in stops:
        with pytest.raises(Killed):
            run(tmp_path / "killed", stop=stop)
        assert saved(tmp_path / "killed")["step"] == stop
    resumed, resumed_model = run(tmp_path / "killed")
    assert_equal(straight, resumed)
    assert_equal(straight_model, resumed_model)
    first, second = (saved(tmp_path / name)["optimizers"] for name in ("straight", "killed"))
    for mine, other in zip(first, second, strict=True):
        for key, state in mine["state"].items():
            assert all(torch.equal(v, other["state"][key][name]) for name, v in state.items())


def test_killed_between_saves_the_lost_steps_are_trained_again(tmp_path):
    straight, _ = run(tmp_path / "straight")
    with pytest.raises(Killed):
        run(tmp_path / "killed", stop=6)
    with pytest.raises(Killed):  # this one never saves
        run(tmp_path / "killed", dataclasses.replace(SETTINGS, save_every_s=1e9), stop=15)
    assert saved(tmp_path / "killed")["step"] == 6
    assert_equal(straight, run(tmp_path / "killed")[0])


def test_a_save_that_was_cut_off_does_not_matter(tmp_path):
    straight, _ = run(tmp_path / "straight")
    with pytest.raises(Killed):
        run(tmp_path / "killed", stop=10)
    (tmp_path / "killed" / "last.partial").write_bytes(b"half a file")
    assert_equal(straight, run(tmp_path / "killed")[0])


def test_a_finished_run_is_loaded_and_not_trained_further(tmp_path):
    first, _ = run(tmp_path)
    again, _ = run(tmp_path, stop=0)
    assert_equal(first, again)


def test_runs_depend_on_their_data(tmp_path):
    """Otherwise equal weights above would prove nothing."""
    first, _ = run(tmp_path / "a", seed=1)
    other, _ = run(tmp_path / "b", seed=2)
    assert not torch.equal(first.block[0].weight, other.block[0].weight)


def test_training_lowers_the_loss_and_logs_it(tmp_path):
    run(tmp_path, dataclasses.replace(SETTINGS, steps=60))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(5, 65, 5))
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert [row["figure"] for row in rows] == [row["step"] - 1.0 for row in rows]


def test_the_returned_weights_are_the_running_mean_of_the_trained_ones(tmp_path):
    averaged, model = run(tmp_path / "a", dataclasses.replace(SETTINGS, ema=0.0))
    assert_equal(averaged, model)
    averaged, model = run(tmp_path / "b")
    assert not torch.equal(averaged.out.weight, model.out.weight)


def test_every_parameter_has_exactly_one_optimizer():
    model = new_small()
    adam, muon = make_optimizers(model, SETTINGS)
    held = [id(p) for o in (adam, muon) for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in muon.param_groups[0]["params"]] == [
        "block.0.weight",
        "block.2.weight",
        "block_conv.weight",
    ]


# Routing


ROUTED = FluxConfig(
    in_channels=8,
    num_layers=3,
    num_single_layers=4,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=12,
    pooled_projection_dim=6,
    guidance_embeds=False,
    axes_dims_rope=(2, 2, 4),
)


@pytest.fixture(scope="module")
def model(off_initial: Callable[[nn.Module, int], nn.Module]) -> NanoFlux:
    torch.manual_seed(0)
    return off_initial(NanoFlux(ROUTED), 1)


def routed_inputs(cells: int = 9, words: int = 5) -> tuple[Tensor, Tensor, Tensor, tuple]:
    x_BSC, text_BTJ = normal(1, 2, cells, ROUTED.in_channels), normal(2, 2, words, 12)
    rows_BND = 0.5 * normal(3, 2, ROUTED.modulation_rows, ROUTED.width)
    ids_LA = torch.cat((torch.zeros(words, 3), torch.arange(3.0 * cells).reshape(cells, 3)))
    return x_BSC, text_BTJ, rows_BND, rope_tables(ids_LA, ROUTED.axes_dims_rope)


@pytest.mark.parametrize("order", [range(9), (4, 0, 8, 2, 6, 1, 7, 3, 5)], ids=["sorted", "mixed"])
def test_routing_every_token_is_the_plain_forward(model, order):
    inputs = routed_inputs()
    expected = model(*inputs)
    found, seen = routed(model, *inputs, torch.tensor(list(order)))
    assert seen.shape == (2, 9, ROUTED.width)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= FLOAT32 * expected.abs().max()


def test_tokens_left_out_skip_the_middle_and_are_still_predicted(model):
    inputs = routed_inputs()
    kept = torch.tensor([0, 3, 4, 7])
    found, seen = routed(model, *inputs, kept)
    assert seen.shape == (2, 4, ROUTED.width)
    assert found.shape == inputs[0].shape
    assert (found - model(*inputs)).abs().max() > 1e-2
    # The order in which tokens are kept says nothing.
    again, seen_again = routed(model, *inputs, kept.flip(0))
    assert (seen_again.flip(1) - seen).abs().max() <= FLOAT32 * seen.abs().max()
    assert (again - found).abs().max() <= FLOAT32 * found.abs().max()


# Reading cells


@pytest.mark.parametrize("seed", range(20))
def test_cells_name_what_the_renderer_paints_there(seed):
    _, _, scene = next(examples(seed))
    picture, shown = render(scene), cells(scene).reshape(8, 8, 2)
    back = BACKGROUNDS[scene.background]
    for row, column in np.argwhere(shown[..., 0] == 0):
        tile = picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].reshape(-1, 3)
        assert (tile == back).all(1).any()
        assert list(BACKGROUNDS)[shown[row, column, 1] - len(COLOURS)] == scene.background
    for thing in scene.objects:
        words = [SHAPES.index(thing.shape) + 1, list(COLOURS).index(thing.colour)]
        own = np.argwhere((shown == words).all(-1))
        x, y = thing.x // 8, thing.y // 8
        assert {(y - 1, x - 1), (y - 1, x), (y, x - 1), (y, x)} <= set(map(tuple, own))
        tiles = [picture[8 * r : 8 * r + 8, 8 * c : 8 * c + 8].reshape(-1, 3) for r, c in own]
        assert (np.concatenate(tiles) == COLOURS[thing.colour]).all(1).any()


def test_reading_is_cross_entropy_per_cell():
    pupil = Pupil(NanoFlux(ROUTED))
    states, shown = normal(4, 2, 5, ROUTED.width), torch.randint(0, 6, (2, 5, 2))
    odds = pupil.reader(states).log_softmax(-1)
    shapes, colours = (part.log_softmax(-1) for part in odds.split(CLASSES, -1))
    expected = -(
        shapes.gather(-1, shown[..., :1]).mean() + colours.gather(-1, shown[..., 1:]).mean()
    )
    assert (pupil.misread(states, shown) - expected).abs() <= FLOAT32 * expected
