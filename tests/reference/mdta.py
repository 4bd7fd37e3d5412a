"""Oracle of Restormer's transposed attention: channels attend to channels, head by head."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import divided_by_norm, weighted_mean


def transposed_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """Channel i of a head: ``sum_j exp(t cos(q_i, k_j)) v_j`` over the head's channels, normalised.

    A channel is the vector of its H·W values.
    """
    q, k, v, temperature = q.double(), k.double(), v.double(), temperature.double()
    heads = len(temperature)
    per_head = q.shape[1] // heads
    images = []
    for b in range(q.shape[0]):
        channels = []
        for i in range(q.shape[1]):
            head = i // per_head
            seen = range(head * per_head, (head + 1) * per_head)
            query = divided_by_norm(q[b, i].flatten())
            weights = [
                torch.exp(temperature[head] * torch.dot(query, divided_by_norm(k[b, j].flatten())))
                for j in seen
            ]
            channels.append(weighted_mean(weights, [v[b, j] for j in seen]))
        images.append(torch.stack(channels))
    return torch.stack(images)
