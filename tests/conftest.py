"""Settings of the whole test set, and one micro export for every test that needs a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from nanoflux_export.work import Step
    from nanoflux_mobile.families.nanoflux import FluxParts

# Equal examples in every run, and no verdict that depends on how busy the machine is.
settings.register_profile("nanoflux", deadline=None, derandomize=True)
settings.load_profile("nanoflux")

SIDE, TEXT_TOKENS = 32, 12

# Measured, then about 5 dB off: equal weights agree to 138 dB in float32 and 72 dB in half
# precision, 6-bit palettes cost all but 47 dB, and LiteRT's int8 layers, which round what flows
# through them as well, agree to 54 dB. The checkpoint itself holds fp16, so storing fp16 is free.
RECIPE = """
schema = "recipe/1"
family = "nanoflux"
summary = "Random weights, for tests."
steps = 3
calibration_prompts = ["a red circle", "two blue squares"]

[targets.coreml.image]
graph = 60
quality = 42

[targets.coreml.components]
text_encoder = { scheme = "fp16", floors = { graph = 65, quality = 100 } }
denoiser = { scheme = "palette6-g16", floors = { graph = 65, quality = 42 } }
decoder = { scheme = "fp16", floors = { graph = 65, quality = 100 } }

[targets.litert.image]
graph = 50
quality = 48

[targets.litert.components]
text_encoder = { scheme = "fp16", floors = { graph = 100, quality = 100 } }
denoiser = { scheme = "int8", floors = { graph = 48, quality = 46 } }
decoder = { scheme = "fp16", floors = { graph = 100, quality = 100 } }
"""


@dataclass(frozen=True)
class Micro:
    """The micro export: what it was made of, its bundles by target, and the steps it took."""

    checkpoint: Path
    recipe: Path
    out: Path
    bundles: Mapping[str, Path]
    steps: tuple[Step, ...]


def micro_parts() -> FluxParts:
    """A FLUX-shaped teacher with random weights: every part is there, each as small as it goes.

    The weights are larger than fresh ones, so that prompt, step and seed all show in the picture:
    two prompts agree to about 30 dB only.
    """
    import torch

    from nanoflux_mobile.distill.tiny_tokenizers import captions, train_clip, train_unigram
    from nanoflux_mobile.families.nanoflux import FluxParts, Networks, PooledText
    from nanoflux_mobile.models.clip import ClipConfig, ClipText
    from nanoflux_mobile.models.nanoflux import NanoFlux
    from nanoflux_mobile.models.nanoflux_config import FluxConfig
    from nanoflux_mobile.models.t5 import T5Config, T5Encoder
    from nanoflux_mobile.models.vae import Autoencoder, VaeConfig
    from nanoflux_mobile.tokenizer import clip_tokenizer
    from nanoflux_mobile.weights import network

    texts = captions(seed=0, count=500)
    unigram = train_unigram(texts, 120)
    vocab, merges = train_clip(texts, 560)
    torch.manual_seed(0)
    t5 = T5Config(unigram.get_vocab_size(), 32, 16, 64, 1, 2, 8, 16, 1e-6, "gated-gelu")
    clip = ClipConfig(len(vocab), 32, 64, 1, 2, 16, 1e-5, "quick_gelu", len(vocab) - 1)
    flux = FluxConfig(16, 1, 1, 16, 2, 32, 32, False, (4, 6, 6))
    vae = VaeConfig(3, 3, (8, 16), 1, 4, 4, 1.0, 0.0, True, False, True)
    towers = NanoFlux(flux), T5Encoder(t5), ClipText(clip)
    with torch.no_grad():
        for weight in (weight for tower in towers for weight in tower.parameters()):
            weight.add_(0.2 * torch.randn_like(weight))
    return FluxParts(
        Networks(network(towers[0]), network(towers[1]), network(Autoencoder(vae))),
        tokenizer=unigram,
        clip=PooledText(network(towers[2]), clip_tokenizer(vocab, merges)),
        scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0},
        text_tokens=TEXT_TOKENS,
        side=SIDE,
    )


@pytest.fixture(scope="session")
def micro_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro teacher as a checkpoint folder."""
    pytest.importorskip("sentencepiece")
    import torch

    from nanoflux_mobile.families.nanoflux import save

    folder = tmp_path_factory.mktemp("checkpoint") / "micro"
    save(micro_parts(), folder, torch.float16)
    return folder


@pytest.fixture(scope="session")
def micro(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Micro:
    """The micro teacher exported to both targets; tests copy a bundle before they change it."""
    pytest.importorskip("coremltools")
    pytest.importorskip("litert_torch")
    from nanoflux_export.pipeline import export
    from nanoflux_export.recipe import load_recipe
    from nanoflux_export.work import Journal

    root, journal = tmp_path_factory.mktemp("micro"), Journal()
    (root / "micro.toml").write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe(str(root / "micro.toml"))
    made = export(micro_checkpoint, recipe, root / "out", journal)
    bundles = {bundle.manifest.target: bundle.path for bundle in made}
    return Micro(micro_checkpoint, root / "micro.toml", root / "out", bundles, tuple(journal.steps))
