"""Oracle of agent attention: agents are means of regions; two softmax attentions in a row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import to_map, vectors, weighted_mean


def region_means(x: Tensor, image: int, grid: int) -> list[Tensor]:
    """Mean vectors of the regions of one image, row by row.

    Region i of n along a side of L positions is ``floor(i L / n) … ceil((i + 1) L / n) - 1``.
    """
    cuts = []
    for length in x.shape[2:]:
        n = min(grid, length)
        cuts.append([range(i * length // n, -(-(i + 1) * length // n)) for i in range(n)])
    means = []
    for rows in cuts[0]:
        for columns in cuts[1]:
            found = [x[image, :, row, column].double() for row in rows for column in columns]
            means.append(torch.stack(found).mean(0))
    return means


def attend(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Softmax attention of one query, scores over the root of its width."""
    root = math.sqrt(len(query))
    return weighted_mean([torch.exp(torch.dot(query, key) / root) for key in keys], values)


def agent_attention(q: Tensor, k: Tensor, v: Tensor, grid: int) -> Tensor:
    """Agents attend to all positions; all positions attend to the agents."""
    images = []
    for b in range(q.shape[0]):
        agents = region_means(q, b, grid)
        gathered = [attend(agent, vectors(k, b), vectors(v, b)) for agent in agents]
        images.append([attend(query, agents, gathered) for query in vectors(q, b)])
    return to_map(images, *q.shape[2:])
