"""Oracle of efficient non-local attention, Eq. 3–7."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import divided_by_norm, to_map, vectors, weighted_mean


def normalise(x: Tensor, amplification: float) -> Tensor:
    """Eq. 3: ``sqrt(k) · u / max(|u|, 5e-5)`` for every position of ``[B, c, H, W]``."""
    images = [
        [math.sqrt(amplification) * divided_by_norm(u) for u in vectors(x, b)]
        for b in range(x.shape[0])
    ]
    return to_map(images, *x.shape[2:])


def phi(u: Tensor, projection: Tensor, eps: float) -> Tensor:
    """``m^(-1/2) · (exp(F u − |u|²/2) + eps)``: ``[c]`` and F ``[m, c]`` to ``[m]``."""
    features = [
        (torch.exp(torch.dot(f, u) - torch.dot(u, u) / 2) + eps) / math.sqrt(len(projection))
        for f in projection.double()
    ]
    return torch.stack(features)


def random_feature_attention(
    q: Tensor, k: Tensor, v: Tensor, projection: Tensor, eps: float = 1e-4
) -> Tensor:
    """Eq. 1 with phi(Q_i)·phi(K_j) in place of exp(Q_i·K_j); q and k normalised already."""
    images = []
    for b in range(q.shape[0]):
        queries = [phi(u, projection, eps) for u in vectors(q, b)]
        keys = [phi(u, projection, eps) for u in vectors(k, b)]
        values = vectors(v, b)
        images.append([weighted_mean([torch.dot(x, y) for y in keys], values) for x in queries])
    return to_map(images, *q.shape[2:])


def estimator_variance(q: Tensor, k: Tensor, m: int, *, orthogonal: bool = False) -> float:
    """Variance of phi(q)·phi(k) at eps = 0 over draws of F, for vectors ``[c]``.

    Independent rows: Eq. 7, ``K² (exp(|z|²) − 1) / m`` with ``K = exp(q·k)``, ``z = q + k``.

    Orthogonal rows (one block, m <= c): of the m² pairs of rows, m(m − 1) are no longer
    independent. The sum w of two such rows has a uniform direction, and |w|² is chi-squared with
    2c degrees, so ``E exp(w·z) = sum_j (|z|²/2)^j / j! · (c)_j / (c/2)_j`` (Kummer's function,
    (a)_j the rising factorial), where independent rows have ``exp(|z|²)``: 2^j in place of the
    quotient. The quotient is smaller from j = 2 on, hence the variance is.
    """
    c, z2 = len(q), float((q + k) @ (q + k))
    scale = math.exp(-float(q @ q + k @ k))
    variance = scale * (math.exp(2 * z2) - math.exp(z2)) / m
    if orthogonal:
        term = product = 1.0
        for j in range(200):
            term *= z2 / 2 / (j + 1) * (c + j) / (c / 2 + j)
            product += term
        variance += scale * (1 - 1 / m) * (product - math.exp(z2))
    return variance
