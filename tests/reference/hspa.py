"""Oracle of high-similarity-pass attention: the threshold is tried from one position on."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import to_map, vectors
from .top_k import largest


def soft_threshold(scores: list[Tensor]) -> list[Tensor]:
    """Weights ``max(s - t, 0)`` that sum to 1, of descending scores.

    If r scores pass, t is ``(their sum - 1) / r``; the right r is the largest whose last score
    passes.
    """
    passing = 1
    for r in range(1, len(scores) + 1):
        if scores[r - 1] > (torch.stack(scores[:r]).sum() - 1) / r:
            passing = r
    threshold = (torch.stack(scores[:passing]).sum() - 1) / passing
    zero = torch.zeros_like(threshold)
    return [s - threshold if r < passing else zero for r, s in enumerate(scores)]


def high_similarity_attention(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    """Values weighted by the soft threshold of the largest scores."""
    images = []
    for b in range(q.shape[0]):
        queries, keys, values = vectors(q, b), vectors(k, b), vectors(v, b)
        outs = []
        for query in queries:
            scores = [torch.dot(query, key) for key in keys]
            chosen = largest(scores, count)
            weights = soft_threshold([scores[j] for j in chosen])
            parts = [w * values[j] for w, j in zip(weights, chosen, strict=True)]
            outs.append(torch.stack(parts).sum(0))
        images.append(outs)
    return to_map(images, *q.shape[2:])
