"""Oracle of permuted windows: every position looks at the cells of 2x2 positions of its window."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import weighted_mean


def permuted_window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, window: int) -> Tensor:
    """``softmax(q·k_p / sqrt(d) + bias)`` over the cells of the window, head by head.

    k_p and v_p are the keys and values of a cell's positions one after the other; a position
    outside the map is the nearest one in it.
    """
    q, k, v, bias = q.double(), k.double(), v.double(), bias.double()
    batch, _, height, width = q.shape
    heads, middle = bias.shape[0], window // 2 - 1
    per_head, values_per_head = q.shape[1] // heads, 4 * v.shape[1] // heads

    def cell(x: Tensor, image: int, row: int, column: int) -> Tensor:
        corners = [(2 * row + down, 2 * column + right) for down in (0, 1) for right in (0, 1)]
        return torch.cat([x[image, :, min(y, height - 1), min(x_, width - 1)] for y, x_ in corners])

    cells = [(y, x) for y in range((height + 1) // 2) for x in range((width + 1) // 2)]
    images = []
    for b in range(batch):
        keys, values = ({at: cell(t, b, *at) for at in cells} for t in (k, v))
        outs = []
        for row in range(height):
            for column in range(width):
                seen = [
                    (y, x)
                    for y, x in cells
                    if 2 * y // window == row // window and 2 * x // window == column // window
                ]
                parts = []
                for head in range(heads):
                    part = slice(head * per_head, (head + 1) * per_head)
                    of_values = slice(head * values_per_head, (head + 1) * values_per_head)
                    weights = [
                        torch.exp(
                            torch.dot(q[b, part, row, column], keys[y, x][part])
                            / math.sqrt(per_head)
                            + bias[head, row // 2 - y + middle, column // 2 - x + middle]
                        )
                        for y, x in seen
                    ]
                    parts.append(weighted_mean(weights, [values[at][of_values] for at in seen]))
                outs.append(torch.cat(parts))
        images.append(torch.stack(outs, dim=1).reshape(-1, height, width))
    return torch.stack(images)
