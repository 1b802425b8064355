"""What training stands on: Muon against torch.optim.Muon, recorded answers, token routing.

Shapes: N matrices, R rows, C columns, B batch, S image tokens, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn

from nanoflux_mobile.data.captions import examples
from nanoflux_mobile.data.scenes import BACKGROUNDS, COLOURS, SHAPES, cells, render
from nanoflux_mobile.distill.answers import Answers, as_kept
from nanoflux_mobile.distill.muon import Muon, orthogonalise
from nanoflux_mobile.distill.tiny_teacher import CLASSES, Pupil, routed
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.nanoflux_layers import rope_tables

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


# Recorded answers


def told(seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    shapes = {"x_BSC": (2, 4, 3), "text_BTJ": (2, 5, 6), "pooled_BP": (2, 7)}
    clean = {name: normal(seed + i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    return {**clean, "velocity": scale * normal(seed + 9, 2, 4, 3)}


def never() -> dict[str, Tensor]:
    raise AssertionError("the answer is recorded already")


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype == torch.float32
        assert torch.equal(tensor, second[name]), name


def test_an_answer_is_the_same_to_the_bit_whether_made_or_read(tmp_path):
    answers = Answers(tmp_path, 3)
    made = answers.get(1, told)
    assert_same(made, answers.get(1, never))
    for name, tensor in told().items():
        assert torch.equal(made[name], tensor.half().float())
        assert not torch.equal(made[name], tensor)
    assert [answers.index(step) for step in range(5)] == [0, 1, 2, 0, 1]


def test_what_half_precision_cannot_hold_is_kept_whole(tmp_path):
    big = {**told(), "text_BTJ": 1e5 * told()["text_BTJ"]}
    made = Answers(tmp_path, 1).get(0, lambda: big)
    assert torch.equal(made["text_BTJ"], big["text_BTJ"])
    assert made["text_BTJ"].abs().max() > torch.finfo(torch.float16).max
    assert torch.equal(made["velocity"], big["velocity"].half().float())
    assert_same(made, Answers(tmp_path, 1).get(0, never))
    for edge in (65504.0, 65519.0, 65520.0, 1e38):
        assert as_kept(torch.tensor([-edge])).isfinite().all()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in the header": lambda data: data[:20],
    "cut in a tensor": lambda data: data[:-1],
    "text": lambda data: b"not tensors at all",
    "huge header": lambda data: b"\xff" * 8 + data[8:],
    "of other tensors": lambda data: save({"weight": torch.ones(2)}),
    "of fewer tensors": lambda data: save({"velocity": torch.ones(2)}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_answer_is_made_again(tmp_path, damage):
    answers = Answers(tmp_path, 1)
    first = answers.get(0, told)
    (path,) = tmp_path.iterdir()
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert_same(first, answers.get(0, told))
    assert_same(first, answers.get(0, never))


def test_many_may_record_one_answer_at_once(tmp_path):
    answers, meeting = Answers(tmp_path, 1), Barrier(6)

    def make() -> dict[str, Tensor]:
        meeting.wait()  # all have seen that it is missing
        return told()

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: answers.get(0, make), range(6)))
    for other in found[1:]:
        assert_same(found[0], other)
    assert [path.name for path in tmp_path.iterdir()] == ["000000.safetensors"]


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
