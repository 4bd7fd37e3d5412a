from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attention_zoo import list_attentions
from attention_zoo.plain import adapt
from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.network.convolution import NarrowConv, UpsamplingConv
from harness.network.edsr import (
    EDSR,
    RGB_MEAN,
    build_network,
    learn_res_scale,
    learned_weights,
)


def tiny(
    name: str, options: dict[str, Any] | None = None, scale: int = 4, blocks: int = 4, seed: int = 0
) -> EDSR:
    return build_network(Variant(name, options or {}), NetworkConfig(blocks, 8), scale, seed=seed)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("name", list_attentions())
def test_output_is_scale_times_the_input(name: str, scale: int) -> None:
    network = tiny(name, scale=scale).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 3, 5, 7)).shape == (2, 3, 5 * scale, 7 * scale)


@pytest.mark.parametrize("blocks", [4, 6, 8, 32])
def test_five_modules_after_each_quarter(blocks: int) -> None:
    network = tiny("conv", blocks=blocks)
    places = [int(key) for key in network.attention]
    assert places == [round(i * blocks / 4) for i in range(5)]
    assert blocks != 32 or places == [0, 8, 16, 24, 32]


def test_backbone_weights_depend_on_the_seed_alone() -> None:
    plain = tiny("none", seed=3)
    for name in list_attentions():
        torch.manual_seed(int(torch.randint(100, ())))  # the global state must not matter
        other = tiny(name, seed=3)
        state = other.state_dict()
        for key, value in plain.state_dict().items():
            assert torch.equal(value, state[key]), (name, key)
    different = tiny("none", seed=4)
    assert not torch.equal(different.head.weight, plain.head.weight)


def test_module_weights_differ_among_modules_and_agree_among_builds() -> None:
    first, second = (tiny("nla", seed=3).attention for _ in range(2))
    assert torch.equal(first["0"].query.weight, second["0"].query.weight)
    assert not torch.equal(first["0"].query.weight, first["1"].query.weight)


def test_building_leaves_the_global_random_state() -> None:
    state = torch.get_rng_state()
    tiny("enlca")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [name for name in list_attentions() if name != "none"])
def test_a_learned_weight_begins_at_the_modules_own(name: str) -> None:
    fixed = build_network(Variant(name), NetworkConfig(4, 8), 2)
    learned = build_network(Variant(name), NetworkConfig(4, 8), 2, learned=True)
    weights = learned.state_dict().keys() - fixed.state_dict().keys()
    if name == "criss-cross":  # which learns its gamma
        assert not weights
        return
    assert weights == {f"attention.{place}.res_scale" for place in range(5)}
    assert learned_weights(learned) == pytest.approx([0.1] * 5)
    x = torch.rand(1, 3, 12, 9)
    with torch.no_grad():
        pair = [one.eval()(x) for one in (fixed, copy.deepcopy(learned))]
        torch.testing.assert_close(*pair)
        for module in learned.attention_modules:
            assert isinstance(module.res_scale, torch.Tensor)
            module.res_scale.fill_(0)
        nothing = build_network(Variant("none"), NetworkConfig(4, 8), 2)
        torch.testing.assert_close(learned.eval()(x), nothing(x))
    assert learned_weights(fixed) == []


