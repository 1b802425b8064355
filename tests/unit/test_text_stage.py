"""The text cut: a small encoder's start, its warm-up, and the roll-out through a frozen denoiser.

Shapes: B batch, S image tokens, T text tokens, C token channels, J text width, P pooled width.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path as Folder

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.utils.data import Dataset

from nanoflux_mobile.compress.static_ln import to_static
from nanoflux_mobile.compress.text import Sizes, cut_out, pretrained, sizes_of
from nanoflux_mobile.compress.token_downsampling import downsampled
from nanoflux_mobile.distill.desk import Desk
from nanoflux_mobile.distill.learning import TrainConfig
from nanoflux_mobile.distill.material import Material
from nanoflux_mobile.distill.rollout import (
    Prompts,
    block_gap,
    cut_off,
    prompt_states,
    rollout_loss,
    walk,
)
from nanoflux_mobile.distill.stages import text
from nanoflux_mobile.distill.stages.text import Settings, Span
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families.nanoflux import T5_KEYS, FluxParts, Networks, noise_levels
from nanoflux_mobile.families.nanoflux.flow import Clean, path_of, velocity
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.t5 import T5Config, T5Encoder
from nanoflux_mobile.models.vae import Autoencoder, VaeConfig
from nanoflux_mobile.sampler import euler
from nanoflux_mobile.strict_json import from_plain
from nanoflux_mobile.weights import Network, Stored, network

STEPS, BATCH, TOKENS, WIDTH, POOLED, VOCABULARY = 4, 3, 5, 12, 8, 11
LARGE = T5Config(VOCABULARY, WIDTH, 8, 24, 2, 2, 8, 16, 1e-6, "gated-gelu")
SMALL = Sizes(num_layers=1, d_model=8, d_ff=8, num_heads=2, d_kv=4)
FLUX = FluxConfig(16, 4, 2, 8, 2, WIDTH, POOLED, False, (2, 2, 4))
VAE = VaeConfig(3, 3, (8, 16), 1, 4, 4, 1.0, 0.0, True, False, True)
ALPHAS = (0.1, 0.2, 0.3)
FLOAT32 = 1e-5
"""Share of the largest value: the same sums in another order."""


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(module: nn.Module, seed: int) -> nn.Module:
    """Every weight off its initial value, so that each block and gate does something."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=rng))
    return module


def parts_of(kind: str = "adaln") -> FluxParts:
    """A random checkpoint: AdaLN, Static-LN, or Static-LN with low steps."""
    denoiser: Network[NanoFlux] = network(lively(NanoFlux(FLUX), 1))
    if kind != "adaln":
        denoiser = to_static(denoiser, normal(2, STEPS, FLUX.modulation_rows, FLUX.width))
    if kind == "low":
        denoiser = downsampled(denoiser, 1, 0.5)
    with torch.device("meta"):
        vae = Network(Autoencoder(VAE), {})
    encoder = network(lively(T5Encoder(LARGE), 3))
    return FluxParts(
        Networks(denoiser, encoder, vae), Tokenizer(models.WordLevel({"a": 0}, "a")), None,
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}, TOKENS, 8,
    )  # fmt: skip


class Ids(Dataset[tuple[Tensor]]):
    def __init__(self, seed: int, batch: int) -> None:
        self.seed, self.batch = seed, batch

    def __getitem__(self, step: int) -> tuple[Tensor]:
        rng = torch.Generator().manual_seed(1000 * self.seed + step)
        return (torch.randint(VOCABULARY, (self.batch, TOKENS), generator=rng),)


def desk_of(parts: FluxParts) -> Desk:
    def clean(lesson: tuple[Tensor, ...]) -> Clean:
        count = len(lesson[0])
        return Clean(torch.zeros(count, 4, 16), torch.zeros(0), normal(5, count, POOLED))

    material = Material(Ids, clean, lambda lesson: lesson[0], lambda lesson: lesson[0], {})
    return Desk(parts, parts, material, None, STEPS, BATCH, 0, "cpu", {"of": "a test"})


def prompts_of(own: Tensor | None = None) -> Prompts:
    taught = normal(6, BATCH, TOKENS, WIDTH)
    own = taught + 0.5 * normal(7, BATCH, TOKENS, WIDTH) if own is None else own
    return Prompts(own.requires_grad_(), taught, normal(8, BATCH, POOLED))


