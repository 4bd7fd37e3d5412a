"""What NLSA's buckets catch of exact attention, on one map of features."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.base import to_rows
from attention_zoo.nlsa import hash_codes, normalise_keys, num_buckets, padded_order

from .features import Features

_TINY = 1e-30


def chunk_size(n: int, largest: int) -> int:
    """``largest``, or n // 16 on small maps, where a window then covers 3/16 of the map."""
    return max(1, min(largest, n // 16))


def bucket_windows(order: Tensor, size: int, queries: Tensor) -> Tensor:
    """Which keys each query sees in one hash round of NLSA: bool ``[Q, N]``.

    Args:
        order: positions sorted by hash code ``[N]``.
        size: chunk size.
        queries: positions ``[Q]``.
    """
    n = len(order)
    chunks = padded_order(order.unsqueeze(0), size).view(-1, size)
    member = torch.zeros(len(chunks), n, dtype=torch.bool).scatter_(1, chunks, True)
    window = member | member.roll(1, 0) | member.roll(-1, 0)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(n))
    return window[rank[queries] // size]


def measure_nlsa(
    features: Features,
    *,
    rounds: int,
    draws: int,
    queries: int,
    top: int,
    largest_chunk: int,
    seed: int,
) -> dict[int, dict[str, Tensor]]:
    """What NLSA's buckets catch of its exact softmax after each of ``rounds`` rounds.

    As in the module, one embedding, here ``features.q``, serves as query and, normalised, as key.
    Positions seen in several rounds count once.

    Returns:
        By rounds, each ``[draws]``: ``mass``, the share of the softmax that is caught;
        ``mass_others``, the same without the query's own position, which every round catches;
        ``recall`` of each query's ``top`` largest weights; ``seen``, the share of positions that
        are seen, which is the mass that random buckets would catch.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = to_rows(features.q)
    n, c = rows.shape[1:]
    size = chunk_size(n, largest_chunk)
    chosen = torch.randperm(n, generator=generator)[:queries]
    weights = (rows[0, chosen].double() @ normalise_keys(rows)[0].double().T).softmax(-1)
    own = weights.gather(1, chosen.unsqueeze(1)).squeeze(1)
    best = weights.topk(min(top, n)).indices
    by_rounds: dict[int, dict[str, list[Tensor]]] = {}
    for _ in range(draws):
        rotations = torch.randn(rounds, c, num_buckets(n, size) // 2, generator=generator)
        order = torch.sort(hash_codes(rows, rotations), dim=-1, stable=True).indices[0]
        seen = torch.zeros(len(chosen), n, dtype=torch.bool)
        for r in range(rounds):
            seen |= bucket_windows(order[r], size, chosen)
            mass = (weights * seen).sum(-1)
            found = {
                "mass": mass.mean(),
                "mass_others": (mass - own).sum() / (1 - own).sum().clamp_min(_TINY),
                "recall": seen.gather(1, best).double().mean(),
                "seen": seen.double().mean(),
            }
            for name, value in found.items():
                by_rounds.setdefault(r + 1, {}).setdefault(name, []).append(value)
    return {r: {q: torch.stack(x) for q, x in found.items()} for r, found in by_rounds.items()}
