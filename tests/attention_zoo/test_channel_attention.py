"""RCAN's channel attention, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from tests.reference.cases import assert_module_agrees, perturb, random_map


def test_module_agrees_with_eq_8_to_10() -> None:
    module = perturb(create_attention("channel-attention", channels=8, squeeze=4).double())
    down, _, up, _ = module.gate

    def forward(x: Tensor) -> Tensor:
        means = torch.stack([image.sum((1, 2)) / image[0].numel() for image in x])
        hidden = (means @ down.weight[:, :, 0, 0].T + down.bias).clamp(min=0)
        gate = 1 / (1 + torch.exp(-(hidden @ up.weight[:, :, 0, 0].T + up.bias)))
        return x + 0.1 * x * gate[:, :, None, None]

    assert_module_agrees(module, forward, random_map(0, 8, (5, 4)))


@pytest.mark.parametrize(("channels", "hidden"), [(8, 1), (16, 1), (64, 4), (256, 16)])
def test_hidden_channels(channels: int, hidden: int) -> None:
    assert create_attention("channel-attention", channels=channels).hidden == hidden


def test_bad_squeeze_is_refused() -> None:
    with pytest.raises(AttentionError, match="squeeze must be at least 1"):
        create_attention("channel-attention", channels=8, squeeze=0)
