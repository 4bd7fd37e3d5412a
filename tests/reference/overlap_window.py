"""Oracle of overlapping windows: every position looks for those near enough to its own window."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import weighted_mean


def overlap_window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, window: int) -> Tensor:
    """``softmax(q·k / sqrt(d) + bias)`` over the larger window around that of the query.

    It begins ``reach`` rows and columns before the window of M x M positions that the query lies
    in, and ends as many behind it.
    """
    q, k, v, bias = q.double(), k.double(), v.double(), bias.double()
    batch, _, height, width = q.shape
    heads, reach = bias.shape[0], (bias.shape[1] + 1) // 2 - window
    per_head = q.shape[1] // heads
    values_per_head = v.shape[1] // heads

    def sees(query: int, key: int) -> bool:
        start = query // window * window
        return start - reach <= key < start + window + reach

    positions = [(row, column) for row in range(height) for column in range(width)]
    images = []
    for b in range(batch):
        outs = []
        for row, column in positions:
            seen = [(y, x) for y, x in positions if sees(row, y) and sees(column, x)]
            parts = []
            for head in range(heads):
                part = slice(head * per_head, (head + 1) * per_head)
                values = slice(head * values_per_head, (head + 1) * values_per_head)
                middle = window + reach - 1
                weights = [
                    torch.exp(
                        torch.dot(q[b, part, row, column], k[b, part, y, x]) / math.sqrt(per_head)
                        + bias[head, row - y + middle, column - x + middle]
                    )
                    for y, x in seen
                ]
                parts.append(weighted_mean(weights, [v[b, values, y, x] for y, x in seen]))
            outs.append(torch.cat(parts))
        images.append(torch.stack(outs, dim=1).reshape(-1, height, width))
    return torch.stack(images)
