"""Oracle of RCAN's channel attention, Eq. 8-10."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_attention(v: Tensor, down: list[Tensor], up: list[Tensor]) -> Tensor:
    """Maps ``[B, C, H, W]``; weight ``[out, in]`` and bias ``[out]`` of both layers."""
    v = v.double()
    images = []
    for image in v:
        means = [channel.sum() / channel.numel() for channel in image]
        hidden = _layer(means, *down)
        scores = _layer([h if h.item() > 0 else h * 0 for h in hidden], *up)
        images.append(
            torch.stack(
                [channel / (1 + torch.exp(-s)) for channel, s in zip(image, scores, strict=True)]
            )
        )
    return torch.stack(images)


def _layer(inputs: list[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    outputs = []
    for row, one_bias in zip(weight.double(), bias.double(), strict=True):
        total = one_bias
        for w, x in zip(row, inputs, strict=True):
            total = total + w * x
        outputs.append(total)
    return outputs
