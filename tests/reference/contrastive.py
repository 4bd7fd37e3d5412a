"""Oracle of ENLCA's contrastive loss, Eq. 8–10, with the paper's percentages.

Choices where the text leaves room: a group has ``max(1, int(n1·N))`` entries; the second starts
at ``int(n2·N)``, yet never so late that it would not fit. For N < 1/n2 both groups are then the
same one entry, the row says nothing, and its loss is the margin.
"""

from __future__ import annotations

from decimal import Decimal

import torch
from torch import Tensor

from .maps import divided_by_norm, vectors


def groups(positions: int, n1: float, n2: float) -> tuple[int, int]:
    """(entries in each group, start of the second group) for a row of N positions."""
    count = max(1, int(Decimal(str(n1)) * positions))
    start = int(Decimal(str(n2)) * positions)
    return count, max(0, min(start, positions - count))


def contrastive_loss(
    q: Tensor,
    k: Tensor,
    *,
    amplification: float = 6.0,
    n1: float = 0.02,
    n2: float = 0.08,
    margin: float = 1.0,
    hinge: bool = True,
) -> Tensor:
    """Mean over rows and images of ``−log(mean exp T' relevant / mean exp T' irrelevant) + b``."""
    losses = []
    for b in range(q.shape[0]):
        queries = [divided_by_norm(u) for u in vectors(q, b)]
        keys = [divided_by_norm(u) for u in vectors(k, b)]
        count, start = groups(len(queries), n1, n2)
        for query in queries:
            scores = torch.stack([amplification * torch.dot(query, key) for key in keys])
            row = torch.sort(scores, descending=True).values
            relevant = torch.exp(row[:count]).mean()
            irrelevant = torch.exp(row[start : start + count]).mean()
            loss = -torch.log(relevant / irrelevant) + margin
            if hinge and loss.item() < 0:
                loss = loss * 0
            losses.append(loss)
    return torch.stack(losses).mean()
