"""Oracle of stride-1 convolutions with zero padding that keeps the size."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``[B, C, H, W]`` , weight ``[O, C, k, k]`` (k odd), bias ``[O]`` to ``[B, O, H, W]``."""
    batch, _, height, width = x.shape
    x, reach = x.double(), weight.shape[2] // 2
    offsets = range(-reach, reach + 1)
    taps = {
        (down, right): weight[:, :, reach + down, reach + right].double().T
        for down in offsets
        for right in offsets
    }
    rows = []
    for row in range(height):
        columns = []
        for column in range(width):
            total = torch.zeros(batch, weight.shape[0], dtype=torch.float64)
            for (down, right), tap in taps.items():
                if 0 <= row + down < height and 0 <= column + right < width:
                    total = total + x[:, :, row + down, column + right] @ tap
            columns.append(total if bias is None else total + bias.double())
        rows.append(torch.stack(columns, dim=-1))
    return torch.stack(rows, dim=-2)


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution with a layer's weights, each channel alone if the layer is depthwise."""
    weight, bias = layer.weight, layer.bias
    if layer.groups > 1:
        weight = torch.eye(len(weight), dtype=weight.dtype)[:, :, None, None] * weight
    return convolution(x, weight, bias)
