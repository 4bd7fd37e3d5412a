"""Oracle of differential attention: two softmaxes a head, subtracted weight by weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import to_map, vectors


def softmax_weights(query: Tensor, keys: list[Tensor]) -> list[Tensor]:
    """``exp(q·k_j / sqrt(d))``, divided by their sum."""
    scores = [torch.exp(torch.dot(query, key) / math.sqrt(len(query))) for key in keys]
    return [score / torch.stack(scores).sum() for score in scores]


def difference(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, heads: int) -> Tensor:
    """``sum_j (first weight_j - weight · second weight_j) v_j``, of every two heads."""
    images = []
    for b in range(q.shape[0]):
        queries, keys = ([u.chunk(heads) for u in vectors(t, b)] for t in (q, k))
        values = [u.chunk(heads // 2) for u in vectors(v, b)]
        outs = []
        for query in queries:
            parts = []
            for pair in range(heads // 2):
                first, second = (
                    softmax_weights(query[head], [key[head] for key in keys])
                    for head in (2 * pair, 2 * pair + 1)
                )
                parts.append(
                    torch.stack(
                        [
                            (first[j] - weight * second[j]) * value[pair]
                            for j, value in enumerate(values)
                        ]
                    ).sum(0)
                )
            outs.append(torch.cat(parts))
        images.append(outs)
    return to_map(images, *q.shape[2:])


def differential_attention(
    q: Tensor, k: Tensor, v: Tensor, learned: Tensor, start: float, gain: Tensor, heads: int
) -> Tensor:
    """With the weight from its four vectors, and every head divided by its root mean square."""
    a1, b1, a2, b2 = learned.double()
    weight = torch.exp(torch.dot(a1, b1)) - torch.exp(torch.dot(a2, b2)) + start
    out = difference(q, k, v, weight, heads)
    images = [
        [
            torch.cat(
                [
                    (1 - start) * gain.double() * part / torch.sqrt((part * part).mean() + 1e-5)
                    for part in position.chunk(heads // 2)
                ]
            )
            for position in vectors(out, b)
        ]
        for b in range(len(out))
    ]
    return to_map(images, *out.shape[2:])