NOISE = normal(9, BATCH, 4, 16)


# The small encoder before training


def cuttable(large: T5Config, wanted: Sizes) -> T5Encoder:
    """An encoder that uses no more than `wanted` has, so that nothing is lost when it is cut: all
    is written along a few directions, and what is to go writes nothing."""
    encoder = lively(T5Encoder(large), 11)
    d, h, k = wanted.d_model, wanted.num_heads, wanted.d_kv
    span = torch.linalg.qr(normal(12, large.d_model, d)).Q
    inner = torch.zeros(large.num_heads, large.d_kv)
    inner[:h, :k] = 1
    with torch.no_grad():
        encoder.shared.weight.copy_(encoder.shared.weight @ span @ span.T)
        for i, block in enumerate(encoder.encoder.block):
            attention, mlp = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
            stays = float(i in (0, len(encoder.encoder.block) - 1))
            for linear in (attention.q, attention.k):
                linear.weight.mul_(inner.flatten()[:, None])
            attention.o.weight.copy_(stays * span @ span.T @ attention.o.weight * inner.flatten())
            mlp.wo.weight.copy_(stays * span @ span.T @ mlp.wo.weight)
            mlp.wo.weight[:, wanted.d_ff :] = 0
    return encoder


@pytest.mark.parametrize("projected", [0, 10])
def test_what_is_cut_out_is_the_encoder_where_nothing_is_lost(projected):
    wanted = Sizes(num_layers=2, d_model=6, d_ff=16, num_heads=2, d_kv=5)
    large = dataclasses.replace(LARGE, num_layers=3, num_heads=3, projection_width=projected)
    teacher = cuttable(large, wanted)
    student = cut_out(network(teacher), wanted)
    assert sizes_of(student.skeleton.cfg) == wanted
    ids = Ids(0, 3)[0][0]
    truth = teacher(ids)
    assert student.module(ids).shape == truth.shape
    # The norms add 1e-6 to mean squares over another number of channels.
    assert (student.module(ids) - truth).abs().max() <= 1e-4 * truth.abs().max()


def test_a_cut_reads_the_same_each_time_and_leaves_the_teacher():
    teacher = parts_of().networks.text_encoder
    before = {name: teacher.tensor(name).clone() for name in teacher.weights}
    student, ids = cut_out(teacher, SMALL), Ids(0, 2)[0][0]
    assert torch.equal(student.whole()(ids), student.whole()(ids))
    assert all(torch.equal(before[name], teacher.tensor(name)) for name in before)
    # A direction that no hidden channel reads could never be learned.
    hidden = student.module.projection
    assert hidden.fc1.weight.abs().sum(1).min() > 0
    assert hidden.fc2.weight.shape == (WIDTH, WIDTH)


def test_sizes_of_t5_large_are_those_published():
    # google/t5-v1_1-large's encoder has 341,231,104 parameters; two linears with biases follow.
    xxl = T5Config(32128, 4096, 64, 10240, 24, 64, 32, 128, 1e-6, "gated-gelu")
    with torch.device("meta"):
        skeleton = T5Encoder(xxl)
    unread = {
        name: Stored(tuple(t.shape), "bfloat16", 0, never)
        for name, t in skeleton.state_dict().items()
    }
    student = cut_out(Network(skeleton, unread), Sizes(24, 1024, 2816, 16, 64))
    assert student.count() == 341_231_104 + (1024 + 1) * 4096 + (4096 + 1) * 4096


def never() -> Tensor:
    raise AssertionError("a weight was read")


def test_an_outline_reads_no_weight():
    parts = parts_of()
    own = parts.networks
    unread = [
        dataclasses.replace(
            net, weights={n: dataclasses.replace(w, read=never) for n, w in net.weights.items()}
        )
        for net in (own.denoiser, own.text_encoder)
    ]
    parts = dataclasses.replace(parts, networks=Networks(*unread, own.vae))
    found = text.outline(parts, Settings(SMALL, rollout=Span(1, 1e-3, 1)))
    assert found.networks.text_encoder.count() < own.text_encoder.count()
    assert found.networks.denoiser is parts.networks.denoiser


