"""The tiny decoder's stage: what is refused, what learns and what does not, resume, the report.

Shapes: B batch, C channels, H W pixels, Z latent channels, h w latent cells.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.compress.decoder import check_decoder, tiny_decoder
from nanoflux_mobile.distill.adversary import Critic, fooling, seeded_critic, telling
from nanoflux_mobile.distill.decoder_report import LEVELS, Gap, gap, judge
from nanoflux_mobile.distill.desk import Desk
from nanoflux_mobile.distill.learning import TrainConfig
from nanoflux_mobile.distill.material import Material
from nanoflux_mobile.distill.perceptual import (
    MEAN,
    SPREAD,
    VGG16,
    Lpips,
    Perceptual,
    holed,
    lpips,
    open_lpips,
    trained_here,
)
from nanoflux_mobile.distill.run_files import read_rows
from nanoflux_mobile.distill.scoring import MOST_DB, parameters
from nanoflux_mobile.distill.stages import decoder as stage
from nanoflux_mobile.distill.stages.decoder import Settings, inexact
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families.nanoflux import FluxParts, Networks, load, save
from nanoflux_mobile.models.tiny_decoder import TinyDecoder
from nanoflux_mobile.models.vae import Autoencoder, VaeConfig
from nanoflux_mobile.strict_json import from_plain
from nanoflux_mobile.weights import Network, network

VAE = VaeConfig(3, 3, (8, 8), 1, 4, 4, 0.9, 0.1, False, False, False)
SIDE, BATCH = 16, 3
TINY = Settings(
    (8, 8), (1, 1), 4, steps=8, lr=3e-3, batch=BATCH, feature_steps=4, warmup=1, ema=0.5
)
HALF_LEVEL = 1 / 510
"""Half a step of 8 bits, pixels in [-1, 1]: what no screen shows."""
FLOAT32 = 1e-5
"""Share of the value: the same sums in another order."""


class Clouds(Dataset[tuple[Tensor, ...]]):
    """Smooth random pictures, (B, 3, 16, 16) in [-1, 1]."""

    def __init__(self, seed: int, batch: int) -> None:
        self.seed, self.batch = seed, batch

    def __getitem__(self, step: int) -> tuple[Tensor, ...]:
        rng = torch.Generator().manual_seed(1000 * self.seed + step)
        coarse = torch.rand((self.batch, 3, 4, 4), generator=rng) * 2 - 1
        return (F.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear"),)


def nothing(*_: Any) -> Any:
    raise AssertionError("the decoder needs none of this")


def with_vae(vae: Network[Any]) -> FluxParts:
    """Parts of which only the autoencoder is there."""
    absent: Any = None
    return FluxParts(Networks(absent, absent, vae), absent, None, {}, 8, SIDE)


def pictures(step: int = 0, seed: int = 0) -> Tensor:
    return Clouds(seed, BATCH)[step][0]


@pytest.fixture(scope="module")
def source() -> FluxParts:
    """The full autoencoder, random but fixed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = Autoencoder(VAE).eval().requires_grad_(False)
    vae.decoder.conv_out.weight.mul_(0.3)  # inside [-1, 1], so that nothing is clamped
    return with_vae(network(vae))


@pytest.fixture
def desk(source: FluxParts) -> Desk:
    material = Material(Clouds, nothing, nothing, lambda lesson: lesson[0], {"data": "clouds"})
    return Desk(source, source, material, None, 4, 40, 0, "cpu", {"teacher": "abc"})


# The cut


def test_the_student_decodes_the_latents_of_its_teacher(source, desk):
    for parts in (stage.outline(source, TINY), stage.cut(desk, TINY)):
        cfg = parts.networks.vae.skeleton.cfg
        assert (cfg.latent_channels, cfg.factor, cfg.scaling_factor, cfg.shift_factor) == (
            *(VAE.latent_channels, VAE.factor, VAE.scaling_factor, VAE.shift_factor),
        )
        latents = source.vae.encode(pictures())
        assert parts.vae.decode(latents).shape == (BATCH, 3, SIDE, SIDE)
        assert parts.networks.denoiser is source.networks.denoiser


def test_a_plan_is_checked_without_a_weight(source):
    stored = {
        name: dataclasses.replace(tensor, read=nothing)
        for name, tensor in source.networks.vae.weights.items()
    }
    unread = with_vae(Network(source.networks.vae.skeleton, stored))
    stage.outline(unread, TINY)


