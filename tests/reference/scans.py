"""Oracles of recurrences along a map: one position after another, direction by direction."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import divided_by_norm


def orders(height: int, width: int, directions: int) -> list[list[tuple[int, int]]]:
    """Positions as each direction meets them: rows, rows backward, columns, columns backward."""
    rows = [(y, x) for y in range(height) for x in range(width)]
    columns = [(y, x) for x in range(width) for y in range(height)]
    return [rows, rows[::-1], columns, columns[::-1]][:directions]


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_alpha: Tensor, beta: Tensor, directions: int
) -> Tensor:
    """``S = alpha S (I − beta k kᵀ) + beta v kᵀ``, ``o = S q``; the mean of the directions.

    Gates are ``[B, directions · heads, H, W]``.
    """
    heads = log_alpha.shape[1] // directions
    images = []
    for b in range(len(v)):
        outs: dict[tuple[int, int, int], Tensor] = {}
        for direction, order in enumerate(orders(*v.shape[2:], directions)):
            for head in range(heads):
                gate = direction * heads + head
                queries, keys, values = (t[b].double().chunk(heads)[head] for t in (q, k, v))
                state = torch.zeros(len(values), len(keys), dtype=torch.float64)
                for y, x in order:
                    key, value = divided_by_norm(keys[:, y, x]), values[:, y, x]
                    decay, strength = log_alpha[b, gate, y, x].exp(), beta[b, gate, y, x]
                    erased = state - strength * torch.outer(state @ key, key)
                    state = decay * erased + strength * torch.outer(value, key)
                    out = state @ divided_by_norm(queries[:, y, x])
                    outs[head, y, x] = outs.get((head, y, x), torch.zeros(())) + out / directions
        images.append(_to_map(outs, heads, *v.shape[2:]))
    return torch.stack(images)


def selective_scan(
    q: Tensor, k: Tensor, v: Tensor, steps: Tensor, rates: Tensor, skip: Tensor, directions: int
) -> Tensor:
    """``h = e^(−a Δ) h + (1 − e^(−a Δ)) / a · x bᵀ``, ``y = h c``, the mean; plus ``skip · x``.

    Steps are ``[B, directions · heads, H, W]``, rates a ``[directions · heads]``, skip ``[heads]``;
    b and c are the key and the query over their norms, the same for all heads.
    """
    heads = len(skip)
    images = []
    for b in range(len(v)):
        outs: dict[tuple[int, int, int], Tensor] = {}
        for head in range(heads):
            values = v[b].double().chunk(heads)[head]
            for y, x in orders(*v.shape[2:], 1)[0]:
                outs[head, y, x] = skip[head].double() * values[:, y, x]
            for direction, order in enumerate(orders(*v.shape[2:], directions)):
                gate = direction * heads + head
                rate = rates[gate].double()
                state = torch.zeros(len(values), k.shape[1], dtype=torch.float64)
                for y, x in order:
                    decay = torch.exp(-rate * steps[b, gate, y, x])
                    key = divided_by_norm(k[b, :, y, x].double())
                    query = divided_by_norm(q[b, :, y, x].double())
                    state = decay * state
                    state = state + (1 - decay) / rate * torch.outer(values[:, y, x], key)
                    outs[head, y, x] = outs[head, y, x] + state @ query / directions
        images.append(_to_map(outs, heads, *v.shape[2:]))
    return torch.stack(images)


def _to_map(
    outs: dict[tuple[int, int, int], Tensor], heads: int, height: int, width: int
) -> Tensor:
    """Vectors by head, row and column to ``[C, H, W]``."""
    return torch.stack(
        [
            torch.stack([torch.cat([outs[h, y, x] for h in range(heads)]) for x in range(width)], 1)
            for y in range(height)
        ],
        1,
    )
