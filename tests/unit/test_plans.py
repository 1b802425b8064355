"""Shipped plans: what they make of their teachers, in shapes alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanoflux_mobile import plugins, variants
from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.distill import chain, plan
from nanoflux_mobile.distill.scoring import parameters
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families.nanoflux import FluxParts, Networks, PooledText, load
from nanoflux_mobile.models.clip import ClipConfig, ClipText
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.t5 import T5Config, T5Encoder
from nanoflux_mobile.models.vae import Autoencoder, VaeConfig
from nanoflux_mobile.tokenizer import load_tokenizer
from nanoflux_mobile.weights import Network, Stored

ASSETS = Path(chain.__file__).parents[1] / "assets" / "tiny"
EPOCH = 1875
"""Steps of 256 pictures among 480 K."""
DENOISERS = {  # the paper's figures, to which the last digit is rounded
    "heads": 5e9,
    "features": 3e9,
    "merging": 2.5e9,
    "static-ln": 1.8e9,
    "token-downsampling": 2e9,
}


def unread(build: Any) -> Network[Any]:
    """A network of which no weight may be read."""

    def read() -> Tensor:
        raise AssertionError("the outline of a plan reads nothing")

    with torch.device("meta"):
        skeleton: nn.Module = build()
    weights = {
        name: Stored(tuple(tensor.shape), "bfloat16", 2 * tensor.numel(), read)
        for name, tensor in skeleton.state_dict().items()
    }
    return Network(skeleton, weights)


def flux_1() -> FluxParts:
    """FLUX.1-schnell at 512 pixels, in shapes."""
    flux = FluxConfig(64, 19, 38, 128, 24, 4096, 768, False, (16, 56, 56))
    t5 = T5Config(32128, 4096, 64, 10240, 24, 64, 32, 128, 1e-6, "gated-gelu")
    clip = ClipConfig(49408, 768, 3072, 12, 12, 77, 1e-5, "quick_gelu", 49407)
    widths = (128, 256, 512, 512)
    vae = VaeConfig(3, 3, widths, 2, 16, 32, 0.3611, 0.1159, True, False, False)
    words = load_tokenizer(ASSETS / "tokenizer")
    return FluxParts(
        Networks(
            unread(lambda: NanoFlux(flux)),
            unread(lambda: T5Encoder(t5)),
            unread(lambda: Autoencoder(vae)),
        ),
        tokenizer=load_tokenizer(ASSETS / "tokenizer_2"),
        clip=PooledText(unread(lambda: ClipText(clip)), words),
        scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0},
        text_tokens=256,
        side=512,
    )


@pytest.fixture(scope="module")
def students() -> dict[str, FluxParts]:
    """What the paper's chain makes of FLUX.1, stage by stage."""
    return {one.name: parts for one, parts in chain.outline(flux_1(), plan.load("nanoflux"))}


def test_every_denoiser_has_the_published_size(students):
    for name, published in DENOISERS.items():
        count = parameters(students[name])["denoiser"]
        digits = 1 if published in (5e9, 3e9, 2e9) else 2
        assert float(f"{count:.{digits - 1}e}") == published, (name, count)


def test_the_whole_student_is_the_variant_that_ships(students):
    last, shipped = students["decoder"], variants.skeletons(variants.load("nanoflux-2.4b"))
    # An outline has no schedule, so its table has one step.
    denoiser = dataclasses.replace(shipped["transformer"].cfg, static_steps=1)
    assert last.flux == denoiser
    # A T5-Large that is not trained yet is of its teacher's version, gated and thinner.
    t5 = dataclasses.replace(
        shipped["text_encoder_2"].cfg, feed_forward_proj="gated-gelu", d_ff=2816
    )
    assert last.networks.text_encoder.skeleton.cfg == t5
    assert last.networks.vae.skeleton.cfg == shipped["vae"].cfg
    assert last.clip is None


