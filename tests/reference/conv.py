"""Oracle of a stride-1 convolution with zero padding that keeps the size."""

from __future__ import annotations

import torch
from torch import Tensor


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``[B, C, H, W]`` , weight ``[O, C, k, k]`` (k odd), bias ``[O]`` to ``[B, O, H, W]``."""
    batch, _, height, width = x.shape
    reach = weight.shape[2] // 2
    rows = []
    for row in range(height):
        columns = []
        for column in range(width):
            total = torch.zeros(batch, weight.shape[0], dtype=torch.float64)
            for down in range(-reach, reach + 1):
                for right in range(-reach, reach + 1):
                    if 0 <= row + down < height and 0 <= column + right < width:
                        tap = weight[:, :, reach + down, reach + right].double()
                        total = total + x[:, :, row + down, column + right].double() @ tap.T
            columns.append(total if bias is None else total + bias.double())
        rows.append(torch.stack(columns, dim=-1))
    return torch.stack(rows, dim=-2)
