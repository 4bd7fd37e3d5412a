"""Oracle of transposed attention: channel by channel, head by head."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import divided_by_norm


def transposed_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """Channel i of a head is the mean of its channels j, weighted by softmax of α q_i · k_j."""
    size = q.shape[1] // len(temperature)
    images = []
    for b in range(q.shape[0]):
        channels = []
        for i in range(q.shape[1]):
            head = i // size
            members = range(head * size, (head + 1) * size)
            query = divided_by_norm(q[b, i].flatten(), 1e-12)
            scores = [
                temperature[head] * torch.dot(query, divided_by_norm(k[b, j].flatten(), 1e-12))
                for j in members
            ]
            weights = torch.stack(scores).softmax(0)
            channels.append(sum(w * v[b, j] for w, j in zip(weights, members, strict=True)))
        images.append(torch.stack(channels))
    return torch.stack(images)