def test_lengths_are_the_papers_epochs():
    stages = {stage.name: stage.settings for stage in plan.load("nanoflux").stages}
    steps = {name: [phase.steps for phase in stages[name].train] for name in list(stages)[:5]}
    assert steps["heads"] == [275 * EPOCH]
    assert steps["features"] == [50 * EPOCH, 100 * EPOCH]
    assert stages["token-downsampling"].absorb.steps == 80 * EPOCH
    assert steps["token-downsampling"] == [20 * EPOCH]
    assert [phase.teacher for phase in stages["features"].train] == ["before", "source"]
    assert stages["heads"].train[0].head_features == 1.0


def test_the_tiny_plan_applies_to_the_shipped_teacher():
    teacher = load(open_checkpoint(ASSETS))
    last = list(chain.outline(teacher, plan.load("tiny")))[-1][1]
    assert last.networks.denoiser.count() < teacher.networks.denoiser.count() / 3


@pytest.mark.parametrize("name", plan.names())
def test_every_shipped_plan_can_be_read(name):
    found = plan.load(name)
    assert found.name == name
    assert found.family in plugins.names("nanoflux_mobile.families")
    assert found.summary.endswith(".")
    assert "\n" not in found.summary


@pytest.mark.parametrize(
    ("wanted", "present", "count"), [("16", 24, 16), ("2/3", 24, 16), ("5/8", 8, 5), ("1/1", 7, 7)]
)
def test_shares_are_of_what_is_there(wanted, present, count):
    assert plan.share_of(wanted, present, "heads") == count


@pytest.mark.parametrize("wanted", ["2/3", "", "a", "1/0", "2/3/4", "0.5"])
def test_shares_that_are_not_whole_are_refused(wanted):
    with pytest.raises(InputError, match=r"heads is '?" + wanted):
        plan.share_of(wanted, 16, "heads")


def test_values_can_be_changed_one_by_one():
    found = plan.load("tiny", ("batch=20", "heads.heads=1/2", "features.train.2.steps=5"))
    stages = {stage.name: stage.settings for stage in found.stages}
    assert found.batch == 20
    assert stages["heads"].heads == "1/2"
    assert [phase.steps for phase in stages["features"].train] == [80, 5]
    assert plan.load("tiny").batch != 20


@pytest.mark.parametrize("cut", ["heads", "features", "merging"])
def test_cuts_of_size_come_before_token_downsampling(cut):
    tiny = plan.load("tiny")
    stages = {stage.cut: stage for stage in tiny.stages}
    turned = dataclasses.replace(tiny, stages=(stages["token_downsampling"], stages[cut]))
    with pytest.raises(InputError, match=rf"stage 2 of plan tiny, {cut}: .*token downsampling"):
        list(chain.outline(load(open_checkpoint(ASSETS)), turned))


def test_a_count_may_be_a_number():
    (stage, *_) = plan.load("tiny", ("heads.heads=8",)).stages
    assert stage.settings.heads == "8"


BASELINES = sorted((Path(__file__).parents[2] / "benchmarks" / "student_study").glob("*.toml"))


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_baselines_end_where_the_chain_is_after_merging(path):
    teacher = load(open_checkpoint(ASSETS))
    chained = {one.cut: parts for one, parts in chain.outline(teacher, plan.load("tiny"))}
    found = plan.load(str(path))
    assert list(chain.outline(teacher, found))[-1][1].flux == chained["merging"].flux
    tiny = plan.load("tiny").stages[:3]
    steps = sum(phase.steps for stage in tiny for phase in stage.settings.train)
    assert sum(phase.steps for stage in found.stages for phase in stage.settings.train) == steps


@pytest.mark.parametrize(
    "phase",
    [
        "features.train.2",
        "merging.train.1",
        "token-downsampling.absorb",
        "token-downsampling.train.1",
    ],
)
def test_heads_are_compared_only_where_they_correspond(phase):
    stage = phase.split(".")[0]
    found = plan.load("tiny", (f"{phase}.head_features=1.0",))
    with pytest.raises(InputError, match=rf"plan tiny, {stage}: head_features compares heads"):
        list(chain.outline(load(open_checkpoint(ASSETS)), found))
