"""Feature maps as plain lists of vectors, in row-major order of positions."""

from __future__ import annotations

import torch
from torch import Tensor


def vectors(feature_map: Tensor, image: int) -> list[Tensor]:
    """The H·W channel vectors ``[c]`` of one image of ``[B, c, H, W]``, in float64."""
    height, width = feature_map.shape[2:]
    return [
        feature_map[image, :, row, column].double()
        for row in range(height)
        for column in range(width)
    ]


def to_map(images: list[list[Tensor]], height: int, width: int) -> Tensor:
    """Vectors ``[c]`` per image and position back to ``[B, c, H, W]``."""
    maps = [torch.stack(positions, dim=1).reshape(-1, height, width) for positions in images]
    return torch.stack(maps)


def weighted_mean(weights: list[Tensor], values: list[Tensor]) -> Tensor:
    """``sum(w_j · v_j) / sum(w_j)`` for scalar weights and vectors."""
    total = weights[0]
    mean = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight
        mean = mean + weight * value
    return mean / total


def divided_by_norm(vector: Tensor, least: float = 5e-5) -> Tensor:
    """``u / max(|u|, least)``."""
    norm = torch.sqrt(torch.sum(vector * vector))
    if norm.item() <= least:
        return vector / least
    return vector / norm
