"""The decoder graph of any family: latents to pixels in one segment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from nanoflux_export.graph import MAIN, MobileGraph
from nanoflux_export.mobile.decoder import MobileDecoder
from nanoflux_export.mobile.tiny_decoder import MobileTaesd, MobileTinyDecoder
from nanoflux_export.tape import Lazy, Tape
from nanoflux_mobile.models.taesd import TaesdDecoder
from nanoflux_mobile.models.tiny_decoder import TinyDecoder
from nanoflux_mobile.models.vae import Autoencoder
from nanoflux_mobile.spec import TensorSpec
from nanoflux_mobile.weights import Network

FORMS: Mapping[type[nn.Module], Callable[[Any], nn.Module]] = {
    Autoencoder: MobileDecoder,
    TaesdDecoder: MobileTaesd,
    TinyDecoder: MobileTinyDecoder,
}
"""The mobile form of every kind of decoder."""


def image_decoder(
    network: Network[Any], latents: tuple[int, int, int, int], side: int
) -> MobileGraph:
    """The decoder of latents of that shape, (1, Z, h, w), to square pictures of `side` pixels."""
    form = FORMS[type(network.skeleton)]
    axes, image = ("batch", "channels", "rows", "columns"), (1, 3, side, side)
    count = network.count("decoder") or network.count()
    tape = Tape()
    tape.put("decoder", Lazy(lambda: form(network.whole()), count), ("latents",), image=image)
    takes = TensorSpec("latents", axes, latents, "float32")
    gives = TensorSpec("image", ("batch", "RGB", *axes[2:]), image, "float32")
    return MobileGraph("decoder", {MAIN: tape.function((takes,), (gives,))})
