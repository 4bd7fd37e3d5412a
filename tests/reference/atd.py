"""Oracle of the adaptive token dictionary's two attentions, position by position.

Where the text leaves room: a last incomplete group is filled with the last sorted positions, each
counted as often as it then stands there; if there are fewer positions than a group holds, they are
one group, and nothing is filled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import divided_by_norm, to_map, vectors, weighted_mean


def token_scores(query: Tensor, keys: Tensor, scale: Tensor) -> list[Tensor]:
    """Scaled cosines of one query ``[c]`` with the tokens' keys ``[M, c]``."""
    unit = divided_by_norm(query)
    return [
        s * torch.dot(unit, divided_by_norm(key))
        for s, key in zip(scale.double(), keys.double(), strict=True)
    ]


def token_attention(q: Tensor, keys: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """Every position's mean of the token values ``[M, c_out]``, weighted by exp(score)."""
    images = []
    for b in range(q.shape[0]):
        images.append(
            [
                weighted_mean(
                    [torch.exp(s) for s in token_scores(query, keys, scale)], list(values.double())
                )
                for query in vectors(q, b)
            ]
        )
    return to_map(images, *q.shape[2:])


def token_categories(q: Tensor, keys: Tensor, scale: Tensor) -> list[list[int]]:
    """The first token of the largest score, per image and position."""
    found = []
    for b in range(q.shape[0]):
        scores = [[s.item() for s in token_scores(u, keys, scale)] for u in vectors(q, b)]
        found.append([row.index(max(row)) for row in scores])
    return found


def groups(categories: list[int], size: int) -> list[tuple[list[int], list[int]]]:
    """(queries, keys) of each group, as positions."""
    order = [
        i for c in sorted(set(categories)) for i in range(len(categories)) if categories[i] == c
    ]
    size = min(size, len(order))
    found = []
    for start in range(0, len(order), size):
        members = order[start : start + size]
        missing = size - len(members)
        found.append((members, members + order[len(order) - missing :]))
    return found


def category_attention(
    q: Tensor, k: Tensor, v: Tensor, categories: list[list[int]], heads: int, size: int
) -> Tensor:
    """``softmax(q·k / sqrt(d))`` within each group, head by head."""
    images = []
    for b in range(q.shape[0]):
        per_head = [
            [[u.chunk(heads)[head] for u in vectors(t, b)] for t in (q, k, v)]
            for head in range(heads)
        ]
        outs = {}
        for members, seen in groups(categories[b], size):
            for i in members:
                parts = []
                for queries, keys, values in per_head:
                    root = math.sqrt(len(queries[i]))
                    weights = [torch.exp(torch.dot(queries[i], keys[j]) / root) for j in seen]
                    parts.append(weighted_mean(weights, [values[j] for j in seen]))
                outs[i] = torch.cat(parts)
        images.append([outs[i] for i in range(len(outs))])
    return to_map(images, *q.shape[2:])
