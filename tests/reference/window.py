"""Oracle of window attention: every position looks for those that lie in its own window."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import weighted_mean


def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, shift: int = 0) -> Tensor:
    """``softmax(q·k / sqrt(d) + bias)`` over the window, head by head.

    Two positions share a window if floor((row − shift) / M) and floor((column − shift) / M) agree.
    """
    q, k, v, bias = q.double(), k.double(), v.double(), bias.double()
    batch, _, height, width = q.shape
    heads, window = bias.shape[0], (bias.shape[1] + 1) // 2
    per_head = q.shape[1] // heads
    values_per_head = v.shape[1] // heads

    def of(row: int, column: int) -> tuple[int, int]:
        return (row - shift) // window, (column - shift) // window

    positions = [(row, column) for row in range(height) for column in range(width)]
    images = []
    for b in range(batch):
        outs = []
        for row, column in positions:
            seen = [(y, x) for y, x in positions if of(y, x) == of(row, column)]
            parts = []
            for head in range(heads):
                part = slice(head * per_head, (head + 1) * per_head)
                values = slice(head * values_per_head, (head + 1) * values_per_head)
                weights = [
                    torch.exp(
                        torch.dot(q[b, part, row, column], k[b, part, y, x]) / math.sqrt(per_head)
                        + bias[head, row - y + window - 1, column - x + window - 1]
                    )
                    for y, x in seen
                ]
                parts.append(weighted_mean(weights, [v[b, values, y, x] for y, x in seen]))
            outs.append(torch.cat(parts))
        images.append(torch.stack(outs, dim=1).reshape(-1, height, width))
    return torch.stack(images)
