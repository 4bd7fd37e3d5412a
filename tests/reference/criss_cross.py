"""Oracle of criss-cross attention: the H + W − 1 positions of one column and one row."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import weighted_mean


def criss_cross_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One softmax per position over its column and its row, its own position counted once."""
    q, k, v = q.double(), k.double(), v.double()
    batch, _, height, width = q.shape
    images = []
    for b in range(batch):
        rows = []
        for row in range(height):
            columns = []
            for column in range(width):
                seen = [(other, column) for other in range(height)]
                seen += [(row, other) for other in range(width) if other != column]
                query = q[b, :, row, column]
                weights = [torch.exp(torch.dot(query, k[b, :, y, x])) for y, x in seen]
                columns.append(weighted_mean(weights, [v[b, :, y, x] for y, x in seen]))
            rows.append(torch.stack(columns, dim=-1))
        images.append(torch.stack(rows, dim=-2))
    return torch.stack(images)