def test_the_gradient_of_a_learned_weight_is_the_derivative() -> None:
    network = build_network(
        Variant("nla", {"res_scale": 0.5}), NetworkConfig(4, 8), 1, positions=(1, 3), learned=True
    ).double()
    x = torch.rand(1, 3, 6, 5, dtype=torch.float64)
    weights = [module.res_scale for module in network.attention_modules]
    assert [float(weight) for weight in weights] == [0.5, 0.5]
    gradients = torch.autograd.grad(network(x).square().sum(), weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        assert isinstance(weight, torch.Tensor)
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight.add_(step)
                values.append(network(x).square().sum())
                weight.sub_(step)
        difference = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close(gradient, difference, rtol=1e-5, atol=1e-9)


def test_own_weights_of_other_modules_stay() -> None:
    """A released NLA weighs its input; a plain module has a residual of its own."""
    released = build_network(
        Variant("nla", {"released": True}), NetworkConfig(4, 8), 2, learned=True
    )
    module = released.attention_modules[0]
    x, y = torch.rand(1, 8, 3, 3), torch.rand(1, 8, 3, 3)
    torch.testing.assert_close(module.residual(x, y), y + 0.1 * x)
    plain = adapt(Scaled, "tests:Scaled")(8)
    learn_res_scale(plain)
    assert [*plain.parameters()] == []
    assert torch.equal(plain(x), x * 0.1)


class Scaled(nn.Module):
    """A plain module with an option that bears the name of the suite's."""

    def __init__(self, channels: int, res_scale: float = 0.1) -> None:
        super().__init__()
        self.res_scale = res_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.res_scale


def literal_edsr(network: EDSR, x: torch.Tensor) -> torch.Tensor:
    """EDSR as its paper describes it, written out, with attention where it belongs."""

    def conv(u: torch.Tensor, layer: torch.nn.Conv2d) -> torch.Tensor:
        return F.conv2d(u, layer.weight, layer.bias, padding=1)

    mean = torch.tensor(RGB_MEAN).view(1, 3, 1, 1)
    head = conv(x - mean, network.head)
    u = network.attention["0"](head)
    for i, block in enumerate(network.blocks):
        y = conv(F.relu(conv(u, block.conv1)), block.conv2)
        u = u + block.res_scale * y
        if (i + 1) % 2 == 0:
            u = network.attention[str(i + 1)](u)
    u = conv(u, network.body_end) + head
    for layer in network.upsampler:
        u = F.pixel_shuffle(conv(u, layer), 2)
    return conv(u, network.tail) + mean


@pytest.mark.parametrize("scale", [1, 4])
def test_forward_is_edsr(scale: int) -> None:
    network = build_network(Variant("nla"), NetworkConfig(8, 8, 0.1), scale, seed=1).eval()
    assert len(network.upsampler) == (0 if scale == 1 else 2)
    x = torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        assert torch.allclose(network(x), literal_edsr(network, x), atol=1e-5)


def test_with_the_range_1_no_bit_differs_from_a_network_without_a_range() -> None:
    network = tiny("enlca", {"m": 4}, scale=2).eval()
    x = torch.rand(1, 3, 6, 5).requires_grad_()
    mean = network.mean
    head = network.head(x - mean)
    u = network.attention["0"](head)
    for i, block in enumerate(network.blocks, start=1):
        u = network.attention[str(i)](block(u))
    expected = network.tail(network.upsampler(network.body_end(u) + head)) + mean
    found = network(x)
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
    assert torch.equal(*gradients)


def test_modules_stand_where_they_are_put() -> None:
    network = build_network(
        Variant("conv"), NetworkConfig(2, 4), 2, positions=(0, 2), image_range=255
    )
    assert list(network.attention) == ["0", "2"]
    assert network(torch.rand(1, 3, 4, 4)).shape == (1, 3, 8, 8)


def test_auxiliary_loss_is_the_mean_of_the_modules() -> None:
    network = tiny("enlca", {"m": 4})
    network(torch.rand(1, 3, 9, 8))
    losses = [module.auxiliary_loss() for module in network.attention_modules]
    assert len(losses) == 5
    assert torch.equal(network.auxiliary_loss(), torch.stack(losses).mean())
    network.enable_auxiliary(False)
    network(torch.rand(1, 3, 9, 8))
    assert network.auxiliary_loss() == 0
    assert tiny("none").auxiliary_loss() == 0


def test_redraw_reaches_every_module() -> None:
    network = tiny("enla", {"m": 4})
    before = [module.projection.clone() for module in network.attention_modules]
    network.redraw()
    for old, module in zip(before, network.attention_modules, strict=True):
        assert not torch.equal(old, module.projection)


@pytest.mark.parametrize("products", [1, 200, 2**20])
@pytest.mark.parametrize("shape", [(2, 8, 5, 7), (1, 4, 1, 9), (3, 4, 9, 1), (2, 4, 2, 2)])
def test_fast_convolutions_are_torchs(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], products: int
) -> None:
    """Channels-last, as the network runs, and NCHW; values and gradients, whole and in tiles."""
    monkeypatch.setattr("harness.network.convolution._PRODUCTS", products)
    torch.manual_seed(0)
    narrow, upsampling = NarrowConv(shape[1], 3), UpsamplingConv(shape[1], 2)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        x = torch.randn(shape).to(memory_format=memory_format).requires_grad_()
        for layer, shuffle in ((narrow, 1), (upsampling, 2)):
            leaves = [x, layer.weight, layer.bias]
            y = layer(x)
            plain = F.pixel_shuffle(F.conv2d(x, layer.weight, layer.bias, padding=1), shuffle)
            weights = torch.randn_like(plain)
            torch.testing.assert_close(y, plain)
            for found, wanted in zip(
                torch.autograd.grad(y, leaves, weights),
                torch.autograd.grad(plain, leaves, weights),
                strict=True,
            ):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