def write_t5(folder: Folder, **changes: object) -> T5Encoder:
    """A whole T5 v1.0 as transformers leaves it: shared weights, a decoder, an old config."""
    said = {**dataclasses.asdict(LARGE), "d_model": 8, "d_ff": 8, "num_layers": 1, **changes}
    cfg = T5Config(**{**said, "feed_forward_proj": "relu"})
    encoder = lively(T5Encoder(cfg), 4)
    tensors = {name: t.clone() for name, t in encoder.state_dict().items()}
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    tensors["decoder.final_layer_norm.weight"] = torch.ones(8)
    tensors["lm_head.weight"] = torch.ones(VOCABULARY, 8)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    silent = ("feed_forward_proj", "relative_attention_max_distance")
    config = {k: v for k, v in said.items() if k not in silent}
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", **config}))
    return encoder


def test_a_pretrained_t5_gets_a_projection(tmp_path):
    given = write_t5(tmp_path / "t5", relative_attention_max_distance=128)
    student = pretrained(parts_of().networks.text_encoder, tmp_path / "t5", T5_KEYS).module
    assert student.cfg.feed_forward_proj == "relu"
    ids = Ids(0, 2)[0][0]
    assert torch.equal(student(ids), student.projection(given(ids)))


def test_an_encoder_that_was_cut_before_keeps_its_projection(tmp_path):
    given = write_t5(tmp_path / "t5", relative_attention_max_distance=128, projection_width=WIDTH)
    student = pretrained(parts_of().networks.text_encoder, tmp_path / "t5", T5_KEYS).module
    ids = Ids(0, 2)[0][0]
    assert torch.equal(student(ids), given(ids))


# The roll-out


def test_weights_of_blocks_are_those_published():
    assert Settings().alphas == (0.1, 0.1, 0.1)


@pytest.mark.parametrize("kind", ["adaln", "static", "low"])
def test_a_walk_is_what_the_sampler_does(kind):
    parts, prompts = parts_of(kind), prompts_of()
    path = path_of(parts, STEPS)
    batches = list(walk(parts.denoiser, NOISE, prompts, path))

    def at(x_BSC: Tensor, step: int) -> Tensor:
        with torch.no_grad():
            return velocity(parts.denoiser, dataclasses.replace(batches[step], x_BSC=x_BSC), path)

    seen = [NOISE]
    euler(at, NOISE, noise_levels(parts, STEPS), lambda step, x: seen.append(x))
    assert [int(batch.step_B[0]) for batch in batches] == list(range(STEPS))
    for batch, x_BSC in zip(batches, seen[:-1], strict=True):
        assert torch.equal(batch.x_BSC, x_BSC)
        assert not batch.x_BSC.requires_grad
        assert not batch.text_BTJ.requires_grad
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("kind", ["adaln", "static", "low"])
def test_prompt_states_are_those_inside_the_whole_denoiser(kind):
    parts = parts_of(kind)
    path, model = path_of(parts, STEPS), parts.denoiser
    seen: dict[nn.Module, Tensor] = {}

    def see(block: nn.Module, _: object, out: tuple[Tensor, Tensor]) -> None:
        seen[block] = out[1]

    for block in model.transformer_blocks:
        block.register_forward_hook(see)
    for batch in walk(model, NOISE, prompts_of(), path):
        found = prompt_states(model, batch, path, 3)
        seen.clear()
        velocity(model, batch, path)
        inside = [seen[block] for block in model.transformer_blocks]
        assert len(found) == 3
        assert all(torch.equal(a, b) for a, b in zip(found, inside[:3], strict=True))
        assert not torch.equal(found[2], inside[3])


def summed(model: NanoFlux, prompts: Prompts, path: object, steps: Sequence[int]) -> Tensor:
    """L of these steps alone, in one graph."""
    batches = list(walk(model, NOISE, prompts, path))
    own = [dataclasses.replace(batches[i], text_BTJ=prompts.text_BTJ) for i in steps]
    gaps = [block_gap(model, batch, prompts.taught_BTJ, path, ALPHAS) for batch in own]
    return torch.stack(gaps).sum()