def test_weights_come_from_the_seed_alone(desk):
    def state(seed: int) -> Tensor:
        made = stage.cut(dataclasses.replace(desk, seed=seed), TINY)
        return made.networks.vae.tensor("conv_in.weight")

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = state(1)
    assert torch.equal(torch.rand(3), expected), "the stream of others is left alone"
    assert torch.equal(state(1), first)
    assert not torch.equal(state(2), first)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"block_out_channels": (8, 8, 8), "layers_per_block": (1, 1, 1)}, "4 pixels.*give 2 entr"),
        ({"norm_num_groups": 3}, "3, which does not divide a width of 8"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0"),
        ({"layers_per_block": (1,)}, "2 entries and layers_per_block 1"),
        ({"lpips": "nowhere.safetensors"}, "nowhere.safetensors is no safetensors file"),
    ],
)
def test_sizes_that_cannot_be_are_refused(source, change, told):
    with pytest.raises((InputError, ValueError), match=told) as refused:
        stage.outline(source, dataclasses.replace(TINY, **change))
    assert "\n" not in str(refused.value)


def test_lpips_is_never_unpickled(source, tmp_path):
    (tmp_path / "vgg.pth").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"vgg\.pth is no safetensors file"):
        stage.outline(source, dataclasses.replace(TINY, lpips=str(tmp_path / "vgg.pth")))


def test_a_decoder_is_cut_once(source):
    with pytest.raises(InputError, match="TinyDecoder, which has no encoder"):
        stage.outline(stage.outline(source, TINY), TINY)


@pytest.mark.parametrize(
    ("field", "words"),
    [("latent_channels", "latent channels: 4 and 6"), ("scaling_factor", "scaling of the latents")],
)
def test_a_decoder_of_other_latents_is_refused_before_any_work(
    source, desk, tmp_path, field, words
):
    other = Autoencoder(dataclasses.replace(VAE, **{field: 6}))
    small = tiny_decoder(network(other), (8, 8), (1, 1), 4, 0)
    with pytest.raises(InputError, match=words):
        check_decoder(source.networks.vae, small)
    with pytest.raises(InputError, match=words):
        stage.train(desk, with_vae(small), TINY, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "table",
    [{"steps": -1}, {"lr": 0.0}, {"batch": 0}, {"noise": -0.1}, {"adversary_from": 1.5}],
)
def test_settings_that_mean_nothing_are_refused(table):
    with pytest.raises(InputError, match=r"give "):
        from_plain(Settings, table, "plan.stages[0]")


# The adversary


def test_no_gradient_crosses_over():
    critic, ours, theirs = seeded_critic(0), pictures(0).requires_grad_(), pictures(1)
    fooling(critic, ours).backward()
    assert all(p.grad is None for p in critic.parameters())
    found, ours.grad = ours.grad, None
    (expected,) = torch.autograd.grad(-critic(ours).mean(), ours)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0
    telling(critic, ours, theirs.requires_grad_()).backward()
    assert ours.grad is None
    assert theirs.grad is None
    assert all(p.grad.abs().max() > 0 for n, p in critic.named_parameters() if "weight" in n)


def test_hinges_are_those_of_the_paper():
    critic = seeded_critic(0)
    with torch.no_grad():
        critic.score.weight.mul_(20), critic.score.bias.fill_(0.3)
    true, false = critic(pictures(1)), critic(pictures(0))
    expected = (1 - true).clamp(min=0).mean() + (1 + false).clamp(min=0).mean()
    assert telling(critic, pictures(0), pictures(1)).item() == pytest.approx(expected.item())
    assert fooling(critic, pictures(0)).item() == pytest.approx(-false.mean().item())
    with torch.no_grad():
        critic.score.weight.zero_(), critic.score.bias.zero_()
    assert telling(critic, pictures(0), pictures(1)).item() == 2.0


