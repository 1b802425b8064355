"""What the published graphs cost, against diffusers' models and the sizes that papers print."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

STUDY = Path(__file__).parents[3] / "benchmarks" / "prediction_study"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDY))
    return importlib.import_module("published")


def test_the_counts_of_published_graphs_agree_with_diffusers(study: ModuleType) -> None:
    """Multiply-accumulates exactly; parameters to 0.1 %, as norms are left out of ours."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    counter = importlib.import_module("torch.utils.flop_counter").FlopCounterMode
    layers, sd = importlib.import_module("layers"), importlib.import_module("stable_diffusion")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
        )
        latents, text = torch.zeros(1, 4, 64, 64), torch.zeros(1, 77, 1024)
        runs = (
            (unet, (latents, torch.zeros(1), text), sd.unet(sd.SD21, 64)),
            (vae.decoder, (latents,), sd.decoder(64, 4)),
        )
        for model, inputs, graph in runs:
            with counter(display=False) as counted, torch.no_grad():
                model(*inputs)
            macs, weights = layers.totals(graph)
            assert macs * 2 == counted.get_total_flops()
            assert weights == pytest.approx(sum(p.numel() for p in model.parameters()), rel=1e-3)


@pytest.mark.parametrize(
    ("graph", "parameters", "macs", "within"),
    [
        ("flux_12b", 11.891e9, 8.84e12, 1e-3),
        ("flux_5b", 5.289e9, 4.06e12, 1e-3),
        ("flux_3b", 2.978e9, 2.35e12, 3e-3),
        ("flux_2_5b", 2.482e9, 1.78e12, 3e-3),
        ("flux_1_8b", 1.763e9, 1.78e12, 3e-3),
        ("snapgen_unet", 379e6, 650e9, 1e-2),
        ("snapgen_decoder", 1.38e6, 224e9, 2e-2),
        ("sdxl_decoder", 49.49e6, 4970e9, 6e-2),
    ],
)
def test_published_graphs_have_their_published_sizes(
    study: ModuleType, graph: str, parameters: float, macs: float, within: float
) -> None:
    """The published count of the decoder, 4970 G, leaves the attention's products out."""
    layers = importlib.import_module("layers")
    found_macs, found_parameters = layers.totals(study.GRAPHS[graph]())
    assert found_parameters == pytest.approx(parameters, rel=within)
    assert found_macs == pytest.approx(macs, rel=within)
