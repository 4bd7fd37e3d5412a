"""Oracles of approximation quality: every pair of positions on its own, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import divided_by_norm, vectors


def amplified(feature_map: Tensor, k: float) -> list[Tensor]:
    """``sqrt(k) · u / |u|`` of each position of ``[1, c, H, W]``."""
    return [math.sqrt(k) * divided_by_norm(u) for u in vectors(feature_map, 0)]


def exact_kernel(u: list[Tensor], w: list[Tensor]) -> Tensor:
    """exp(u·w) of every pair: ``[Q, N]``."""
    return torch.stack([torch.stack([torch.exp(torch.dot(a, b)) for b in w]) for a in u])


def random_kernel(u: list[Tensor], w: list[Tensor], projection: Tensor, eps: float) -> Tensor:
    """Mean over rows f of (exp(f·u − |u|²/2) + eps) · (exp(f·w − |w|²/2) + eps): ``[Q, N]``."""
    kernel = torch.zeros(len(u), len(w), dtype=torch.float64)
    for f in projection.double():
        for i, a in enumerate(u):
            for j, b in enumerate(w):
                left = torch.exp(torch.dot(f, a) - torch.dot(a, a) / 2) + eps
                right = torch.exp(torch.dot(f, b) - torch.dot(b, b) / 2) + eps
                kernel[i, j] += left * right / len(projection)
    return kernel


def weighted_values(weights: Tensor, values: list[Tensor]) -> Tensor:
    """``sum_j w_ij v_j / sum_j w_ij``: ``[Q, c_out]``."""
    rows = []
    for row in weights:
        total = sum(w * v for w, v in zip(row, values, strict=True))
        assert isinstance(total, Tensor)
        rows.append(total / row.sum())
    return torch.stack(rows)


def effective_positions(weights: Tensor) -> tuple[float, float]:
    """(exp of the entropy, 1 / sum of squares) of each row made to sum to 1, mean over rows."""
    entropies, squares = [], []
    for row in weights:
        shares = [float(w / row.sum()) for w in row]
        entropies.append(math.exp(-sum(p * math.log(p) for p in shares if p > 0)))
        squares.append(1 / sum(p * p for p in shares))
    return sum(entropies) / len(entropies), sum(squares) / len(squares)
