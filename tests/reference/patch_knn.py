"""Oracle of neural nearest neighbours: every round over every candidate, one by one.

``log(1 - w_j)`` is the logarithm of the others' sum over that of all, so that nothing cancels.
Where the text leaves room: the only position of a map is its own neighbour, in every round.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rounds_of(logits: Tensor, temperature: Tensor, count: int) -> list[Tensor]:
    """Weights of the candidates ``[m]``, round by round."""
    found = []
    own = torch.eye(len(logits), dtype=torch.bool)
    for _ in range(count):
        total = torch.logsumexp(logits, 0)
        found.append(torch.exp(logits - total))
        if len(logits) > 1:
            others = torch.logsumexp(logits.expand_as(own).masked_fill(own, -torch.inf), 1)
            logits = logits + (others - total) / temperature
    return found


def nearest_neighbours(
    q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, count: int, window: int
) -> Tensor:
    """``sum_j w_j^r v_j`` of each round r: ``[B, rounds, c_out, H, W]``."""
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
                if abs(y - row) <= window // 2
                and abs(x - column) <= window // 2
                and ((y, x) != (row, column) or len(positions) == 1)
            ]
            keys, values = (torch.stack([t[b, :, y, x] for y, x in near]) for t in (k, v))
            distances = torch.sum((q[b, :, row, column] - keys) ** 2, dim=1)
            rounds = rounds_of(-distances / temperature.double(), temperature.double(), count)
            means.append(torch.stack([weights @ values for weights in rounds]))
        images.append(torch.stack(means, dim=2).unflatten(2, (height, width)))
    return torch.stack(images)
