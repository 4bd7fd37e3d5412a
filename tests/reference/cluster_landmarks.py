"""Oracle of attention to density-peak landmarks, candidate by candidate.

Where the text leaves room: of equal densities, and of equal scores, the first candidate's counts as
the larger; a candidate is placed in its run by multiples of the golden ratio, of 31 bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import divided_by_norm, to_map, vectors, weighted_mean


def candidate_places(n: int, candidates: int) -> list[int]:
    """A position in each run."""
    step = int((math.sqrt(5) - 1) / 2 * 2**31)
    places = []
    for i in range(candidates):
        run = range(i * n // candidates, (i + 1) * n // candidates)
        places.append(run[(i * step % 2**31) * len(run) // 2**31])
    return places


def density_peaks(units: list[Tensor], count: int) -> list[int]:
    """The candidates of the largest ``density · distance``, the largest first."""
    if len(units) == 1:
        return [0]
    likeness = [[torch.dot(a, b).item() for b in units] for a in units]
    numbers = range(len(units))
    densities = []
    for i in numbers:
        others = sorted((likeness[i][j] for j in numbers if j != i), reverse=True)[:count]
        densities.append(sum(others) / len(others))
    ranked = sorted(numbers, key=lambda i: (-densities[i], i))
    scores = {}
    for rank, i in enumerate(ranked):
        if rank == 0:
            distance = 1 - min(likeness[i][j] for j in numbers if j != i)
        else:
            distance = 1 - max(likeness[i][j] for j in ranked[:rank])
        scores[i] = densities[i] * max(0.0, distance)
    return sorted(ranked, key=lambda i: -scores[i])[:count]


def clusters_of(keys: list[Tensor], share: float, sample: int) -> list[list[int]]:
    """The positions of each cluster."""
    n = len(keys)
    count = max(1, int(share * n + 1e-9))
    units = [divided_by_norm(key).detach() for key in keys]
    places = candidate_places(n, min(n, sample * count))
    centres = [places[i] for i in density_peaks([units[j] for j in places], count)]
    clusters: list[list[int]] = [[] for _ in centres]
    for i, unit in enumerate(units):
        cosines = [torch.dot(unit, units[centre]).item() for centre in centres]
        nearest = centres.index(i) if i in centres else cosines.index(max(cosines))
        clusters[nearest].append(i)
    return clusters


def landmark_attention(q: Tensor, k: Tensor, v: Tensor, share: float, sample: int) -> Tensor:
    """``softmax(q·a / sqrt(c)) u`` over mean keys a, made long, and mean values u."""
    images = []
    for b in range(q.shape[0]):
        queries, keys, values = (vectors(t, b) for t in (q, k, v))
        longest = torch.stack([torch.sqrt(torch.sum(key * key)) for key in keys]).max()
        landmarks, means = [], []
        for members in clusters_of(keys, share, sample):
            mean_key, mean_value = (
                torch.stack([t[i] for i in members]).sum(0) / len(members) for t in (keys, values)
            )
            landmarks.append(longest * divided_by_norm(mean_key))
            means.append(mean_value)
        root = math.sqrt(q.shape[1])
        images.append(
            [
                weighted_mean([torch.exp(torch.dot(query, a) / root) for a in landmarks], means)
                for query in queries
            ]
        )
    return to_map(images, *q.shape[2:])