def test_a_critic_sees_patches():
    """Its score for a patch depends on 18 pixels and no more."""
    shown = torch.zeros(1, 3, 64, 64, requires_grad=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scores = Critic()(shown)
    assert scores.shape == (1, 1, 16, 16)
    scores[0, 0, 8, 8].backward()
    rows = shown.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 18


# Perceptual features


SMALL_VGG = ((2, 3), (4, 4), (5, 4, 5), (6, 5, 6), (7, 6, 7))
CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Where the convolutions of torchvision's vgg16().features are."""
SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def lpips_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Weights under the names of torchvision and lpips, with keys that are not needed."""
    rng = torch.Generator().manual_seed(seed)
    widths = [3, *(w for group in SMALL_VGG for w in group)]
    found = {"classifier.0.weight": torch.zeros(1), "scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    for place, cin, cout in zip(CONVS, widths, widths[1:], strict=False):
        found[f"features.{place}.weight"] = torch.randn((cout, cin, 3, 3), generator=rng) / 3
        found[f"features.{place}.bias"] = torch.rand((cout,), generator=rng) / 3
    for k, group in enumerate(SMALL_VGG):
        found[f"lin{k}.model.1.weight"] = torch.rand((1, group[-1], 1, 1), generator=rng)
    return found


def lpips_by_hand(tensors: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """The published definition, written down layer by layer."""

    def maps(x: Tensor) -> list[Tensor]:
        mean, spread = (torch.tensor(v)[None, :, None, None] for v in (MEAN, SPREAD))
        x, found = (x - mean) / spread, []
        for k, convs in enumerate(SLICES):
            x = F.max_pool2d(x, 2) if k else x
            for i in convs:
                w, bias = tensors[f"features.{i}.weight"], tensors[f"features.{i}.bias"]
                x = F.conv2d(x, w, bias, padding=1).relu()
            found.append(x / x.norm(dim=1, keepdim=True).clamp(min=1e-10))
        return found

    lins = [tensors[f"lin{k}.model.1.weight"] for k in range(5)]
    per = [F.conv2d((p - q).square(), w) for p, q, w in zip(maps(a), maps(b), lins, strict=True)]
    return torch.stack([x.mean((1, 2, 3)) for x in per]).sum(0).mean()


def test_vgg_is_torchvisions():
    with torch.device("meta"):
        whole = Lpips()
    convs = [i for i, layer in enumerate(whole.features) if isinstance(layer, nn.Conv2d)]
    assert tuple(convs) == CONVS
    assert whole.ends == [3, 8, 15, 22, 29], "relu1_2, 2_2, 3_3, 4_3, 5_3"
    assert sum(p.numel() for p in whole.features.parameters()) == 14_714_688
    assert [lin.in_channels for lin in whole.lins] == [group[-1] for group in VGG16]


@pytest.mark.parametrize("names", ["torchvision", "lpips"])
def test_lpips_from_a_file_is_lpips(tmp_path, names):
    tensors = lpips_tensors()
    stored = dict(tensors)
    if names == "lpips":
        for k, convs in enumerate(SLICES, 1):
            for i, kind in ((i, kind) for i in convs for kind in ("weight", "bias")):
                stored[f"net.slice{k}.{i}.{kind}"] = stored.pop(f"features.{i}.{kind}")
    save_file(stored, tmp_path / "vgg.safetensors")
    distance = lpips(open_lpips(tmp_path / "vgg.safetensors", SMALL_VGG), "cpu")
    a, b = pictures(0).requires_grad_(), pictures(1)
    expected = lpips_by_hand(tensors, a.detach(), b)
    assert expected > 0.01
    assert distance(a, b).item() == pytest.approx(expected.item(), rel=1e-3)
    assert distance(b, b).item() == 0.0
    distance(a, b).backward()
    assert a.grad.abs().max() > 0


def test_a_file_without_the_channels_weights_is_refused(tmp_path):
    tensors = {k: v for k, v in lpips_tensors().items() if not k.startswith("lin3")}
    save_file(tensors, tmp_path / "vgg.safetensors")
    with pytest.raises(InputError, match=r"1 missing: lins\.3\.weight"):
        open_lpips(tmp_path / "vgg.safetensors", SMALL_VGG)


def test_features_that_are_zero_keep_a_gradient():
    """Behind a ReLU a place can be all zero, where a length has no slope."""
    distance = Perceptual(lambda x: [F.relu(x - 5), x], [torch.ones(3), torch.ones(3)])
    shown = pictures(0).requires_grad_()
    distance(shown, pictures(1)).backward()
    assert shown.grad.isfinite().all()


def test_a_quarter_of_the_squares_is_taken_out():
    shown = torch.ones(200, 3, SIDE, SIDE)
    taken = holed(shown, torch.Generator().manual_seed(0))
    squares = taken.unflatten(3, (2, 8)).unflatten(2, (2, 8))
    assert torch.equal(squares.amax((3, 5)), squares.amin((3, 5))), "whole squares"
    # 800 squares: a share of 0.25 has a deviation of 0.015.
    assert 1 - taken.mean().item() == pytest.approx(0.25, abs=0.06)


def test_features_are_learned_here_and_stay_then(tmp_path):
    config = TrainConfig(40, 1e-2, warmup=2, ema=0.5, log_every=1)
    made = [
        trained_here(
            Clouds(0, BATCH), lambda lesson: lesson[0], config, 0, tmp_path / "features", {}
        )
        for _ in range(2)
    ]
    rows = read_rows(tmp_path / "features" / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.85 * rows[0]["loss"]
    shown = pictures(0)
    distances = [
        [one(other, shown).item() for other in (shown, 0.9 * shown + 0.1, pictures(1))]
        for one in made
    ]
    assert distances[0] == distances[1], "a finished run is read, not made again"
    assert 0 == distances[0][0] < distances[0][1] < distances[0][2]
    assert not any(found.requires_grad for found in made[0].features(shown))


# Training


def weights(parts: FluxParts) -> dict[str, Tensor]:
    own = parts.networks.vae
    return {name: own.tensor(name).clone() for name in own.weights}


def contest(out: Path) -> dict[str, Tensor]:
    """Decoder and critic as the last save holds them."""
    state: dict[str, Tensor] = torch.load(out / "decoder" / "last.pt", weights_only=True)["model"]
    return state


def test_decoder_and_critic_learn_and_nothing_else(source, desk, tmp_path):
    before = stage.cut(desk, TINY)
    fixed, fresh = weights(source), weights(before)
    critic = seeded_critic(desk.seed).state_dict()
    taught = stage.train(desk, before, TINY, tmp_path)
    assert all(torch.equal(tensor, fixed[name]) for name, tensor in weights(source).items())
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in weights(before).items())
    assert all(not torch.equal(tensor, fresh[name]) for name, tensor in weights(taught).items())
    last = contest(tmp_path)
    assert all(not torch.equal(last[f"blocks.critic.{name}"], critic[name]) for name in critic)
    assert set(weights(taught)) == set(fresh), "the critic stays behind"
    assert isinstance(taught.networks.vae.skeleton, TinyDecoder)
    names = {"squared", "perceptual", "critic", "fooling"}
    row = read_rows(tmp_path / "decoder" / "metrics.jsonl")[-1]
    assert set(row) == {"step", "loss", "gradient", "lr", "steps_per_s"} | names, "no KL"
    assert row["loss"] == pytest.approx(
        row["squared"] + 0.1 * row["perceptual"] + 0.01 * (row["critic"] + row["fooling"]),
        rel=FLOAT32,
    )


def test_an_adversary_waits(desk, tmp_path):
    patient = dataclasses.replace(TINY, adversary_from=1.0, perceptual=0.0)
    stage.train(desk, stage.cut(desk, patient), patient, tmp_path)
    last = contest(tmp_path)
    critic = seeded_critic(desk.seed).state_dict()
    assert all(torch.equal(last[f"blocks.critic.{name}"], critic[name]) for name in critic)
    assert not (tmp_path / "features").exists(), "no perceptual loss, no features"
    assert "perceptual" not in read_rows(tmp_path / "decoder" / "metrics.jsonl")[-1]


def test_a_decoder_comes_to_draw_like_the_full_one(desk, tmp_path):
    longer = dataclasses.replace(
        TINY, steps=60, lr=8e-3, perceptual=0.01, adversarial=1e-3, answers=5, ema=0.9
    )
    before = stage.cut(desk, longer)
    taught = stage.train(desk, before, longer, tmp_path)
    found = json.loads((tmp_path / stage.REPORT).read_text())
    untrained, trained = judge(desk, before, 1, 8).from_full, judge(desk, taught).from_full
    assert found["from_full"] == json.loads(json.dumps(dataclasses.asdict(trained)))
    assert trained.psnr_db > untrained.psnr_db + 3
    assert max(map(abs, trained.shift)) < max(map(abs, untrained.shift))
    assert found["parameters"] == sum(p.numel() for p in taught.vae.parameters())
    assert len(list((tmp_path / "answers").iterdir())) == 5


class Killed(Exception):
    """What ends a run in the middle."""


def test_a_killed_run_goes_on_to_the_bit(desk, tmp_path, monkeypatch):
    told = stage._config
    often = lambda *given: dataclasses.replace(told(*given), save_every_s=-1.0, log_every=1)  # noqa: E731
    monkeypatch.setattr(stage, "_config", often)
    settings = dataclasses.replace(TINY, answers=3)

    def run(out: Path, *kills: tuple[str, int]) -> FluxParts:
        def on_step(what: str, done: int, total: int) -> None:
            if (what, done) in left:
                left.remove((what, done))
                raise Killed

        left = list(kills)
        watched = dataclasses.replace(desk, on_step=on_step)
        for _ in kills:
            with pytest.raises(Killed):
                stage.train(watched, stage.cut(watched, settings), settings, out)
        return stage.train(watched, stage.cut(watched, settings), settings, out)

    whole = run(tmp_path / "whole")
    broken = run(tmp_path / "broken", ("features", 2), ("decoder", 3), ("decoder", 6))
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(broken)[name], tensor), name
    assert all(
        torch.equal(tensor, contest(tmp_path / "broken")[name])
        for name, tensor in contest(tmp_path / "whole").items()
    )
    rows = [
        [
            {k: v for k, v in row.items() if k != "steps_per_s"}
            for row in read_rows(tmp_path / kind / "decoder" / "metrics.jsonl")
        ]
        for kind in ("whole", "broken")
    ]
    assert [row["step"] for row in rows[0]] == list(range(1, 9))
    assert rows[0] == rows[1]


def test_a_folder_of_other_settings_is_refused(desk, tmp_path):
    few = dataclasses.replace(TINY, steps=1, feature_steps=1)
    stage.train(desk, stage.cut(desk, few), few, tmp_path)
    other = dataclasses.replace(few, perceptual=0.2)
    with pytest.raises(InputError, match=re.escape(str(tmp_path)) + r".*with settings"):
        stage.train(desk, stage.cut(desk, other), other, tmp_path)


def test_no_steps_no_work(desk, tmp_path):
    idle = dataclasses.replace(TINY, steps=0)
    parts = stage.cut(desk, idle)
    assert stage.train(desk, parts, idle, tmp_path / "run") is parts
    assert not (tmp_path / "run").exists()


def test_noise_has_the_deviation_that_is_asked_for():
    latents = torch.zeros(400, 4, 8, 8)
    spread_B = inexact(latents, 0.2, torch.Generator().manual_seed(0)).std((1, 2, 3))
    # A deviation over 256 values is off by 4 %, a few of 400 by three times that.
    assert spread_B.max() < 0.2 * 1.15
    assert spread_B.min() < 0.01
    assert spread_B.mean().item() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(inexact(latents, 0.0, torch.Generator().manual_seed(0)), latents)


# The report


@pytest.mark.parametrize("tint", [(8.0, -4.0, 0.0), (0.5, 0.5, 0.5)])
def test_a_tint_is_told_channel_by_channel(source, desk, tint):
    tinted = source.networks.vae.whole()
    with torch.no_grad():
        last = tinted.decoder.conv_out
        bias = last.bias + torch.tensor(tint) / LEVELS
    last.bias = nn.Parameter(bias, requires_grad=False)
    found = judge(desk, with_vae(network(tinted)), 2, 8)
    assert found.from_full.shift == pytest.approx(tint, abs=1e-3)
    mse = sum(level**2 for level in tint) / 3 / LEVELS**2
    expected = 10 * torch.log10(torch.tensor(4 / mse)).item()
    assert found.from_full.psnr_db == pytest.approx(expected, abs=0.01)
    moved = [
        a - b for a, b in zip(found.from_pixels.shift, found.full_from_pixels.shift, strict=True)
    ]
    assert moved == pytest.approx(tint, abs=1e-3)


def test_equal_decoders_have_no_gap(source, desk):
    found = judge(desk, source, 1, 4)
    assert found.from_full == Gap(MOST_DB, (0.0, 0.0, 0.0))
    assert found.from_pixels == found.full_from_pixels


def test_what_a_screen_cuts_off_is_no_gap():
    white = torch.ones(1, 3, 2, 2)
    assert gap(3 * white, white).psnr_db == MOST_DB
    assert gap(white, white - HALF_LEVEL).shift == pytest.approx((0.25,) * 3, abs=1e-3)


def test_a_student_with_it_is_saved_read_and_counted(micro_checkpoint, tmp_path):
    teacher = load(open_checkpoint(micro_checkpoint))
    settings = dataclasses.replace(TINY, block_out_channels=(12, 8), layers_per_block=(2, 1))
    student = stage.outline(teacher, settings)
    save(student, tmp_path / "student")
    again = load(open_checkpoint(tmp_path / "student"))
    latents = torch.randn(1, *again.canvas.shape[1:])
    assert torch.equal(again.vae.decode(latents), student.vae.decode(latents))
    assert parameters(again)["decoder"] == sum(p.numel() for p in student.vae.parameters())
    assert parameters(again)["decoder"] < parameters(teacher)["decoder"]
    assert again.canvas == teacher.canvas