@pytest.mark.parametrize("cut", range(STEPS))
def test_loss_and_gradient_come_from_the_cut_off_on(cut):
    parts, prompts = parts_of(), prompts_of()
    path, model = path_of(parts, STEPS), parts.denoiser
    loss = rollout_loss(model, NOISE, prompts, path, ALPHAS, cut)
    truth = summed(model, prompts, path, range(cut, STEPS))
    found, expected = (torch.autograd.grad(x, prompts.text_BTJ)[0] for x in (loss, truth))
    assert abs(loss.item() - truth.item()) <= FLOAT32 * truth.item()
    assert (found - expected).abs().max() <= FLOAT32 * expected.abs().max()
    alone = torch.autograd.grad(summed(model, prompts, path, [cut]), prompts.text_BTJ)[0]
    assert alone.abs().max() > 100 * FLOAT32 * expected.abs().max()


def test_the_gap_is_a_weighted_mean_square_after_each_block():
    parts, prompts = parts_of(), prompts_of()
    path, model = path_of(parts, STEPS), parts.denoiser
    batch = next(iter(walk(model, NOISE, prompts, path)))
    taught = dataclasses.replace(batch, text_BTJ=prompts.taught_BTJ)
    pairs = zip(
        prompt_states(model, batch, path, 3), prompt_states(model, taught, path, 3), strict=True
    )
    expected = sum(
        alpha * nn.functional.mse_loss(a, b) for alpha, (a, b) in zip(ALPHAS, pairs, strict=True)
    )
    found = block_gap(model, batch, prompts.taught_BTJ, path, ALPHAS)
    assert abs(found.item() - expected.item()) <= FLOAT32 * expected.item()


@pytest.mark.parametrize(
    ("block", "counts"),
    [
        ("transformer_blocks.0.", True),
        ("transformer_blocks.2.", True),
        ("transformer_blocks.3.", False),
        ("single_transformer_blocks.", False),
        ("proj_out.", False),
    ],
)
def test_only_the_first_three_blocks_count(block, counts):
    # One step: with more, any block moves the latents that later steps look at.
    parts, prompts = parts_of(), prompts_of()
    path, model = path_of(parts, 1), parts.denoiser
    before = rollout_loss(model, NOISE, prompts, path, ALPHAS, 0).item()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith(block):
                p.mul_(1.5)
    after = rollout_loss(model, NOISE, prompts, path, ALPHAS, 0).item()
    assert (after != before) is counts


def test_equal_states_have_no_loss():
    parts, prompts = parts_of(), prompts_of(normal(6, BATCH, TOKENS, WIDTH))
    loss = rollout_loss(parts.denoiser, NOISE, prompts, path_of(parts, STEPS), ALPHAS, 0)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, prompts.text_BTJ)[0].any()


def test_any_step_is_the_cut_off_about_as_often():
    rng = torch.Generator().manual_seed(0)
    found = torch.tensor([cut_off(STEPS, rng) for _ in range(400)]).bincount(minlength=STEPS)
    assert found.sum() == 400
    # 100 each are expected with a deviation of 9.
    assert found.min() >= 60


# The stage


def test_the_warm_up_of_the_teacher_itself_has_no_loss():
    desk = desk_of(parts_of())
    for make in (text.warmup_loss, functools.partial(text.rollout_loss_of, alphas=ALPHAS)):
        loss, _ = make(desk, desk.before, desk.source.text_encoder)(Ids(0, BATCH)[0], 0)
        assert loss.item() == 0


def settings(**changes: object) -> Settings:
    chosen = Settings(SMALL, warmup=Span(2, 1e-2, 4), rollout=Span(2, 1e-2, 2))
    return dataclasses.replace(chosen, **changes)


@pytest.mark.parametrize("kind", ["adaln", "low"])
def test_the_encoder_learns_and_the_denoiser_stays(kind, tmp_path):
    desk = desk_of(parts_of(kind))
    before = {n: t.clone() for n, t in desk.before.denoiser.state_dict().items()}
    large = {n: t.clone() for n, t in desk.source.text_encoder.state_dict().items()}
    start = text.cut(desk, settings())
    warm = text.train(desk, start, settings(rollout=None), tmp_path / "a")
    both = text.train(desk, start, settings(), tmp_path / "b")
    states = [parts.networks.text_encoder.module.state_dict() for parts in (start, warm, both)]
    for earlier, later in ((states[0], states[1]), (states[1], states[2])):
        assert all(not torch.equal(earlier[n], later[n]) for n in earlier if "block.0" in n)
    assert both.networks.denoiser is desk.before.networks.denoiser
    model = both.denoiser
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    teacher = desk.source.text_encoder
    assert all(torch.equal(large[n], t) for n, t in teacher.state_dict().items())


