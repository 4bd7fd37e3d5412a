"""Oracle of non-local sparse attention (NLSN): hash, sort, attend between chunks, merge rounds.

Choices where the text leaves room:

* A position is hashed by its query embedding (the module shares it with the key).
* "The last sorted entries repeated": the tail that fills the last chunk is the last entries of
  the sorted sequence in their order; where more are wanted than there are positions (N < S), of
  the sorted sequence written out again and again.
* "Itself and its two neighbours, circularly": the keys are the three chunks one after the other,
  also where two of them, or all three, are the same chunk, whose entries then count repeatedly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import divided_by_norm, to_map, vectors, weighted_mean


def number_of_buckets(positions: int, chunk_size: int) -> int:
    """``min(N//S + (N//S) mod 2, 128)``, at least 2."""
    quotient = positions // chunk_size
    if quotient % 2 == 1:
        quotient = quotient + 1
    return max(2, min(quotient, 128))


def bucket(embedding: Tensor, rotation: Tensor) -> int:
    """Arg-max over ``[xR, −xR]`` for one position ``[c]`` and one rotation ``[c, nb/2]``."""
    with torch.no_grad():
        scores: list[float] = (embedding @ rotation.double()).tolist()
    scores = scores + [-score for score in scores]
    return scores.index(max(scores))


def padded_order(codes: list[int], chunk_size: int) -> list[int]:
    """Positions by code, equal codes in order of position, filled up to whole chunks."""
    order = [i for code in sorted(set(codes)) for i in range(len(codes)) if codes[i] == code]
    wanted = -len(order) % chunk_size
    endless = order * (wanted // len(order) + 1)
    return order + endless[len(endless) - wanted :]


def sparse_attention(q: Tensor, k: Tensor, v: Tensor, rotations: Tensor, chunk_size: int) -> Tensor:
    """Maps ``[B, c, H, W]``, values ``[B, c_out, H, W]``, rotations ``[r, c, nb/2]``."""
    images = []
    for b in range(q.shape[0]):
        queries, values = vectors(q, b), vectors(v, b)
        keys = [divided_by_norm(key) for key in vectors(k, b)]
        outs: list[list[Tensor]] = [[] for _ in queries]  # [position][round]
        masses: list[list[Tensor]] = [[] for _ in queries]  # exp(log-sum-exp) of the same
        for rotation in rotations:
            codes = [bucket(query, rotation) for query in queries]
            order = padded_order(codes, chunk_size)
            chunks = [order[i : i + chunk_size] for i in range(0, len(order), chunk_size)]
            done: set[int] = set()
            for index, chunk in enumerate(chunks):
                before, after = chunks[index - 1], chunks[(index + 1) % len(chunks)]
                seen = chunk + before + after
                for position in chunk:
                    if position in done:  # the repeated entries at the end are no queries
                        continue
                    done.add(position)
                    query = queries[position]
                    weights = [torch.exp(torch.dot(query, keys[j])) for j in seen]
                    outs[position].append(weighted_mean(weights, [values[j] for j in seen]))
                    masses[position].append(torch.stack(weights).sum())
        # softmax over the rounds' log-sum-exps is weighting by the rounds' sums of exponentials
        images.append([weighted_mean(m, o) for m, o in zip(masses, outs, strict=True)])
    return to_map(images, *q.shape[2:])
