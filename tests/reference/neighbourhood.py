"""Oracle of neighbourhood attention: every position finds its own window, and looks at it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import weighted_mean


def nearest_window_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dilation: int
) -> Tensor:
    """``softmax(q·k / sqrt(d) + bias)`` over the window, head by head.

    Along each side the window is the run of k neighbouring positions, ``dilation`` apart, whose
    middle is nearest to the query; all of them, where there are fewer than k.
    """
    q, k, v, bias = q.double(), k.double(), v.double(), bias.double()
    batch, _, height, width = q.shape
    heads, window = bias.shape[0], (bias.shape[1] + 1) // 2
    per_head, values_per_head = q.shape[1] // heads, v.shape[1] // heads

    def seen(at: int, length: int) -> list[int]:
        apart = [i for i in range(length) if (i - at) % dilation == 0]
        windows = [apart[i : i + window] for i in range(max(1, len(apart) - window + 1))]
        return min(windows, key=lambda run: abs(run[0] + run[-1] - 2 * at))

    images = []
    for b in range(batch):
        outs = []
        for row in range(height):
            for column in range(width):
                near = [(y, x) for y in seen(row, height) for x in seen(column, width)]
                parts = []
                for head in range(heads):
                    part = slice(head * per_head, (head + 1) * per_head)
                    values = slice(head * values_per_head, (head + 1) * values_per_head)
                    weights = []
                    for y, x in near:
                        score = torch.dot(q[b, part, row, column], k[b, part, y, x])
                        down, right = (row - y) // dilation, (column - x) // dilation
                        offset = bias[head, down + window - 1, right + window - 1]
                        weights.append(torch.exp(score / math.sqrt(per_head) + offset))
                    parts.append(weighted_mean(weights, [v[b, values, y, x] for y, x in near]))
                outs.append(torch.cat(parts))
        images.append(torch.stack(outs, dim=1).reshape(-1, height, width))
    return torch.stack(images)