def test_training_brings_the_states_nearer(tmp_path):
    desk = desk_of(parts_of())
    start = text.cut(desk, settings())
    chosen = settings(warmup=Span(40, 3e-2, 12), rollout=None)
    ids = Ids(77, 32)[0][0]
    truth = desk.source.text_encoder(ids)
    gaps = [
        (parts.text_encoder(ids) - truth).square().mean().item()
        for parts in (start, text.train(desk, start, chosen, tmp_path))
    ]
    assert gaps[1] < 0.85 * gaps[0]


def test_a_step_of_the_roll_out_depends_on_its_number_alone():
    desk, lesson = desk_of(parts_of()), Ids(0, BATCH)[0]
    student = text.cut(desk, settings()).text_encoder.requires_grad_(True)
    losses = [
        [text.rollout_loss_of(desk, desk.before, student, ALPHAS)(lesson, step)[0].item()]
        for step in (0, 1, 2, 1)
    ]
    assert losses[1] == losses[3]
    assert losses[0] != losses[1] != losses[2]


def rows(folder: Folder) -> Iterator[dict[str, object]]:
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        del row["steps_per_s"]
        yield row


def test_a_killed_roll_out_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    saving = functools.partial(TrainConfig, save_every_s=-1.0)
    monkeypatch.setattr(text, "TrainConfig", lambda *a, **k: saving(*a, **{**k, "log_every": 1}))
    chosen, desk = settings(rollout=Span(4, 1e-2, 2)), desk_of(parts_of())
    whole = text.train(desk, text.cut(desk, chosen), chosen, tmp_path / "whole")

    def killed(what: str, done: int, total: int) -> None:
        if (what, done) == ("roll-out", 2):
            raise KeyboardInterrupt

    hurt = dataclasses.replace(desk, on_step=killed)
    with pytest.raises(KeyboardInterrupt):
        text.train(hurt, text.cut(desk, chosen), chosen, tmp_path / "killed")
    again = text.train(desk, text.cut(desk, chosen), chosen, tmp_path / "killed")
    for phase in ("warm-up", "roll-out"):
        assert list(rows(tmp_path / "killed" / phase)) == list(rows(tmp_path / "whole" / phase))
    states = [parts.text_encoder.state_dict() for parts in (whole, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# What is refused, before any work


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sizes": None}, "needs sizes, or pretrained with the folder"),
        ({"sizes": Sizes(2, 12, 24, 2, 8)}, "parameters, the one it replaces .* smaller sizes"),
        ({"sizes": Sizes(3, 8, 8, 2, 4)}, "to have num_layers 3, .* has 2; give at most that"),
        ({"sizes": Sizes(1, 8, 8, 2, 10)}, "to have d_kv 10, .* has 8"),
        ({"alphas": (0.1,) * 5}, "alphas weigh 5 double blocks, but the denoiser has 4"),
        ({"pretrained": "nowhere"}, "nowhere.*is missing"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(InputError, match=said) as refused:
        text.outline(parts_of(), settings(**changes))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"sizes": {**dataclasses.asdict(SMALL), "d_ff": 0}}, "d_ff is 0"),
        ({"alphas": []}, "alphas are"),
        ({"alphas": [0.1, -0.1]}, "alphas are"),
        ({"warmup": {"steps": 0, "lr": 1e-3, "batch": 8}}, "steps 0"),
        ({"rollout": {"steps": 1, "lr": 1e-3}}, "lacks batch"),
        ({"rollouts": {}}, "has no field 'rollouts'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(table, said):
    with pytest.raises(InputError, match=said):
        from_plain(Settings, table, "plan.stages[0]")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 10}, "vocabulary of 10 tokens, the teacher's has 11"),
        ({"projection_width": 6}, "states of width 6, the teacher's have 12"),
        ({"d_ff": 4}, "not those of the plan"),
        ({"d_ff": 400}, "parameters, the one it replaces"),
    ],
)
def test_a_pretrained_t5_that_does_not_fit_is_refused(changes, said, tmp_path):
    write_t5(tmp_path / "t5", **changes)
    with pytest.raises(InputError, match=said):
        text.outline(parts_of(), settings(pretrained=str(tmp_path / "t5")))
