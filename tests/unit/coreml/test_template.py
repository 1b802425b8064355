"""What of a converted module is recognised as its weights, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coremltools")

from nanoflux_export.targets.coreml.template import Template, make_template
from nanoflux_mobile.errors import NanofluxError

SHAPE = (1, 8, 1, 32)
EDGES = ((("float16", SHAPE),), (("float16", SHAPE),))


class Use(nn.Module):
    """Weights under one-letter names, and what is done with them."""

    def __init__(self, use: Callable[[nn.Module, Tensor], Tensor], **weights: Tensor) -> None:
        super().__init__()
        self.use = use
        for name, tensor in weights.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, x)


def template(module: nn.Module) -> Template:
    return make_template("layer", module, *EDGES)


def vector() -> Tensor:
    return torch.randn(1, 8, 1, 1)


USED: dict[str, tuple[nn.Module, set[str]]] = {
    "a layer": (nn.Conv2d(8, 8, 1), {"weight", "bias"}),
    "a bias that coremltools puts into the layer": (
        Use(lambda m, x: nn.functional.conv2d(x, m.w) + m.b, w=torch.randn(8, 8, 1, 1), b=vector()),
        {"w", "b"},
    ),
    "scales that coremltools could put into the layer": (
        Use(lambda m, x: nn.functional.conv2d(x, m.w) * m.s, w=torch.randn(8, 8, 1, 1), s=vector()),
        {"w", "s"},
    ),
    "norms": (
        nn.Sequential(nn.BatchNorm2d(8), nn.GroupNorm(2, 8)),
        {
            *(f"0.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
            *(f"1.{name}" for name in ("weight", "bias")),
        },
    ),
    "a scalar": (Use(lambda m, x: x * m.s + 0.5, s=torch.tensor(2.0)), {"s"}),
    "two alike in shape": (Use(lambda m, x: x * m.a + m.b, a=vector(), b=vector()), {"a", "b"}),
    "one that is used twice": (Use(lambda m, x: torch.tanh(x * m.a) * m.a, a=vector()), {"a"}),
    "one value in its place": (
        Use(lambda m, x: x + m.a.reshape(1, 8, 1, 1), a=torch.randn(8)),
        {"a"},
    ),
}


@pytest.mark.parametrize("case", USED)
def test_every_weight_is_found(case: str) -> None:
    module, expected = USED[case]
    made = template(module.eval())
    assert set(made.weights.values()) == expected
    assert not made.weights.keys() & made.constants
    assert not made.blobs


def test_values_of_the_module_do_not_matter_and_stay() -> None:
    module = nn.Conv2d(8, 8, 1)
    with torch.no_grad():
        module.weight.fill_(1e9)
        module.bias.zero_()
    before = copy.deepcopy(module.state_dict())
    assert set(template(module).weights.values()) == {"weight", "bias"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_tied_weight_has_the_first_of_its_names() -> None:
    module = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Tanh(), nn.Conv2d(8, 8, 1, bias=False))
    module[2].weight = module[0].weight
    assert set(template(module).weights.values()) == {"0.weight", "0.bias"}


TABLE = torch.linspace(-1, 1, 8 * 32).reshape(SHAPE)
CHANGED: dict[str, tuple[nn.Module, str]] = {
    "scaled": (Use(lambda m, x: x + m.a * 2, a=vector()), "weight a of"),
    "transposed": (
        Use(lambda m, x: m.a.t() @ x[:, :, 0], a=torch.randn(8, 8)),
        "weight a of",
    ),
    "added": (Use(lambda m, x: x + (m.a + m.b), a=vector(), b=vector()), "weight a of"),
    "not used": (Use(lambda m, x: torch.tanh(x), a=vector()), "weight a of"),
    "used and scaled as well": (
        Use(lambda m, x: x * m.a + m.a * 2, a=vector()),
        "weight behind .* of",
    ),
    "used and turned as well": (
        Use(lambda m, x: x * m.a + m.a.flip(1), a=vector()),
        "weight behind .* of",
    ),
}


@pytest.mark.parametrize("case", CHANGED)
def test_refuses_a_module_whose_weight_is_computed_with_beforehand(case: str) -> None:
    module, named = CHANGED[case]
    edges = EDGES if case != "transposed" else (EDGES[0], (("float16", (1, 8, 32)),))
    with pytest.raises(NanofluxError, match=f"coremltools changed the {named} layer; write"):
        make_template("layer", module, *edges)


def test_tables_that_depend_on_no_weight_are_constants_of_the_kind() -> None:
    """A tensor that is no parameter, and a range that the converter computes."""
    ramp = torch.arange(32.0)
    made = template(Use(lambda m, x: (x + TABLE) * m.a + ramp.cos(), a=vector()))
    assert set(made.weights.values()) == {"a"}
    held = sorted(np.frombuffer(data, np.float16).size for _, data in made.blobs.values())
    assert held == [32, 8 * 32]
    (table,) = (data for _, data in made.blobs.values() if len(data) > 64)
    np.testing.assert_array_equal(
        np.frombuffer(table, np.float16), TABLE.half().numpy().reshape(-1)
    )


def test_integer_buffers_are_constants_of_the_kind() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("order", torch.arange(31, -1, -1))

        def forward(self, x: Tensor) -> Tensor:
            return x[..., self.order]

    made = template(Turned())
    assert made.weights == {}
    (held,) = made.blobs.values()
    np.testing.assert_array_equal(np.frombuffer(held[1], held[0]), np.arange(31, -1, -1))


OTHER = (1, 8, 1, 16)
ENDS = {
    "shape": (nn.Identity(), (("float16", OTHER),), r"layer became \[\(1, 8, 1, 32\)\], but"),
    "number": (nn.Tanh(), (("float16", SHAPE),) * 2, "layer became .* its graph says"),
    "an input": (nn.Identity(), (("float16", SHAPE),), "returns an input"),
}


@pytest.mark.parametrize("case", ENDS)
def test_refuses_other_outputs_than_told(case: str) -> None:
    module, outputs, reason = ENDS[case]
    with pytest.raises(NanofluxError, match=reason):
        make_template("layer", module, EDGES[0], outputs)


def test_refuses_control_flow() -> None:
    @torch.jit.script
    def turned(x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return -x
        return torch.tanh(x)

    with pytest.raises(NanofluxError, match="layer holds the control flow op cond"):
        template(Use(lambda m, x: turned(x) + 1))
    with pytest.raises(NanofluxError, match="layer became"):
        template(Use(lambda m, x: turned(x)))


def test_a_template_is_the_same_every_time() -> None:
    first, second = (template(nn.Conv2d(8, 8, 1)) for _ in range(2))
    assert first == second


def test_edges_of_half_precision_need_no_casts() -> None:
    half = template(nn.Conv2d(8, 8, 1))
    assert [op.type for op in half.operations if op.type != "const"] == ["conv"]
    single = make_template(
        "layer", nn.Conv2d(8, 8, 1), (("float32", SHAPE),), (("float32", SHAPE),)
    )
    kinds = [op.type for op in single.operations if op.type != "const"]
    assert kinds == ["cast", "conv", "cast"]
