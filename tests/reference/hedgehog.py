"""Oracle of Hedgehog's attention: learned exponential features, pair by pair."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import to_map, vectors, weighted_mean


def features(x: Tensor, weight: Tensor, bias: Tensor, softmax: bool) -> Tensor:
    """``[exp(Wx + b), exp(-Wx - b)]``, each half over its sum if ``softmax``."""
    positive = torch.stack(
        [torch.exp(torch.dot(w, x) + b) for w, b in zip(weight, bias, strict=True)]
    )
    halves = [positive, 1 / positive]
    if softmax:
        halves = [half / half.sum() for half in halves]
    return torch.cat(halves)


def learned_feature_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    key_weight: Tensor,
    key_bias: Tensor,
    softmax: bool,
) -> Tensor:
    """Every position's mean of the values, weighted by products of features."""
    query_map, key_map = (query_weight, query_bias), (key_weight, key_bias)
    images = []
    for b in range(q.shape[0]):
        queries, keys = (
            [features(x, *(t.double() for t in weights), softmax) for x in vectors(t, b)]
            for t, weights in ((q, query_map), (k, key_map))
        )
        values = vectors(v, b)
        images.append([weighted_mean([torch.dot(x, y) for y in keys], values) for x in queries])
    return to_map(images, *q.shape[2:])
