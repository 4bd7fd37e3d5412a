"""The module at which numbers stop being finite is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.network.edsr import EDSR, build_network
from harness.training.diagnosis import where_not_finite

IMAGES = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network() -> EDSR:
    return build_network(Variant("enlca", {"m": 4}), NetworkConfig(4, 8), 2).train()


class Faulty(nn.Module):
    """Passes its input on, and no finite gradient back."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x) * 1
        y.register_hook(lambda gradient: gradient / 0)
        return y * 1


def spoil(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        next(module.parameters()).fill_(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_output(network: EDSR, value: float) -> None:
    spoil(network.blocks[2].conv2, value)
    assert where_not_finite(network, IMAGES) == "first in the output of blocks.2.conv2 (Conv3x3)"


def test_output_of_an_attention_whose_parts_are_sound(
    network: EDSR, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = network.attention_modules[1]
    monkeypatch.setattr(module, "attend", lambda q, k, v: v * float("nan"))
    place = "first in the output of attention.1 (EfficientNonLocalContrastiveAttention)"
    assert where_not_finite(network, IMAGES) == place


def test_auxiliary_loss(network: EDSR, monkeypatch: pytest.MonkeyPatch) -> None:
    network.enable_auxiliary(True)
    module = network.attention_modules[3]
    monkeypatch.setattr(module, "contrast", lambda q, k: q.sum() / 0)
    place = "first in the auxiliary loss of attention.3 ("
    assert where_not_finite(network, IMAGES).startswith(place)


def test_gradient(network: EDSR) -> None:
    """The module behind it is at fault: a gradient is that of an output."""
    network.blocks[1] = Faulty(network.blocks[1])
    place = "first in the gradient of blocks.1.inner (ResidualBlock)"
    assert where_not_finite(network, IMAGES).startswith(place)


def test_what_has_only_grown(network: EDSR) -> None:
    spoil(network.body_end, 1e9)
    found = where_not_finite(network, IMAGES)
    assert found.startswith("the largest output (")
    assert found.endswith(("upsampler.0", "upsampler.1", "upsampler", "tail"))
    assert not any(module._forward_hooks for module in network.modules())
