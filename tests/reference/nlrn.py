"""Oracle of neighbourhood attention: every position looks at those within reach, one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import weighted_mean


def neighbourhood_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """``sum_j exp(q_i·k_j) v_j / sum_j exp(q_i·k_j)``, within window // 2 of each other."""
    q, k, v = q.double(), k.double(), v.double()
    batch, _, height, width = q.shape
    positions = [(row, column) for row in range(height) for column in range(width)]
    images = []
    for b in range(batch):
        means = []
        for row, column in positions:
            near = [
                (y, x)
                for y, x in positions
                if abs(y - row) <= window // 2 and abs(x - column) <= window // 2
            ]
            weights = [torch.exp(torch.dot(q[b, :, row, column], k[b, :, y, x])) for y, x in near]
            means.append(weighted_mean(weights, [v[b, :, y, x] for y, x in near]))
        images.append(torch.stack(means, dim=1).reshape(-1, height, width))
    return torch.stack(images)
